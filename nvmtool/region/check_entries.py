"""The virtblock entries of one region: each array's own rules, and every entry's count against the words that name it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError
from ..media import word
from . import layout as lay

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .check import Walk
    from .records import Record
    from .region import Region

    Ints = NDArray[np.int64]

_BLOCKS_AT_ONCE = 256
_PER_BLOCK = lay.ENTRIES_PER_ARRAY_BLOCK
_AT_ONCE = 1 << 18


class Entries:
    """All entries of a region, decoded once: flat arrays, 256 for each array block in the order in which the blocks were met."""

    def __init__(self, walk: Walk, region: Region, states: list[Record]) -> None:
        """Walk all arrays; each is checked on its own."""
        self._walk = walk
        self._region = region
        self._virtblocks = region.pages.virtblocks
        # Position of each array block, by block of the data area; 0 for other blocks.
        self._rows = np.zeros(walk.device.blocks.nblocks, np.int32)
        self._blocks: list[Ints] = [np.zeros(1, np.int64)]
        parts = [_Part(1)]
        for state in states:
            state_id = state.get("state") if state is region.record else state.id
            try:
                for blocks in self._virtblocks.iter_array(state.get_pointer("array", word.ARRAY), _BLOCKS_AT_ONCE):
                    walk.expect(blocks, word.ARRAY, "virtblock array")
                    # Before anything is read of them: the rows of damaged blocks are there too.
                    parts.append(_Part(len(blocks)))
                    self._check_heads(blocks, state_id)
                    self._check_block_entries(blocks, parts[-1])
            except DamagedError as error:
                walk.damaged("virtblock array", error)
        self._homes, self._counts, self._purged = (np.concatenate([getattr(part, name) for part in parts]) for name in _Part.FIELDS)
        self._named = np.zeros(len(self._counts), np.int32)

    @property
    def purged(self) -> int:
        """How many entries name slots."""
        return int((self._purged & (self._counts > 0)).sum())

    @property
    def in_nvm(self) -> int:
        """How many entries name blocks in NVM."""
        return int((~self._purged & (self._counts > 0)).sum())

    def name(self, addresses: Ints, indexes: Ints) -> NDArray[np.bool_]:
        """Count one reference for each address that level-1 words at logical blocks name; return which of them are purged."""
        walk = self._walk
        rows = self._rows[(addresses >> lay.ENTRY_BITS) - walk.start]
        at = rows.astype(np.int64) * _PER_BLOCK + (addresses & _PER_BLOCK - 1)
        add_counts(self._named, at)
        for position in np.flatnonzero(rows == 0)[:10].tolist():
            block = int(addresses[position]) >> lay.ENTRY_BITS
            walk.find("error", "level-1 table", f"block {block}", "is named for its entries, but is in no array of the region")
        homes = self._homes[at]
        wrong = np.flatnonzero((homes != indexes) & (rows != 0))
        if len(wrong):
            first = int(wrong[0])
            what = f"says logical block {homes[first]}, is named at {indexes[first]}" if self._counts[at[first]] else "is named but absent"
            walk.find("error", "virtblock entry", f"0x{int(addresses[first]) * 16:x}", what)
        purged: NDArray[np.bool_] = self._purged[at]
        return purged

    def compare(self) -> None:
        """Compare the counts with how often the entries were named."""
        self._named[:_PER_BLOCK] = 0  # what belongs to no array was found already
        wrong = np.flatnonzero(self._counts != self._named)
        blocks = np.concatenate(self._blocks)
        addresses = (blocks[wrong // _PER_BLOCK] << lay.ENTRY_BITS) + wrong % _PER_BLOCK
        found, wanted = self._counts[wrong].astype(np.int64), self._named[wrong].astype(np.int64)
        kept = self._walk.compare("virtblock entry", lambda position: f"0x{int(addresses[position]) * 16:x}", found, wanted)
        if len(kept):
            self._walk.fixes.append(self._virtblocks.sealed_homes(addresses[kept], self._homes[wrong[kept]], wanted[kept]))

    def _check_heads(self, blocks: Ints, state_id: int) -> None:
        self._rows[blocks - self._walk.start] = np.arange(len(blocks)) + sum(map(len, self._blocks))
        self._blocks.append(blocks)
        owners = self._virtblocks.owners(blocks)
        for position in np.flatnonzero(owners != state_id).tolist():
            what = f"belongs to state {owners[position]}, is in the array of state {state_id}"
            self._walk.find("error", "virtblock array", f"block {blocks[position]}", what)

    def _check_block_entries(self, blocks: Ints, part: _Part) -> None:
        walk, virtblocks = self._walk, self._virtblocks
        table = walk.device.journal.array[blocks[:, None] * lay.WORDS_PER_BLOCK + np.arange(lay.WORDS_PER_BLOCK)]
        halves = table[:, 2 * lay.FIRST_ENTRY :].reshape(len(blocks), -1, 2) != 0
        for position in np.flatnonzero((halves[:, :, 0] != halves[:, :, 1]).any(axis=1)).tolist():
            walk.find("error", "virtblock entry", f"array block {int(blocks[position])}", "has one of its two words only")
        live, present = virtblocks.lives(blocks), halves[:, :, 1].sum(axis=1)
        for position in np.flatnonzero(live != present).tolist():
            what = f"live is {live[position]}, {present[position]} entries are present"
            walk.find("error", "virtblock array", f"block {int(blocks[position])}", what)
        rows, cells = np.nonzero(halves[:, :, 1])
        cells += lay.FIRST_ENTRY
        addresses = (blocks[rows] << lay.ENTRY_BITS) + cells
        homes, counts = virtblocks.homes(addresses)
        kinds, values = virtblocks.targets(addresses, homes)
        walk.expect(values[kinds == word.BLOCK], word.BLOCK, "virtblock entry")
        walk.expect_slots(values[kinds == word.SLOT], "virtblock entry")
        at = rows * _PER_BLOCK + cells
        part.homes[at], part.counts[at], part.purged[at] = homes, counts, kinds == word.SLOT


class _Part:
    """The entries of some array blocks: logical blocks, counts, whether they name slots."""

    FIELDS = ("homes", "counts", "purged")

    def __init__(self, nblocks: int) -> None:
        self.homes = np.zeros(nblocks * _PER_BLOCK, np.int64)
        self.counts = np.zeros(nblocks * _PER_BLOCK, np.int32)
        self.purged = np.zeros(nblocks * _PER_BLOCK, bool)


def add_counts(counts: NDArray[np.int32], at: Ints) -> None:
    """Add 1 to the elements at these positions, repeats included."""
    if len(at) * 4 > len(counts):
        counts += np.bincount(at, minlength=len(counts)).astype(np.int32)
    else:
        np.add.at(counts, at, 1)
