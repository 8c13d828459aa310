"""The level-1 words of many states at once: what pointer elimination, conversion and recall walk.

All distinct tables that stand at one logical place come together, so that every word that names a block is changed in the same commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import layout as lay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .region import Region

    Ints = NDArray[np.int64]
    Mask = NDArray[np.bool_]

_MOST_WORDS = 1 << 20


@dataclass(frozen=True)
class LeafWords:
    """Present level-1 words, flat arrays of equal length.

    `at`: word indexes in the image; `indexes`: logical blocks; `kinds`, `values`: decoded words; `ranks`: which root reaches them first.
    """

    at: Ints
    indexes: Ints
    kinds: NDArray[np.uint8]
    values: Ints
    ranks: Ints

    def __len__(self) -> int:
        """Return the number of words."""
        return len(self.at)

    def select(self, which: Mask | Ints) -> LeafWords:
        """Return some of the words."""
        return LeafWords(self.at[which], self.indexes[which], self.kinds[which], self.values[which], self.ranks[which])

    def units(self) -> tuple[Ints, Ints, Ints]:
        """Return (a word of each distinct thing named, which of them each word names, words that name it), by logical block."""
        keys = self.kinds.astype(np.int64) << 56 | self.values
        _, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        return first, inverse, counts

    def first_ranks(self, inverse: Ints, nunits: int) -> Ints:
        """Return, per unit, the lowest rank among the words that name it."""
        lowest = np.full(nunits, np.iinfo(np.int64).max)
        np.minimum.at(lowest, inverse, self.ranks)
        return lowest


def iter_leaf_words(region: Region, roots: list[int], first: int = 0) -> Iterator[LeafWords]:
    """Yield the words of all level-1 tables that the roots reach, from a logical block on; one logical block's words are never parted."""
    tables = region.pages.tables
    for table_index, leaves, ranks in tables.iter_leaf_groups(roots, first >> lay.TABLE_BITS):
        begin = max(0, first - (table_index << lay.TABLE_BITS))
        columns = max(1, min(lay.TABLE_ENTRIES, _MOST_WORDS // len(leaves)))
        for start in range(begin, lay.TABLE_ENTRIES, columns):
            positions = np.arange(start, min(start + columns, lay.TABLE_ENTRIES), dtype=np.int64)
            at = leaves[:, None] * lay.WORDS_PER_BLOCK + positions
            words = region.device.journal.array[at]
            rows, cells = np.nonzero(words)
            if len(rows):
                indexes = positions[cells] + (table_index << lay.TABLE_BITS)
                kinds, values = tables.decode(words[rows, cells], indexes)
                yield LeafWords(at[rows, cells], indexes, kinds, values, ranks[rows])


def batched(words: Iterator[LeafWords], most: int) -> Iterator[LeafWords]:
    """Join consecutive parts until about `most` words are together."""
    parts: list[LeafWords] = []
    total = 0
    for part in words:
        parts.append(part)
        total += len(part)
        if total >= most:
            yield _join(parts)
            parts, total = [], 0
    if parts:
        yield _join(parts)


def slices(counts: Ints, most: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of consecutive units that together have at most `most` words, at least one unit each."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        base = int(ends[start - 1]) if start else 0
        end = max(int(np.searchsorted(ends, base + most, side="right")), start + 1)
        yield start, end
        start = end


def _join(parts: list[LeafWords]) -> LeafWords:
    if len(parts) == 1:
        return parts[0]
    fields = ("at", "indexes", "kinds", "values", "ranks")
    return LeafWords(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))
