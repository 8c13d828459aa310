"""The mass-slot table: which slots are in use, by how many words each is named, and what its CRC-32C must be.

A radix tree of four levels (docs/format.md, section 8), changed in place through the log. Slots that a transaction dropped are
given back to the file system after the next checkpoint, when no reader can name them any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, NoSpaceError
from ..media import word
from . import layout as lay
from .pairing import Pairing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ..media.journal import Journal
    from ..media.root import Root
    from ..media.word import Words
    from .blocks import Blocks
    from .mass import MassStore, SlotNumbers

_ROOT_WORD = lay.ROOT_BLOCK * lay.WORDS_PER_BLOCK + lay.field_index(lay.ROOT, "slot_table")
_ROOT_PLACE = word.place(lay.ROOT_PLACE, 0, lay.field_index(lay.ROOT, "slot_table"))


class Slots:
    """The slots of the mass store. Slot numbers are int64 arrays."""

    def __init__(self, journal: Journal, blocks: Blocks, root: Root) -> None:
        """Stand on the slot table of an open journal; until its mass store is attached, nothing is given back to a file system."""
        self._journal = journal
        self._blocks = blocks
        self._root = root
        self.mass: MassStore | None = None
        self.pairing = Pairing(journal, root)
        self._dropped: list[SlotNumbers] = []
        self._dropped_before_commit: list[SlotNumbers] = []
        self._next_leaf = 0
        # Which slots the log of an earlier process frees is not known: until a checkpoint all below this leaf are left alone.
        self._first_leaf = (self.end() >> lay.TABLE_BITS) + 1 if journal.writable and journal.sequence else 0
        journal.on_commit.append(self._after_commit)
        journal.on_rollback.append(self._dropped_before_commit.clear)
        journal.on_checkpoint.append(self._after_checkpoint)

    @property
    def used(self) -> int:
        """Number of slots in use."""
        return self._root.get("used_slots")

    def attach(self, mass: MassStore | None) -> None:
        """Take over an open mass store, or let go of it."""
        self.mass = self.pairing.mass = mass

    def take(self, count: int) -> SlotNumbers:
        """Choose free slots in ascending order, contiguous as far as they are; they count as used only by `name`.

        Call it once a transaction: until the commit it may choose the same slots again. Raises NoSpaceError when the table is full.
        """
        parts: list[SlotNumbers] = []
        missing = count
        unusable = np.concatenate([*self._dropped, *self._dropped_before_commit, np.zeros(1, np.int64)])
        for leaf in self._iter_leaves_with_room(max(self._next_leaf, self._first_leaf)):
            self._next_leaf = leaf
            free = self._free_in_leaf(leaf)
            free = free[~np.isin(free, unusable)][:missing]
            parts.append(free)
            missing -= len(free)
            if missing == 0:
                return np.concatenate(parts)
        raise NoSpaceError(f"{self._journal.store.path}: mass-slot table is full ({lay.MAX_SLOTS} slots)")

    def name(self, slots: SlotNumbers, crcs: NDArray[np.uint32], counts: NDArray[np.uint64]) -> None:
        """Count free slots as used, with their checksums, in the open transaction."""
        self._journal.set_words(self._word_indexes(slots, create=True), self.sealed(slots, counts, crcs))
        self._add_used(slots, 1)

    def sealed(self, slots: SlotNumbers, counts: NDArray[np.uint64], crcs: NDArray[np.uint32]) -> Words:
        """Return the slot words for slots in use."""
        payloads = counts | crcs.astype(np.uint64) << np.uint64(lay.COUNT_BITS) | np.uint64(word.SLOT << word.VALUE_BITS)
        return word.seal_array(payloads, word.places_array(lay.SLOTS_PLACE, 0, slots))

    def get(self, slots: SlotNumbers) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """Return (counts, checksums) of slots in use; raises DamagedError."""
        indexes = self._word_indexes(slots, create=False)
        return self._decode(slots, indexes)

    def add_refs(self, slots: SlotNumbers) -> None:
        """Add one reference for each number in the array (repeats count)."""
        distinct, times = np.unique(slots, return_counts=True)
        indexes = self._word_indexes(distinct, create=False)
        counts, crcs = self._decode(distinct, indexes)
        self._store(distinct, indexes, counts + times.astype(np.uint64), crcs)

    def drop_refs(self, slots: SlotNumbers) -> SlotNumbers:
        """Take one reference off for each number in the array, free slots that reach zero, and return those."""
        distinct, times = np.unique(slots, return_counts=True)
        indexes = self._word_indexes(distinct, create=False)
        counts, crcs = self._decode(distinct, indexes)
        drops = times.astype(np.uint64)
        if (drops > counts).any():
            first = int(np.flatnonzero(drops > counts)[0])
            word.damaged("slot word", int(indexes[first]) * 8, int(self._journal.words[int(indexes[first])]), "counts too few")
        kept = drops < counts
        self._store(distinct[kept], indexes[kept], (counts - drops)[kept], crcs[kept])
        freed = distinct[~kept]
        if len(freed):
            self._journal.set_words(indexes[~kept], np.zeros(len(freed), np.uint64))
            self._add_used(freed, -1)
            self._dropped_before_commit.append(freed)
            self.pairing.announce()
            self._next_leaf = min(self._next_leaf, int(freed[0]) >> lay.TABLE_BITS)
        return freed

    def read(self, slots: SlotNumbers) -> NDArray[np.uint8]:
        """Return the contents of slots in use, shape (n, 4096), proven by checksum; raises DamagedError or StorageError."""
        assert self.mass is not None
        _, crcs = self.get(slots)
        return self.mass.read(slots, crcs)

    def iter_tables(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (level, index of the first slot >> 9 * level, block, used words it claims) of every table, parents first.

        Level 3 is the top. Raises DamagedError for a broken pointer.
        """
        top = self._child(_ROOT_WORD, _ROOT_PLACE)
        if top is not None:
            yield 3, 0, top[0], top[1]
            yield from self._iter_below(3, 0, top[0])

    def end(self) -> int:
        """Return the number behind the last slot that may be in use, for checking the mass store's size (0: none)."""
        top = self._child(_ROOT_WORD, _ROOT_PLACE)
        return self._end_below(3, 0, top[0]) if top is not None else 0

    def free_in(self, first: int, end: int) -> SlotNumbers:
        """Return the free slots from `first` on before `end`; raises DamagedError."""
        leaves = range(first >> lay.TABLE_BITS, (end - 1 >> lay.TABLE_BITS) + 1)
        free = np.concatenate([self._free_in_leaf(leaf) for leaf in leaves])
        return free[(free >= first) & (free < end)]

    def give_back_free(self) -> None:
        """Give free slots that occupy storage back to the file system; no reader may know an older state."""
        assert self.mass is not None
        self.pairing.begin()
        for first, nslots in self.mass.iter_data():
            self.mass.punch(self.free_in(first, first + nslots))

    def _end_below(self, level: int, first: int, block: int) -> int:
        base = block * lay.WORDS_PER_BLOCK
        used = np.flatnonzero(self._journal.array[base : base + lay.TABLE_ENTRIES])
        if level == 0:
            return (first << lay.TABLE_BITS) + int(used[-1]) + 1 if len(used) else 0
        for position in used[::-1].tolist():  # the last table may have no children left
            index = first << lay.TABLE_BITS | position
            child = self._child(base + position, word.place(lay.SLOTS_PLACE + level, 0, index))
            end = self._end_below(level - 1, index, child[0]) if child is not None else 0
            if end:
                return end
        return 0

    def _iter_below(self, level: int, first: int, block: int) -> Iterator[tuple[int, int, int, int]]:
        base = block * lay.WORDS_PER_BLOCK
        for position in np.flatnonzero(self._journal.array[base : base + 512]).tolist():
            index = first << lay.TABLE_BITS | position
            child = self._child(base + position, word.place(lay.SLOTS_PLACE + level, 0, index))
            assert child is not None
            yield level - 1, index, child[0], child[1]
            if level > 1:
                yield from self._iter_below(level - 1, index, child[0])

    def _child(self, index: int, where: int) -> tuple[int, int] | None:
        """Return (block, used words) that a pointer names, or None where it is absent."""
        stored = self._journal.words[index]
        if stored == 0:
            return None
        value = word.open_pointer(stored, word.LEAF, where, 1 << word.VALUE_BITS, "slot table pointer", index * 8)
        block, used = value & lay.ADDRESS_MASK, value >> lay.USED_SHIFT
        if not self._blocks.start <= block < self._blocks.end or used > lay.TABLE_ENTRIES:
            word.damaged("slot table pointer", index * 8, stored, f"names block {block} with {used} used words")
        return block, used

    def _leaf_pointer(self, leaf: int, *, create: bool) -> tuple[int, int] | None:
        """Return (word index, place) of the pointer to the table that holds a leaf's slot words."""
        index, where = _ROOT_WORD, _ROOT_PLACE
        for level in (3, 2, 1):
            child = self._child(index, where)
            if child is None:
                if not create:
                    return None
                child = self._create_table(index, where), 0
            position = leaf >> lay.TABLE_BITS * (level - 1)
            index = child[0] * lay.WORDS_PER_BLOCK + (position & lay.TABLE_ENTRIES - 1)
            where = word.place(lay.SLOTS_PLACE + level, 0, position)
        return index, where

    def _create_table(self, index: int, where: int) -> int:
        # Purging makes room, so its own few tables may come from the reserve.
        block = self._blocks.take_one(from_reserve=True)
        self._blocks.name(np.array([block]), word.LEAF)
        self._journal.add_fresh(block)
        self._journal.set_word(index, word.pointer(word.LEAF, block, where))
        return block

    def _iter_leaves_with_room(self, first: int) -> Iterator[int]:
        """Yield the leaves from `first` on whose table has a free word, or is absent."""
        for upper in range(first >> lay.TABLE_BITS, lay.MAX_SLOTS >> 2 * lay.TABLE_BITS):
            found = self._leaf_pointer(upper << lay.TABLE_BITS, create=False)
            if found is None:
                room = np.arange(lay.TABLE_ENTRIES)
            else:
                pointers = self._journal.array[found[0] : found[0] + lay.TABLE_ENTRIES]
                used = pointers >> np.uint64(lay.USED_SHIFT + 8) & np.uint64(0xFFF)
                room = np.flatnonzero(used < lay.TABLE_ENTRIES)
            for position in room.tolist():
                leaf = upper << lay.TABLE_BITS | position
                if leaf >= first:
                    yield leaf

    def _free_in_leaf(self, leaf: int) -> SlotNumbers:
        found = self._leaf_pointer(leaf, create=False)
        child = self._child(*found) if found is not None else None
        if child is None:
            free = np.arange(lay.TABLE_ENTRIES, dtype=np.int64)
        elif child[1] == lay.TABLE_ENTRIES:
            return np.empty(0, np.int64)
        else:
            base = child[0] * lay.WORDS_PER_BLOCK
            free = np.flatnonzero(self._journal.array[base : base + lay.TABLE_ENTRIES] == 0)
        return free + (leaf << lay.TABLE_BITS)

    def _word_indexes(self, slots: SlotNumbers, *, create: bool) -> NDArray[np.int64]:
        """Return the indexes of the slot words; creates missing tables, or raises DamagedError."""
        leaves, inverse = np.unique(slots >> lay.TABLE_BITS, return_inverse=True)
        bases = np.empty(len(leaves), np.int64)
        for position, leaf in enumerate(leaves.tolist()):
            found = self._leaf_pointer(leaf, create=create)
            child = self._child(*found) if found is not None else None
            if child is None:
                if not create or found is None:
                    raise DamagedError(f"slot table: slot {int(slots[0])} is named, but its table {leaf} is absent")
                child = self._create_table(*found), 0
            bases[position] = child[0] * lay.WORDS_PER_BLOCK
        return bases[inverse] + (slots & lay.TABLE_ENTRIES - 1)

    def _decode(self, slots: SlotNumbers, indexes: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        offsets = (indexes * 8).astype(np.uint64)
        places = word.places_array(lay.SLOTS_PLACE, 0, slots)
        payloads = word.unseal_array(self._journal.array[indexes], places, "slot word", offsets)
        counts = payloads & np.uint64(lay.COUNT_MASK)
        wrong = (payloads >> np.uint64(word.VALUE_BITS) != word.SLOT) | (counts == 0)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            word.damaged(
                "slot word", int(offsets[first]), int(payloads[first]) << 8, f"of slot {int(slots[first])} is free or of another kind"
            )
        return counts, (payloads >> np.uint64(lay.COUNT_BITS)).astype(np.uint32)

    def _store(self, slots: SlotNumbers, indexes: NDArray[np.int64], counts: NDArray[np.uint64], crcs: NDArray[np.uint32]) -> None:
        if (counts > lay.COUNT_MASK).any():
            raise NoSpaceError(f"{self._journal.store.path}: a mass slot cannot be named more than {lay.COUNT_MASK} times")
        self._journal.set_words(indexes, self.sealed(slots, counts, crcs))

    def _add_used(self, slots: SlotNumbers, sign: int) -> None:
        leaves, times = np.unique(slots >> lay.TABLE_BITS, return_counts=True)
        for leaf, ntimes in zip(leaves.tolist(), times.tolist(), strict=True):
            found = self._leaf_pointer(leaf, create=False)
            assert found is not None
            child = self._child(*found)
            assert child is not None
            used = child[1] + sign * ntimes
            if not 0 <= used <= lay.TABLE_ENTRIES:
                word.damaged("slot table pointer", found[0] * 8, self._journal.words[found[0]], f"counts {child[1]} used words wrongly")
            if used:
                value = used << lay.USED_SHIFT | child[0]
                self._journal.set_word(found[0], word.pointer(word.LEAF, value, found[1]))
            else:
                self._journal.set_word(found[0], 0)
                self._blocks.free(np.array([child[0]]))
        self._root.put("used_slots", self.used + sign * len(slots))

    def _after_commit(self) -> None:
        self._dropped += self._dropped_before_commit
        self._dropped_before_commit.clear()

    def _after_checkpoint(self) -> None:
        self._first_leaf = 0
        dropped, self._dropped = self._dropped, []
        if self.mass is not None and dropped:
            self.pairing.begin()
            for slots in dropped:
                self.mass.punch(slots)
