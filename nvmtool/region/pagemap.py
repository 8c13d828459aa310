"""What a region's states name: the running point's private tables, and every reference that is taken or dropped.

All methods work inside the caller's transaction. The region's counters (mapped, mapped_purged, nvm_blocks, slots) are kept in step here
and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..media import word
from . import layout as lay
from .tables import ABSENT, Tables
from .virtblock import Virtblocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .blocks import BlockNumbers
    from .device import Device
    from .records import Record, RecordTable
    from .tables import Indexes

    Kinds = NDArray[np.uint8]
    Values = NDArray[np.int64]


@dataclass(frozen=True)
class Freed:
    """What dropping references freed."""

    nvm_blocks: int = 0
    slots: int = 0

    def __add__(self, other: Freed) -> Freed:
        """Return the sum."""
        return Freed(self.nvm_blocks + other.nvm_blocks, self.slots + other.slots)


class PageMap:
    """The mapping of one region. Indexes are logical blocks (int64 arrays)."""

    def __init__(self, device: Device, record: Record, snapshots: RecordTable) -> None:
        """Stand on a region record and its snapshot table."""
        self._journal = device.journal
        self._blocks = device.blocks
        self._slots = device.slots
        self._record = record
        self._snapshots = snapshots
        self.tables = Tables(device.journal, device.blocks, record.id, record.get("size_blocks"))
        self.virtblocks = Virtblocks(device.journal, device.blocks, record.id)
        # Private level-1 tables of the running point by table index; emptied whenever a state is created or changed.
        self._own: dict[int, int] = {}

    # --- looking

    def resolve(self, root: int, indexes: Indexes) -> tuple[Kinds, Values]:
        """Return (kinds, values) of where the data of logical blocks are: BLOCK, SLOT, or 0 for holes; raises DamagedError."""
        kinds, values = self.tables.decode(self.tables.lookup(root, indexes), indexes)
        return self.follow(kinds, values, indexes)

    def follow(self, kinds: Kinds, values: Values, indexes: Indexes) -> tuple[Kinds, Values]:
        """Return decoded level-1 words with virtblock entries replaced by what they name."""
        entries = np.flatnonzero(kinds == word.ENTRY)
        if len(entries):
            kinds, values = kinds.copy(), values.copy()
            kinds[entries], values[entries] = self.virtblocks.targets(values[entries], indexes[entries])
        return kinds, values

    def owner_record(self, state: int) -> Record:
        """Return the record whose array belongs to a state id: the region's own or a snapshot's."""
        if self._record.get("state") == state:
            return self._record
        numbers, ids = self._snapshots.column("id")
        for number in numbers[ids & word.VALUE_MASK == state].tolist():
            return self._snapshots.get(number)
        return word.damaged("virtblock array owner", self._record.base * 8, state, "is the id of no state")

    def private_leaves(self, table_indexes: Indexes) -> BlockNumbers:
        """Return the running point's level-1 tables that no snapshot shares, 0 elsewhere."""
        blocks = np.full(len(table_indexes), self._record.get_pointer("root", word.TABLE), np.int64)
        for level in range(self.tables.levels, 0, -1):
            present = np.flatnonzero(blocks)
            _, counts = self._blocks.counts(blocks[present])
            blocks[present[counts > 1]] = 0
            if level > 1:
                present = np.flatnonzero(blocks)
                index = table_indexes[present] >> lay.TABLE_BITS * (level - 2)
                at = blocks[present] * lay.WORDS_PER_BLOCK + (index & lay.TABLE_ENTRIES - 1)
                blocks[present] = self.tables.children(self._journal.array[at], level, index, at)
        return blocks

    # --- the running point's own tables

    def forget_own(self) -> None:
        """Forget which tables are private: a state was created, changed or undone."""
        self._own.clear()
        self.virtblocks.forget_free()

    def own_leaf(self, table_index: int) -> int:
        """Return the running point's private level-1 table, copied from a shared one or created; raises NoSpaceError."""
        leaf = self._own.get(table_index)
        if leaf is None:
            leaf = self._own[table_index] = self._own_table(table_index, 1)
        return leaf

    def detach_leaf(self, table_index: int) -> tuple[int, bool]:
        """Take a level-1 table out of the running point's tree; return (table or ABSENT, whether others still name it).

        The caller drops the references of a table that nobody names any more, and frees it.
        """
        self._own.pop(table_index, None)
        if self.tables.levels == 1:
            leaf = self._record.get_pointer("root", word.TABLE)
            self._record.put_pointer("root", word.TABLE, 0)
        else:
            at, place = self._entry(self._own_table(table_index, 2), 2, table_index)
            leaf = self._child(at, place)
            self._journal.set_word(at, 0)
        if leaf == ABSENT:
            return ABSENT, False
        if self._blocks.count(leaf, word.TABLE) > 1:
            self._blocks.drop_refs(np.array([leaf]), word.TABLE)
            return leaf, True
        return leaf, False

    def _own_table(self, table_index: int, level: int) -> int:
        """Return the private table on a level of the path to a table index."""
        table = self._record.get_pointer("root", word.TABLE)
        if table == ABSENT or self._blocks.count(table, word.TABLE) > 1:
            table = self._copy(table, self.tables.levels, 0)
            self._record.put_pointer("root", word.TABLE, table)
        for upper in range(self.tables.levels, level, -1):
            at, place = self._entry(table, upper, table_index)
            child = self._child(at, place)
            if child == ABSENT or self._blocks.count(child, word.TABLE) > 1:
                child = self._copy(child, upper - 1, table_index >> lay.TABLE_BITS * (upper - 2))
                self._journal.set_word(at, word.pointer(word.TABLE, child, place))
            table = child
        return table

    def _entry(self, table: int, level: int, table_index: int) -> tuple[int, int]:
        """Return (word index, place) of the entry of an upper table on the path to a table index."""
        index = table_index >> lay.TABLE_BITS * (level - 2)
        at = table * lay.WORDS_PER_BLOCK + (index & lay.TABLE_ENTRIES - 1)
        return at, self.tables.pointer_place(level, index)

    def _child(self, at: int, place: int) -> int:
        stored = self._journal.words[at]
        if stored == 0:
            return ABSENT
        child = word.open_pointer(stored, word.TABLE, place, self._blocks.end, "page-table entry", at * 8)
        if child < self._blocks.start:
            word.damaged("page-table entry", at * 8, stored, "names a block before the data area")
        return child

    def _copy(self, table: int, level: int, first: int) -> int:
        """Return a fresh copy of a shared table (or a fresh empty one): all that its entries name gains a reference."""
        if table == ABSENT:
            return self.tables.create()
        copy = self.tables.create(table)
        at = table * lay.WORDS_PER_BLOCK + np.arange(lay.TABLE_ENTRIES, dtype=np.int64)
        words = self._journal.array[at]
        indexes = np.arange(lay.TABLE_ENTRIES, dtype=np.int64) + (first << lay.TABLE_BITS)
        if level > 1:
            children = self.tables.children(words, level, indexes, at)
            self._blocks.add_refs(children[children != 0], word.TABLE)
        else:
            kinds, values = self.tables.decode(words, indexes)
            self.add_refs(kinds, values)
        self._blocks.drop_refs(np.array([table]), word.TABLE)
        return copy

    # --- references of level-1 entries

    def add_refs(self, kinds: Kinds, values: Values) -> None:
        """Count one more level-1 entry for everything that decoded level-1 words name."""
        for kind, add in (
            (word.ENTRY, self.virtblocks.add_refs),
            (word.BLOCK, lambda blocks: self._blocks.add_refs(blocks, word.BLOCK)),
            (word.SLOT, self._slots.add_refs),
        ):
            named = values[kinds == kind]
            if len(named):
                add(named)

    def create_entries(self, indexes: Indexes, blocks: BlockNumbers, counts: Values, ranks: Values, states: list[Record]) -> Values:
        """Make virtblock entries for data blocks, each in the array of the state `states[rank]`; return their addresses."""
        addresses = np.zeros(len(indexes), np.int64)
        for rank in np.unique(ranks).tolist():
            mine = ranks == rank
            owner = states[rank]
            state = owner.get("state") if owner is self._record else owner.id
            addresses[mine] = self.virtblocks.create(indexes[mine], word.BLOCK, blocks[mine], counts[mine], owner, state)
        return addresses

    def drop_refs(self, kinds: Kinds, values: Values) -> Freed:
        """Count one level-1 entry less for everything that decoded level-1 words name; free what nobody names any more."""
        blocks, slots = values[kinds == word.BLOCK], values[kinds == word.SLOT]
        entries = values[kinds == word.ENTRY]
        freed = Freed()
        if len(entries):
            unnamed, indexes = self.virtblocks.drop_refs(entries)
            freed += self._free_entries(unnamed, indexes)
        if len(blocks):
            freed += Freed(nvm_blocks=len(self._blocks.drop_refs(blocks, word.BLOCK)))
        if len(slots):
            freed += Freed(slots=len(self._slots.drop_refs(slots)))
        self.count(nvm_blocks=-freed.nvm_blocks, slots=-freed.slots)
        return freed

    def _free_entries(self, addresses: Values, indexes: Indexes) -> Freed:
        if not len(addresses):
            return Freed()
        kinds, values = self.virtblocks.targets(addresses, indexes)
        blocks, slots = values[kinds == word.BLOCK], values[kinds == word.SLOT]
        self.virtblocks.free(addresses, self.owner_record)
        self._blocks.drop_refs(blocks, word.BLOCK)
        self._slots.drop_refs(slots)
        return Freed(len(blocks), len(slots))

    # --- changing the running point

    def map(self, indexes: Indexes, blocks: BlockNumbers) -> None:
        """Let the running point's logical blocks (ascending, distinct) name held data blocks; raises NoSpaceError."""
        if len(indexes) == 1 and self._remap_one(int(indexes[0]), int(blocks[0])):
            return
        at, kinds, values = self._own_words(indexes)
        targets, _ = self.follow(kinds, values, indexes)
        virtblock = bool(self._record.get("flags") & lay.VIRTBLOCK_MAPPING)
        self._blocks.name(blocks, word.BLOCK)
        reused = np.zeros(len(indexes), bool)
        if virtblock:
            reused = self._repoint_entries(kinds, values, indexes, blocks)
        self.drop_refs(np.where(reused, 0, kinds).astype(np.uint8), values)
        fresh = ~reused
        if virtblock:
            ones = np.ones(int(fresh.sum()), np.int64)
            state = self._record.get("state")
            named = self.virtblocks.create(indexes[fresh], word.BLOCK, blocks[fresh], ones, self._record, state)
            words = self.tables.seal(word.ENTRY, named, indexes[fresh])
        else:
            words = self.tables.seal(word.BLOCK, blocks, indexes)
        self._journal.set_words(at[fresh], words)
        self.count(
            mapped=int((kinds == 0).sum()),
            mapped_purged=-int((targets == word.SLOT).sum()),
            nvm_blocks=len(indexes),
        )

    def _remap_one(self, index: int, block: int) -> bool:
        """Do what `map` does where it comes to exchanging one data block for another; False where it does not, or anything is wrong."""
        leaf = self.own_leaf(index >> lay.TABLE_BITS)
        stored = self._journal.words[leaf * lay.WORDS_PER_BLOCK + (index & lay.TABLE_ENTRIES - 1)]
        entry = word.peek(stored, word.ENTRY, self.tables.pointer_place(1, index))
        if not self._blocks.start <= entry >> lay.ENTRY_BITS < self._blocks.end:
            return False
        old = self.virtblocks.sole_block(entry, index)
        if not self._blocks.replace(old, block, word.BLOCK):
            return False
        self.virtblocks.point_one(entry, index, block)
        return True

    def unmap(self, indexes: Indexes) -> Freed:
        """Make logical blocks (ascending, distinct) of the running point holes."""
        at, kinds, values = self._own_words(indexes)
        return self._clear(at, kinds, values, indexes)

    def unmap_leaf(self, table_index: int) -> Freed:
        """Make all 512 logical blocks of a table index holes; a shared table is left to the others without being copied."""
        leaf, shared = self.detach_leaf(table_index)
        if leaf == ABSENT:
            return Freed()
        indexes = np.arange(lay.TABLE_ENTRIES, dtype=np.int64) + (table_index << lay.TABLE_BITS)
        kinds, values = self.tables.decode(self.tables.leaf_words(leaf), indexes)
        targets, _ = self.follow(kinds, values, indexes)
        self.count(mapped=-int((kinds != 0).sum()), mapped_purged=-int((targets == word.SLOT).sum()))
        if shared:
            return Freed()
        self._blocks.free(np.array([leaf]))
        return self.drop_refs(kinds, values)

    def _clear(self, at: Indexes, kinds: Kinds, values: Values, indexes: Indexes) -> Freed:
        targets, _ = self.follow(kinds, values, indexes)
        freed = self.drop_refs(kinds, values)
        present = kinds != 0
        self._journal.set_words(at[present], np.zeros(int(present.sum()), np.uint64))
        self.count(mapped=-int(present.sum()), mapped_purged=-int((targets == word.SLOT).sum()))
        return freed

    def _own_words(self, indexes: Indexes) -> tuple[Indexes, Kinds, Values]:
        """Return (word indexes, kinds, values) of the running point's level-1 words, in private tables."""
        table_indexes, inverse = np.unique(indexes >> lay.TABLE_BITS, return_inverse=True)
        leaves = np.array([self.own_leaf(table_index) for table_index in table_indexes.tolist()], np.int64)
        at = leaves[inverse] * lay.WORDS_PER_BLOCK + (indexes & lay.TABLE_ENTRIES - 1)
        kinds, values = self.tables.decode(self._journal.array[at], indexes)
        return at, kinds, values

    def _repoint_entries(self, kinds: Kinds, values: Values, indexes: Indexes, blocks: BlockNumbers) -> NDArray[np.bool_]:
        """Let the entries that only the running point names name the new blocks; return which of the words that were."""
        reused = np.zeros(len(kinds), bool)
        entries = np.flatnonzero(kinds == word.ENTRY)
        if len(entries):
            _, counts = self.virtblocks.homes(values[entries])
            own = entries[counts == 1]
            reused[own] = True
            if len(own):
                old_kinds, old_values = self.virtblocks.targets(values[own], indexes[own])
                self.virtblocks.point(values[own], indexes[own], word.BLOCK, blocks[own])
                self._blocks.drop_refs(old_values[old_kinds == word.BLOCK], word.BLOCK)
                self._slots.drop_refs(old_values[old_kinds == word.SLOT])
                self.count(nvm_blocks=-int((old_kinds == word.BLOCK).sum()), slots=-int((old_kinds == word.SLOT).sum()))
        return reused

    def count(self, **changes: int) -> None:
        """Change counters of the region record."""
        for field, change in changes.items():
            if change:
                self._record.put(field, self._record.get(field) + change)
