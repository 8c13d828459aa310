"""Region and snapshot records: rows of sealed words in a two-level table that grows as needed (docs/format.md, section 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, NoSpaceError
from ..media import record, word
from ..media.record import NAME_WORDS, encode_name
from . import layout as lay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ..media.journal import Journal
    from .blocks import Blocks

_TOP_ENTRIES = 512


class Record(record.Record):
    """A record of a table that lies in blocks of the data area, and may name such blocks."""

    _table: RecordTable

    def __init__(self, table: RecordTable, number: int, base: int) -> None:
        """Stand on record `number` of a table, whose first word has the index `base`."""
        super().__init__(table, number, base)

    def get_pointer(self, field: str, kind: int) -> int:
        """Return the block that a pointer field names, 0 where it is absent; raises DamagedError."""
        index = self._table.fields[field]
        stored = self._journal.words[self.base + index]
        if stored == 0:
            return 0
        label = f"{self._table.label} {self.number} field {field}"
        offset = (self.base + index) * 8
        value = word.open_pointer(stored, kind, self._place(index), self._table.blocks.end, label, offset)
        if value < self._table.blocks.start:
            word.damaged(label, offset, stored, f"names block {value} before the data area ({self._table.blocks.start})")
        return value

    def put_pointer(self, field: str, kind: int, block: int) -> None:
        """Change a pointer field; block 0 makes it absent."""
        index = self._table.fields[field]
        self._journal.set_word(self.base + index, word.pointer(kind, block, self._place(index)) if block else 0)


class RecordTable:
    """A table of records. `top_index` and `top_place` are the word that names its top table."""

    def __init__(
        self,
        journal: Journal,
        blocks: Blocks,
        dtype: np.dtype[np.void],
        *,
        label: str,
        region: int,
        structures: tuple[int, int],
        top: tuple[int, int],
    ) -> None:
        """Stand on a table; `structures` are the place codes of its records and of its pointers."""
        self.journal = journal
        self.blocks = blocks
        self.label = label
        self.fields = {name: lay.field_index(dtype, name) for name in dtype.names or ()}
        self.words_per_record = dtype.itemsize // 8
        self._region = region
        self._record_structure, self._leaf_structure = structures
        self._top_index, self._top_place = top
        self._per_leaf = lay.BLOCK_SIZE // dtype.itemsize

    def place(self, number: int, index: int) -> int:
        """Return the place of a word of a record."""
        return word.place(self._record_structure, self._region, number * self.words_per_record + index)

    def __iter__(self) -> Iterator[Record]:
        """Yield the records in use in the order of their numbers; raises DamagedError for a broken pointer."""
        for leaf, block in self.iter_leaves():
            base = block * lay.WORDS_PER_BLOCK
            first_words = self.journal.array[base : base + lay.WORDS_PER_BLOCK : self.words_per_record]
            for position in np.flatnonzero(first_words).tolist():
                yield Record(self, leaf * self._per_leaf + position, base + position * self.words_per_record)

    def iter_leaves(self) -> Iterator[tuple[int, int]]:
        """Yield (leaf number, block) of the blocks that hold records."""
        top = self._block(self._top_index, self._top_place)
        if top:
            base = top * lay.WORDS_PER_BLOCK
            for leaf in np.flatnonzero(self.journal.array[base : base + _TOP_ENTRIES]).tolist():
                yield leaf, self._block(base + leaf, self._leaf_place(leaf))

    def column(self, field: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (record numbers, payloads of one field) of all records in use, vectorised; raises DamagedError."""
        index = self.fields[field]
        numbers, at = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for leaf, block in self.iter_leaves():
            base = block * lay.WORDS_PER_BLOCK
            used = np.flatnonzero(self.journal.array[base : base + lay.WORDS_PER_BLOCK : self.words_per_record])
            numbers.append(used + leaf * self._per_leaf)
            at.append(base + used * self.words_per_record + index)
        every, words_at = np.concatenate(numbers), np.concatenate(at)
        places = word.places_array(self._record_structure, self._region, every * self.words_per_record + index)
        offsets = (words_at * 8).astype(np.uint64)
        payloads = word.unseal_array(self.journal.array[words_at], places, f"{self.label} field {field}", offsets)
        return every, payloads.astype(np.int64)

    def top_block(self) -> int:
        """Return the block of the top table, 0 where there is none."""
        return self._block(self._top_index, self._top_place)

    def find(self, name: str) -> Record | None:
        """Return the record with this name, or None."""
        wanted = encode_name(name)
        first = self.fields["name"]
        for leaf, block in self.iter_leaves():
            base = block * lay.WORDS_PER_BLOCK
            table = self.journal.array[base : base + lay.WORDS_PER_BLOCK].reshape(self._per_leaf, -1)
            # The payloads select; the checksums are verified when the record is read.
            names = table[:, first : first + NAME_WORDS] >> np.uint64(8)
            same = (names == np.array(wanted, np.uint64)).all(axis=1) & (table[:, 0] != 0)
            for position in np.flatnonzero(same).tolist():
                record = Record(self, leaf * self._per_leaf + position, base + position * self.words_per_record)
                if record.name == name:
                    return record
        return None

    def get(self, number: int) -> Record:
        """Return the record with this number, which must be in use."""
        top, leaf = self._block(self._top_index, self._top_place), number // self._per_leaf
        block = self._block(top * lay.WORDS_PER_BLOCK + leaf, self._leaf_place(leaf)) if top else 0
        if block:
            return Record(self, number, block * lay.WORDS_PER_BLOCK + number % self._per_leaf * self.words_per_record)
        raise DamagedError(f"{self.label} {number} is named, but its table is absent")

    def create(self) -> Record:
        """Return a free record, in a new block if need be; the caller fills every field.

        Raises NoSpaceError when the table or the device is full.
        """
        top = self._block(self._top_index, self._top_place) or self._create_block(self._top_index, self._top_place)
        base = top * lay.WORDS_PER_BLOCK
        for leaf in range(_TOP_ENTRIES):
            block = self._block(base + leaf, self._leaf_place(leaf)) or self._create_block(base + leaf, self._leaf_place(leaf))
            start = block * lay.WORDS_PER_BLOCK
            used = self.journal.array[start : start + lay.WORDS_PER_BLOCK : self.words_per_record] != 0
            if not used.all():
                position = int(np.flatnonzero(~used)[0])
                number = leaf * self._per_leaf + position
                return Record(self, number, start + position * self.words_per_record)
        raise NoSpaceError(
            f"{self.journal.store.path}: no room for another {self.label.removesuffix(' table entry')} ({_TOP_ENTRIES * self._per_leaf})"
        )

    def _leaf_place(self, leaf: int) -> int:
        return word.place(self._leaf_structure, self._region, leaf)

    def _block(self, index: int, where: int) -> int:
        stored = self.journal.words[index]
        if stored == 0:
            return 0
        block = word.open_pointer(stored, word.LEAF, where, self.blocks.end, f"{self.label} pointer", index * 8)
        if block < self.blocks.start:
            word.damaged(f"{self.label} pointer", index * 8, stored, f"names block {block} before the data area")
        return block

    def _create_block(self, index: int, where: int) -> int:
        block = self.blocks.take_one()
        self.blocks.name(np.array([block]), word.LEAF)
        self.journal.add_fresh(block)
        self.journal.set_word(index, word.pointer(word.LEAF, block, where))
        return block
