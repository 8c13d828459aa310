"""Where the blocks of one state are, remembered by whole level-1 tables, so that most requests need no walk over tables.

A location is an int64: a block of NVM where it is positive, a slot of the mass store where it is negative, 0 for a hole. Every word behind
it was checked when it was loaded, and this process alone changes the image, so a location stays right until somebody says `forget`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError
from ..media import word
from . import layout as lay

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from .region import Region

    Ints = NDArray[np.int64]

# 4 KiB each: 128 MiB at most, for 64 GiB of a region.
_MOST_LEAVES = 32768
_LEAVES_AT_ONCE = 64


class Locations:
    """The locations of a region's running point (`snapshot` None: what is not flushed yet included) or of one of its snapshots."""

    def __init__(self, region: Region, snapshot: str | None) -> None:
        """Know nothing yet."""
        self.region = region
        self.snapshot = snapshot
        # Two views of the same memory: numpy for stretches, memoryviews for single blocks.
        self.arrays: dict[int, Ints] = {}
        self.leaves: dict[int, memoryview] = {}

    def load(self, table_indexes: Iterable[int]) -> None:
        """Learn all blocks of these level-1 tables, many at once; tables with a damaged word are left out."""
        missing = sorted(set(table_indexes) - self.leaves.keys())
        for start in range(0, len(missing), _LEAVES_AT_ONCE):
            self._load(missing[start : start + _LEAVES_AT_ONCE])

    def look_up(self, indexes: Ints) -> Ints:
        """Return the locations of logical blocks without remembering them; raises DamagedError."""
        region = self.region
        kinds, values = region.pages.resolve(region.root_of(self.snapshot), indexes)
        found: Ints = np.where(kinds == word.SLOT, -values, values)
        if self.snapshot is None and region.pending:
            for position, index in enumerate(indexes.tolist()):
                found[position] = region.pending.get(index, found[position])
        return found

    def moved(self, first: int, count: int) -> None:
        """Take over from the region where blocks are that were just written."""
        pending = self.region.pending
        if count == 1:
            leaf, block = self.leaves.get(first >> lay.TABLE_BITS), pending.get(first)
            if leaf is not None and block is not None:
                leaf[first & lay.TABLE_ENTRIES - 1] = block
                return
        end = first + count
        for table_index in range(first >> lay.TABLE_BITS, (end - 1 >> lay.TABLE_BITS) + 1):
            array = self.arrays.get(table_index)
            if array is None:
                continue
            start = table_index << lay.TABLE_BITS
            lo, hi = max(first, start), min(end, start + lay.TABLE_ENTRIES)
            try:
                array[lo - start : hi - start] = list(map(pending.__getitem__, range(lo, hi)))
            except KeyError:  # flushed already
                self.forget([table_index])

    def forget(self, table_indexes: Iterable[int] | None = None) -> None:
        """Forget some tables, or all."""
        if table_indexes is None:
            self.arrays.clear()
            self.leaves.clear()
            return
        for table_index in table_indexes:
            self.arrays.pop(table_index, None)
            self.leaves.pop(table_index, None)

    def _load(self, table_indexes: list[int]) -> None:
        region = self.region
        numbers = np.array(table_indexes, np.int64)
        try:
            leaves = region.pages.tables.find_leaves(region.root_of(self.snapshot), numbers)
            indexes, words = region.pages.tables.words_of(numbers, leaves)
            words[np.repeat(leaves == 0, lay.TABLE_ENTRIES)] = 0
            kinds, values = region.pages.follow(*region.pages.tables.decode(words, indexes), indexes)
        except DamagedError:
            if len(table_indexes) > 1:  # the others are sound
                for table_index in table_indexes:
                    self._load([table_index])
            return
        found = np.where(kinds == word.SLOT, -values, values).reshape(-1, lay.TABLE_ENTRIES)
        if self.snapshot is None:
            self._add_pending(table_indexes, found)
        while len(self.leaves) + len(table_indexes) > _MOST_LEAVES:
            self.forget([next(iter(self.leaves))])
        for row, table_index in enumerate(table_indexes):
            # Copied, so that a table that is forgotten does not stay because of its neighbours.
            self.arrays[table_index] = array = found[row].copy()
            self.leaves[table_index] = memoryview(array)

    def _add_pending(self, table_indexes: list[int], found: NDArray[np.int64]) -> None:
        pending = self.region.pending
        for row, table_index in enumerate(table_indexes if pending else []):
            if table_index in self.region.pending_tables:
                first = table_index << lay.TABLE_BITS
                for position in range(lay.TABLE_ENTRIES):
                    block = pending.get(first + position)
                    if block is not None:
                        found[row, position] = block
