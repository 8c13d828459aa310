"""A region: its running point's reads, writes and discards, and the page tables and virtblocks beneath.

Writes go to fresh blocks at once and are mapped by `flush`, thousands in one transaction; until then `_pending` is what readers see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, NoSpaceError, NotFoundError, UsageError
from ..media import word
from ..media.journal import run_arrays
from . import layout as lay
from .pagemap import PageMap
from .records import RecordTable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from ..media.store import Chunk
    from .device import Device
    from .records import Record
    from .sweep import Change, Progress

# So few unflushed blocks travel inside the log record: one durable write instead of two.
_LOGGED_BLOCKS = 8
_READ_BLOCKS = 4096
_MOST_PENDING = 65536


class Region:
    """An open region of a device. Offsets and lengths are in bytes."""

    def __init__(self, device: Device, record: Record) -> None:
        """Stand on a record of the region table."""
        self.device: Device = device
        self.record: Record = record
        self.id = record.id
        if self.id != record.number + 1:
            raise DamagedError(f"region table entry {record.number} at 0x{record.base * 8:x}: id is {self.id}, must be {record.number + 1}")
        self.name = record.name
        self.nblocks = record.get("size_blocks")
        self.snapshots: RecordTable = RecordTable(
            device.journal,
            device.blocks,
            lay.SNAPSHOT_RECORD,
            label=f"region {self.name!r} snapshot table entry",
            region=self.id,
            structures=(lay.SNAPSHOTS_PLACE, lay.SNAPSHOT_LEAF_PLACE),
            top=(
                record.base + lay.field_index(lay.REGION_RECORD, "snapshot_table"),
                device.records.place(record.number, lay.field_index(lay.REGION_RECORD, "snapshot_table")),
            ),
        )
        self.pages: PageMap = PageMap(device, record, self.snapshots)
        self._pending: dict[int, int] = {}
        self._pending_data: dict[int, bytes] = {}
        self._pending_tables: set[int] = set()
        self._most_pending = min(_MOST_PENDING, device.journal.max_words // 8)

    @property
    def mapping(self) -> str:
        """`virtblock` or `direct`: how new blocks are mapped."""
        return "virtblock" if self.record.get("flags") & lay.VIRTBLOCK_MAPPING else "direct"

    @property
    def size_bytes(self) -> int:
        """The region's logical size."""
        return self.nblocks * lay.BLOCK_SIZE

    @property
    def has_pending(self) -> bool:
        """Whether writes wait for a flush."""
        return bool(self._pending)

    @property
    def pending(self) -> Mapping[int, int]:
        """The block of each logical block that was written since the last flush."""
        return self._pending

    @property
    def pending_tables(self) -> AbstractSet[int]:
        """The table indexes of all that was written since the last flush, and perhaps of some more."""
        return self._pending_tables

    @property
    def pending_data(self) -> Mapping[int, bytes]:
        """The contents of those of them that are not stored yet."""
        return self._pending_data

    def snapshot(self, name: str) -> Record:
        """Return the record of a readable snapshot; raises NotFoundError."""
        record = self.snapshots.find(name)
        if record is None or record.get("parent") & lay.SNAPSHOT_DELETING:
            raise NotFoundError(f"{self.device.path}: region {self.name!r} has no snapshot {name!r}")
        return record

    def forget_cached(self) -> None:
        """Forget what was cached of the tables: a transaction was undone or a state changed."""
        self.pages.forget_own()

    def root_of(self, snapshot: str | None) -> int:
        """Return the root table of a snapshot, or of the running point; what was written must be flushed to be found there."""
        record = self.record if snapshot is None else self.snapshot(snapshot)
        return record.get_pointer("root", word.TABLE)

    # --- reading

    def read(self, offset: int, length: int, snapshot: str | None = None) -> bytes:
        """Return bytes of the running point or of a snapshot; purged blocks come from the mass store, proven by checksum.

        Raises UsageError past the end, DamagedError, or StorageError.
        """
        self.check_range(offset, length)
        first, end = offset // lay.BLOCK_SIZE, -(-(offset + length) // lay.BLOCK_SIZE)
        out = np.empty((end - first, lay.BLOCK_SIZE), np.uint8)
        root = self.root_of(snapshot)
        for start in range(first, end, _READ_BLOCKS):
            stop = min(start + _READ_BLOCKS, end)
            self._read_blocks(root, start, out[start - first : stop - first], pending=snapshot is None)
        skip = offset - first * lay.BLOCK_SIZE
        return out.reshape(-1)[skip : skip + length].tobytes()

    def read_block(self, root: int, index: int) -> bytes:
        """Return one block as a root table names it."""
        out = np.empty((1, lay.BLOCK_SIZE), np.uint8)
        self._read_blocks(root, index, out, pending=False)
        return out.tobytes()

    def _read_blocks(self, root: int, first: int, out: NDArray[np.uint8], *, pending: bool) -> None:
        indexes = np.arange(first, first + len(out), dtype=np.int64)
        kinds, values = self.pages.resolve(root, indexes)
        if pending and self._pending:
            mine = [(i - first, self._pending[i]) for i in range(first, first + len(out)) if i in self._pending]
            for position, block in mine:
                kinds[position], values[position] = word.BLOCK, block
        out[kinds == 0] = 0
        in_nvm = kinds == word.BLOCK
        out[in_nvm] = self.device.store.view.reshape(-1, lay.BLOCK_SIZE)[values[in_nvm]]
        on_mass = kinds == word.SLOT
        if on_mass.any():
            out[on_mass] = self.device.slots.read(values[on_mass])
        if pending and self._pending_data:
            for index, data in self._pending_data.items():
                if first <= index < first + len(out):
                    out[index - first] = np.frombuffer(data, np.uint8)

    # --- writing

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes to the running point; readers of this object see them at once, `flush` makes them durable.

        Whole blocks are never half written after a crash. Raises UsageError past the end, or NoSpaceError: then what was written before
        in this call stays written.
        """
        self.device.require(dry_run=False)
        view = memoryview(data).cast("B")
        self.check_range(offset, len(view))
        first, skip = divmod(offset, lay.BLOCK_SIZE)
        if skip or len(view) < lay.BLOCK_SIZE:
            part = min(lay.BLOCK_SIZE - skip, len(view))
            if part:
                self._write_part(first, skip, view[:part])
            view, first = view[part:], first + 1
        nblocks = len(view) // lay.BLOCK_SIZE
        for start in range(0, nblocks, self._most_pending):
            stop = min(start + self._most_pending, nblocks)
            self._write_blocks(first + start, view[start * lay.BLOCK_SIZE : stop * lay.BLOCK_SIZE])
        tail = view[nblocks * lay.BLOCK_SIZE :]
        if tail:
            self._write_part(first + nblocks, 0, tail)

    def flush(self, also: Callable[[], object] | None = None) -> None:
        """Make all writes durable: on return they survive power loss. One transaction, or several where the log is small for them.

        `also` is called inside the last one, to change more in the same step. Raises StorageError, NoSpaceError or BusyError; the writes
        then stay pending.
        """
        if len(self._pending) <= 1:
            if self._pending or also is not None:
                self._map(np.array([*self._pending], np.int64), np.array([*self._pending.values()], np.int64), also)
            self._pending_tables.clear()
            return
        order = np.argsort(np.fromiter(self._pending, np.int64, len(self._pending)), kind="stable")
        indexes = np.fromiter(self._pending, np.int64, len(order))[order]
        blocks = np.fromiter(self._pending.values(), np.int64, len(order))[order]
        # A table that a snapshot shares is copied, and everything it names counts one more word.
        most = max(1, self.device.journal.max_words // (lay.TABLE_ENTRIES * (self.pages.tables.levels + 1)))
        tables = indexes >> lay.TABLE_BITS
        rank = np.concatenate([[0], np.cumsum(tables[1:] != tables[:-1])])
        for start in range(0, int(rank[-1]) + 1, most):
            first, end = np.searchsorted(rank, (start, start + most)).tolist()
            self._map(indexes[first:end], blocks[first:end], also if end == len(indexes) else None)
        self._pending_tables.clear()

    def forget_writes(self) -> None:
        """Forget what was written since the last flush; its blocks are free again."""
        self.device.blocks.give_back(np.fromiter(self._pending.values(), np.int64, len(self._pending)))
        self._pending.clear()
        self._pending_data.clear()
        self._pending_tables.clear()

    def _map(self, indexes: NDArray[np.int64], blocks: NDArray[np.int64], also: Callable[[], object] | None) -> None:
        data = self._pending_data
        try:
            with self.device.transaction():
                for index in set(indexes.tolist()) & data.keys() if data else ():
                    self.device.journal.add_data(self._pending[index], data[index])
                if len(indexes):
                    self.pages.map(indexes, blocks)
                if also is not None:
                    also()
        except BaseException:  # an interrupt too: rolled back, the blocks are still those of pending writes
            self.device.blocks.hold(blocks)
            raise
        if len(indexes) == len(self._pending):
            self._pending.clear()
            data.clear()
            return
        for index in indexes.tolist():
            del self._pending[index]
            data.pop(index, None)

    def discard(self, offset: int, length: int, *, dry_run: bool = False, progress: Progress = None) -> Change:
        """Make a byte range read as zeros and free its whole blocks; durable on return. See `nvmtool.region.sweep.discard`."""
        from .sweep import discard

        self.check_range(offset, length)
        return discard(self, offset, length, dry_run=dry_run, progress=progress)

    def check_range(self, offset: int, length: int) -> None:
        """Raise UsageError unless the byte range lies in the region."""
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise UsageError(f"region {self.name!r}: bytes {offset} to {offset + length} are past the end ({self.size_bytes})")

    def _write_part(self, index: int, skip: int, data: memoryview) -> None:
        block = bytearray(self.read(index * lay.BLOCK_SIZE, lay.BLOCK_SIZE))
        block[skip : skip + len(data)] = data
        self._write_blocks(index, memoryview(block))

    def _write_blocks(self, first: int, data: memoryview) -> None:
        nblocks = len(data) // lay.BLOCK_SIZE
        if nblocks == 0:
            return
        if len(self._pending) + nblocks > self._most_pending:
            self.flush()
        self._reserve(nblocks)
        if nblocks == 1:
            self._write_one(first, data)
            return
        indexes = np.arange(first, first + nblocks, dtype=np.int64)
        replaced = [index for index in range(first, first + nblocks) if index in self._pending] if self._pending else []
        if replaced:
            # Their blocks are not named yet: flush them, so that this write has a clean start.
            self.flush()
        blocks = self.device.blocks.take(nblocks)
        try:
            done = 0
            starts, lengths = run_arrays(blocks)
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
                end = done + length * lay.BLOCK_SIZE
                self.device.journal.store_data(start, [data[done:end]])
                done = end
        except BaseException:  # an interrupt too must not keep blocks that nothing names
            self.device.blocks.give_back(blocks)
            raise
        self._pending.update(zip(indexes.tolist(), blocks.tolist(), strict=True))
        self._pending_tables.update(range(first >> lay.TABLE_BITS, (first + nblocks - 1 >> lay.TABLE_BITS) + 1))

    def _write_one(self, index: int, data: memoryview) -> None:
        block = self._pending.get(index)
        if block is None:
            block = self.device.blocks.take_one()
            self._pending[index] = block
            self._pending_tables.add(index >> lay.TABLE_BITS)
        if index in self._pending_data or len(self._pending) <= _LOGGED_BLOCKS:
            self._pending_data[index] = bytes(data)
            return
        self._send_home()
        self.device.journal.store_data(block, [data])

    def write_extents(self, extents: Sequence[tuple[int, memoryview]]) -> None:
        """Write whole blocks at many places: (first logical block, contents); a later extent wins over an earlier one.

        Blocks that are not pending yet go to fresh ones that lie together, in as few writes as may be; those that are, stay where they
        are. Raises NoSpaceError, and then nothing was written, or StorageError.
        """
        self.device.require(dry_run=False)
        nblocks = sum(len(data) for _, data in extents) // lay.BLOCK_SIZE
        if len(self._pending) + nblocks > self._most_pending:
            self.flush()
        self._reserve(nblocks, len(extents))
        if len(self._pending) + nblocks <= _LOGGED_BLOCKS:
            for first, data in extents:
                for start in range(0, len(data), lay.BLOCK_SIZE):
                    self._write_one(first + start // lay.BLOCK_SIZE, data[start : start + lay.BLOCK_SIZE])
            return
        self._send_home()
        placed: dict[int, int] = {}
        try:
            stores = self._place(extents, placed)
            for block, chunks in stores:
                self.device.journal.store_data(block, chunks)
        except BaseException:  # an interrupt too must not keep blocks that nothing names
            self.device.blocks.give_back(np.fromiter(placed.values(), np.int64, len(placed)))
            raise
        self._pending.update(placed)
        tables = self._pending_tables
        for first, data in extents:
            if len(data) == lay.BLOCK_SIZE:  # most are, of a random writer
                tables.add(first >> lay.TABLE_BITS)
            else:
                tables.update(range(first >> lay.TABLE_BITS, (first + len(data) // lay.BLOCK_SIZE - 1 >> lay.TABLE_BITS) + 1))

    def _place(self, extents: Sequence[tuple[int, memoryview]], placed: dict[int, int]) -> list[tuple[int, list[Chunk]]]:
        """Choose a block for each one of the extents; return (first block, contents) of runs, in the order in which to store them.

        `placed` gets the fresh blocks by logical block.
        """
        stores: list[tuple[int, list[Chunk]]] = []
        behind = -1
        for first, data in extents:
            index, end = first, first + len(data) // lay.BLOCK_SIZE
            unplaced = 0
            while index < end:
                block = None if unplaced else placed.get(index) or self._pending.get(index)
                length = 1
                if block is None and end - index == 1:
                    block = placed[index] = self.device.blocks.take_one()
                elif block is None:
                    unplaced = unplaced or self._unplaced(index, end, placed)
                    block, length = self.device.blocks.take_run(unplaced)
                    placed.update(zip(range(index, index + length), range(block, block + length), strict=True))
                    unplaced -= length
                chunk = data[(index - first) * lay.BLOCK_SIZE : (index - first + length) * lay.BLOCK_SIZE]
                if block == behind:
                    stores[-1][1].append(chunk)
                else:
                    stores.append((block, [chunk]))
                behind = block + length
                index += length
        return stores

    def _unplaced(self, index: int, end: int, placed: dict[int, int]) -> int:
        """Return how many logical blocks from an unplaced one on have no block that may be written."""
        stop = index + 1
        while stop < end and stop not in placed and stop not in self._pending:
            stop += 1
        return stop - index

    def _send_home(self) -> None:
        # Too many for the log: they go home like the others.
        for index, content in self._pending_data.items():
            self.device.journal.store_data(self._pending[index], [content])
        self._pending_data.clear()

    def _reserve(self, nblocks: int, nextents: int = 1) -> None:
        """Make sure that mapping what is pending and this write cannot run out of blocks for tables and arrays."""
        ntables = (nblocks >> lay.TABLE_BITS) + 1 + nextents
        tables = self.pages.tables.levels * (len(self._pending_tables) + ntables)
        arrays = (len(self._pending) + nblocks) // lay.LIVE_ENTRIES + 2
        if self.device.blocks.available < nblocks + tables + arrays:
            self.flush()
            alone = self.pages.tables.levels * ntables + nblocks // lay.LIVE_ENTRIES + 2
            if self.device.blocks.available < nblocks + alone:
                if nblocks > 1:
                    raise NoSpaceError(
                        f"{self.device.path}: device full: {nblocks} blocks of 4 KiB do not fit; purge or delete snapshots, or discard"
                    )
                self.device.blocks.take(1 + alone)  # raises with the full message
