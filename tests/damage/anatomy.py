"""What each word of an image is: its structure, its field and the place it is sealed for, read from the sound image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nvmtool.media import word
from nvmtool.media.journal import LOG_RECORD, RECORD_MAGIC
from nvmtool.region import layout as lay
from nvmtool.region.device import Device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvmtool.region.records import RecordTable
    from nvmtool.region.region import Region

    from .images import Image

WORDS = lay.WORDS_PER_BLOCK


class Word(NamedTuple):
    """One sealed word: its index in the image, what it is, and its place; `value` is the word as it is stored."""

    index: int
    structure: str
    field: str
    place: int
    value: int

    @property
    def name(self) -> str:
        return f"{self.structure}.{self.field}"


@dataclass
class Anatomy:
    """All metadata of an image: the sealed words by their index, and what each metadata block is."""

    words: dict[int, Word]
    blocks: dict[int, str]
    log_records: list[tuple[int, int]]  # (offset, bytes) of the records that count
    size_blocks: int
    data_start: int

    def of(self, structure: str, *, present: bool = True) -> list[Word]:
        """Return the words of a structure in the order of the image."""
        return [each for _, each in sorted(self.words.items()) if each.structure == structure and (each.value or not present)]


def anatomy(image: Image) -> Anatomy:
    """Dissect a sound image; what its log holds counts as being home."""
    with Device.open(image.path) as device:
        return _Dissection(device).result


class _Dissection:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.array = device.journal.words
        header = device.header
        self.words: dict[int, Word] = {}
        self.blocks = {0: "header", 1: "header", lay.ROOT_BLOCK: "root", header.log_start: "log"}
        self._fields(lay.ROOT_BLOCK * WORDS, "root", lay.ROOT, lambda index: word.place(lay.ROOT_PLACE, 0, index))
        self._add(header.log_start * WORDS, "log", "generation", word.place(0x70, 0, 0))
        for start, nblocks, nwords, structure, place in (
            (header.count_start, header.count_blocks, header.data_blocks, "count", lay.COUNT_PLACE),
            (header.group_start, header.group_blocks, -(-header.data_blocks // 512), "group", lay.GROUP_PLACE),
        ):
            self.blocks |= dict.fromkeys(range(start, start + nblocks), structure)
            for index in range(nwords):
                self._add(start * WORDS + index, structure, "word", word.place(place, 0, index))
        self._records(device.records, "region", 0, lay.REGION_LEAF_PLACE)
        for region in device.regions():
            self._records(region.snapshots, "snapshot", region.record.id, lay.SNAPSHOT_LEAF_PLACE)
            self._page_tables(region)
            self._arrays(region)
        for level, first, block, _ in device.slots.iter_tables():
            self._table(block, f"slots-{level}", lambda i, lv=level, f=first: word.place(lay.SLOTS_PLACE + lv, 0, (f << 9) + i))
        logged = list(self._log_records())
        for offset, size in logged:
            self.blocks |= dict.fromkeys(range(offset // lay.BLOCK_SIZE, -(-(offset + size) // lay.BLOCK_SIZE)), "log record")
        self.result = Anatomy(self.words, self.blocks, logged, header.size_blocks, header.data_start)

    def _add(self, index: int, structure: str, field: str, place: int) -> None:
        self.words[index] = Word(index, structure, field, place, self.array[index])

    def _fields(self, base: int, structure: str, dtype: np.dtype, place) -> None:
        for name in dtype.names:
            first, count = lay.field_index(dtype, name), dtype[name].itemsize // 8
            for number in range(count):
                field = name if count == 1 else f"{name}[{number}]"
                self._add(base + first + number, structure, field, place(first + number))

    def _table(self, block: int, structure: str, place) -> None:
        self.blocks[block] = structure
        for position in range(WORDS):
            self._add(block * WORDS + position, structure, "entry", place(position))

    def _records(self, table: RecordTable, structure: str, region: int, leaf_place: int) -> None:
        if not table.top_block():
            return
        self._table(table.top_block(), f"{structure} table", lambda index: word.place(leaf_place, region, index))
        dtype = lay.REGION_RECORD if structure == "region" else lay.SNAPSHOT_RECORD
        for leaf, block in table.iter_leaves():
            self.blocks[block] = f"{structure} record"
            per_leaf = WORDS // table.words_per_record
            for position in range(per_leaf):
                number = leaf * per_leaf + position
                base = block * WORDS + position * table.words_per_record
                self._fields(base, f"{structure} record", dtype, lambda index, n=number: table.place(n, index))

    def _page_tables(self, region: Region) -> None:
        pages = region.pages.tables
        roots = {record.get_pointer("root", word.TABLE) for record in (region.record, *region.snapshots)} - {0}
        todo = [(root, pages.levels, 0) for root in roots]
        while todo:
            table, level, prefix = todo.pop()
            if table not in self.blocks:
                self._table(table, f"table-{level}", lambda i, lv=level, p=prefix: pages.pointer_place(lv, (p << 9) + i))
                if level > 1:
                    todo += [(child, level - 1, index) for index, child in pages.iter_children(table, level, prefix)]

    def _arrays(self, region: Region) -> None:
        for record in (region.record, *region.snapshots):
            for blocks in region.pages.virtblocks.iter_array(record.get_pointer("array", word.ARRAY), 16):
                for block in blocks.tolist():
                    self.blocks[block] = "array"
                    base = block * WORDS
                    self._fields(base, "array header", lay.ARRAY_HEADER, lambda f, b=block: word.place(lay.ARRAY_PLACE, 0, b << 2 | f))
                    for position in range(lay.FIRST_ENTRY, lay.ENTRIES_PER_ARRAY_BLOCK):
                        address = (block << lay.ENTRY_BITS) + position
                        logical = self.array[address * 2 + 1] >> 8 + lay.COUNT_BITS
                        entry = word.place(lay.ENTRY_PLACE, region.record.id, logical)
                        self._add(address * 2, "array entry", "pointer", entry)
                        self._add(address * 2 + 1, "array entry", "home", word.place(lay.HOME_PLACE, 0, address))

    def _log_records(self) -> Iterator[tuple[int, int]]:
        journal, header = self.device.journal, self.device.header
        offset = (header.log_start + 1) * lay.BLOCK_SIZE
        for sequence in range(journal.sequence):
            head = np.frombuffer(self.device.store.view.data, LOG_RECORD, 1, offset)[0]
            assert bytes(head["magic"]) == RECORD_MAGIC
            assert int(head["sequence"]) == sequence
            size = LOG_RECORD.itemsize + 16 * int(head["nwords"]) + (8 + lay.BLOCK_SIZE) * int(head["nblocks"])
            yield offset, size
            offset += -(-size // lay.BLOCK_SIZE) * lay.BLOCK_SIZE
