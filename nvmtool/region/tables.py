"""Page tables: radix trees of 512 sealed words, shared copy-on-write between the states of a region (docs/format.md, section 6).

A *table index* is a logical block >> 9: it numbers the level-1 tables of a region. All functions are vectorised over many tables.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from ..media import word
from . import layout as lay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ..media.journal import Journal
    from ..media.word import Words
    from .blocks import BlockNumbers, Blocks

    Indexes = NDArray[np.int64]

ABSENT = 0
_POSITIONS = np.arange(lay.TABLE_ENTRIES, dtype=np.int64)


def levels_for(nblocks: int) -> int:
    """Return how many levels a region of that many blocks has."""
    levels = 1
    while 1 << lay.TABLE_BITS * levels < nblocks:
        levels += 1
    return levels


class Tables:
    """The page tables of one region, whoever of its states they belong to. Absent tables are block 0."""

    def __init__(self, journal: Journal, blocks: Blocks, region: int, nblocks: int) -> None:
        """Stand on the tables of a region id with that many logical blocks."""
        self._journal = journal
        self._blocks = blocks
        self._region = region
        self.levels = levels_for(nblocks)

    def find_leaves(self, root: int, table_indexes: Indexes) -> BlockNumbers:
        """Return the level-1 tables at these table indexes, 0 where absent; raises DamagedError for a broken pointer."""
        blocks = np.full(len(table_indexes), root, np.int64)
        for level in range(self.levels, 1, -1):
            index = table_indexes >> lay.TABLE_BITS * (level - 2)
            present = np.flatnonzero(blocks)
            at = blocks[present] * lay.WORDS_PER_BLOCK + (index[present] & lay.TABLE_ENTRIES - 1)
            blocks[present] = self.children(self._journal.array[at], level, index[present], at)
        return blocks

    def children(self, words: Words, level: int, indexes: Indexes, at: Indexes) -> BlockNumbers:
        """Return the tables that upper-level entries name, 0 where absent.

        `indexes` are the entries' logical indexes on their level, `at` their word indexes in the image. Raises DamagedError.
        """
        blocks = np.zeros(len(words), np.int64)
        present = np.flatnonzero(words)
        if len(present):
            offsets = (at[present] * 8).astype(np.uint64)
            places = word.places_array(lay.TABLE_PLACE + level, self._region, indexes[present])
            payloads = word.unseal_array(words[present], places, f"level-{level} entry", offsets)
            values = (payloads & np.uint64(word.VALUE_MASK)).astype(np.int64)
            wrong = (payloads >> np.uint64(word.VALUE_BITS) != word.TABLE) | (values < self._blocks.start) | (values >= self._blocks.end)
            if wrong.any():
                first = int(np.flatnonzero(wrong)[0])
                word.damaged(
                    f"level-{level} entry",
                    int(offsets[first]),
                    int(words[present][first]),
                    f"does not name a table in the data area (ends at {self._blocks.end})",
                )
            blocks[present] = values
        return blocks

    def lookup(self, root: int, indexes: Indexes) -> Words:
        """Return the level-1 words at logical blocks (any order), 0 for holes; the words themselves are not checked yet."""
        table_indexes, inverse = np.unique(indexes >> lay.TABLE_BITS, return_inverse=True)
        leaves = self.find_leaves(root, table_indexes)[inverse]
        words = self._journal.array[leaves * lay.WORDS_PER_BLOCK + (indexes & lay.TABLE_ENTRIES - 1)]
        words[leaves == 0] = 0
        return words

    def decode(self, words: Words, indexes: Indexes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return (kinds, values) of level-1 words at logical blocks: block number, entry address or slot; 0 for holes.

        Raises DamagedError for a broken word or a value out of range.
        """
        kinds = np.zeros(words.shape, np.uint8)
        values = np.zeros(words.shape, np.int64)
        present = words != 0
        if present.any():
            found, where = words[present], indexes[present]
            places = word.places_array(lay.table_place(1, 0, 0) >> 56, self._region, where)
            payloads = word.unseal_array(found, places, f"region {self._region} level-1 entry of logical block", where.astype(np.uint64))
            kinds[present] = (payloads >> np.uint64(word.VALUE_BITS)).astype(np.uint8)
            values[present] = (payloads & np.uint64(word.VALUE_MASK)).astype(np.int64)
            self._check_ranges(kinds, values, indexes, words)
        return kinds, values

    def seal(self, kind: int, values: NDArray[np.integer], indexes: Indexes) -> Words:
        """Return level-1 words of a kind for logical blocks."""
        payloads = values.astype(np.uint64) | np.uint64(kind << word.VALUE_BITS)
        return word.seal_array(payloads, word.places_array(lay.TABLE_PLACE + 1, self._region, indexes))

    def iter_leaf_groups(self, roots: list[int], first: int = 0) -> Iterator[tuple[int, BlockNumbers, Indexes]]:
        """Yield (table index, distinct level-1 tables there, ranks) in order, from a table index on.

        A table's rank is the position of the first root in the list through which it is reached; the tables are in the order of their
        ranks.
        """
        ranks = np.flatnonzero(roots)
        tables, order = np.unique(np.array(roots, np.int64)[ranks], return_index=True)
        if len(tables):
            by_rank = np.argsort(order)
            yield from self._iter_groups(tables[by_rank], ranks[order[by_rank]], self.levels, 0, first)

    def _iter_groups(
        self, tables: BlockNumbers, ranks: Indexes, level: int, prefix: int, first: int
    ) -> Iterator[tuple[int, BlockNumbers, Indexes]]:
        if level == 1:
            yield prefix, tables, ranks
            return
        at = tables[:, None] * lay.WORDS_PER_BLOCK + _POSITIONS
        words = self._journal.array[at]
        span = lay.TABLE_BITS * (level - 2)
        for position in np.flatnonzero(words.any(axis=0)).tolist():
            index = prefix << lay.TABLE_BITS | position
            if (index + 1) << span <= first:
                continue
            indexes = np.full(len(tables), index, np.int64)
            children = self.children(words[:, position], level, indexes, at[:, position])
            present = np.flatnonzero(children)
            distinct, order = np.unique(children[present], return_index=True)
            by_rank = np.argsort(order)
            yield from self._iter_groups(distinct[by_rank], ranks[present[order[by_rank]]], level - 1, index, first)

    def iter_words(self, root: int, nleaves: int) -> Iterator[tuple[Indexes, Words]]:
        """Yield (logical blocks, level-1 words) of the tables that a root reaches, in order, up to `nleaves` tables at a time."""
        groups = self.iter_leaf_groups([root])
        while batch := [(table_index, int(leaves[0])) for table_index, leaves, _ in islice(groups, nleaves)]:
            yield self.words_of(*np.array(batch, np.int64).T)

    def words_of(self, table_indexes: Indexes, leaves: BlockNumbers) -> tuple[Indexes, Words]:
        """Return (logical blocks, level-1 words), 512 for each of the tables, one behind the other."""
        indexes = ((table_indexes << lay.TABLE_BITS)[:, None] + _POSITIONS).reshape(-1)
        return indexes, self._journal.array[(leaves[:, None] * lay.WORDS_PER_BLOCK + _POSITIONS).reshape(-1)]

    def iter_differing(self, a: int, b: int) -> Iterator[tuple[int, int, int]]:
        """Yield (table index, table in tree a, table in tree b) where the level-1 tables are not the same; shared subtrees cost nothing."""
        if a != b:
            yield from self._iter_differing(a, b, self.levels, 0)

    def _iter_differing(self, a: int, b: int, level: int, prefix: int) -> Iterator[tuple[int, int, int]]:
        if level == 1:
            yield prefix, a, b
            return
        below = []
        for table in (a, b):
            if table:
                at = table * lay.WORDS_PER_BLOCK + _POSITIONS
                words = self._journal.array[at]
                below.append(self.children(words, level, (prefix << lay.TABLE_BITS) + _POSITIONS, at))
            else:
                below.append(np.zeros(lay.TABLE_ENTRIES, np.int64))
        for position in np.flatnonzero(below[0] != below[1]).tolist():
            index = prefix << lay.TABLE_BITS | position
            yield from self._iter_differing(int(below[0][position]), int(below[1][position]), level - 1, index)

    def iter_children(self, table: int, level: int, prefix: int) -> Iterator[tuple[int, int]]:
        """Yield (logical index on that level, table) of the tables that an upper table names."""
        at = table * lay.WORDS_PER_BLOCK + _POSITIONS
        children = self.children(self._journal.array[at], level, (prefix << lay.TABLE_BITS) + _POSITIONS, at)
        for position in np.flatnonzero(children).tolist():
            yield prefix << lay.TABLE_BITS | position, int(children[position])

    def leaf_words(self, leaf: int) -> Words:
        """Return a copy of the 512 words of a level-1 table, all 0 for an absent one."""
        if leaf == ABSENT:
            return np.zeros(lay.TABLE_ENTRIES, np.uint64)
        base = leaf * lay.WORDS_PER_BLOCK
        return self._journal.array[base : base + lay.TABLE_ENTRIES].copy()

    def create(self, content_of: int = ABSENT) -> int:
        """Take a fresh table block, counted once, with the contents of another table or empty; raises NoSpaceError."""
        block = self._blocks.take_one()
        self._blocks.name(np.array([block]), word.TABLE)
        content = None
        if content_of:
            content = self._journal.store.view[content_of * lay.BLOCK_SIZE : (content_of + 1) * lay.BLOCK_SIZE].data
        self._journal.add_fresh(block, content)
        return block

    def pointer_place(self, level: int, index: int) -> int:
        """Return the place of an upper-level entry."""
        return lay.table_place(level, self._region, index)

    def _check_ranges(self, kinds: NDArray[np.uint8], values: NDArray[np.int64], indexes: Indexes, words: Words) -> None:
        blocks = np.where(kinds == word.ENTRY, values >> lay.ENTRY_BITS, values)
        in_area = (blocks >= self._blocks.start) & (blocks < self._blocks.end)
        is_entry = (kinds == word.ENTRY) & ((values & lay.ENTRIES_PER_ARRAY_BLOCK - 1) >= lay.FIRST_ENTRY)
        is_slot = (kinds == word.SLOT) & (values > 0) & (values < lay.MAX_SLOTS)
        sound = (words == 0) | (in_area & ((kinds == word.BLOCK) | is_entry)) | is_slot
        if not sound.all():
            first = int(np.flatnonzero(~sound.ravel())[0])
            kind = int(kinds.ravel()[first])
            name = word.KIND_NAMES[kind] if kind < len(word.KIND_NAMES) else f"kind {kind}"
            word.damaged(
                f"region {self._region} level-1 entry of logical block",
                int(indexes.ravel()[first]),
                int(words.ravel()[first]),
                f"names {name} {int(values.ravel()[first])}, out of range (data area ends at {self._blocks.end})",
            )
