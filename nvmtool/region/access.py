"""Serving regions and snapshots: many reads and writes at once, at any byte, each with an answer of its own (docs/serve.md).

This is what the NBD server and the mount stand on. One thread at a time may be in here or in anything else of the device; whoever runs
several hands the device from one to the next between two calls (`nvmtool.live.turns`).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NvmtoolError, RefusedError, UsageError
from . import layout as lay
from .locations import Locations

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from .device import Device
    from .region import Region

    Ints = NDArray[np.int64]
    # Stretches of bytes, one behind the other; None where all of it is a hole. Or why this one request failed.
    Answer = list[memoryview] | None | NvmtoolError

_BITS = lay.BLOCK_SIZE.bit_length() - 1
_MASK = lay.BLOCK_SIZE - 1
_LEAF_MASK = lay.TABLE_ENTRIES - 1
_FEW_BLOCKS = 8
_LEAVES_PER_STATUS = 2048
_ZERO_BYTES = 1 << 20
ZEROS = memoryview(bytes(_ZERO_BYTES))


class Access:
    """All that is served of one device. Close it before the device."""

    def __init__(self, device: Device) -> None:
        """Serve an open device, which may be open for reading alone."""
        self.device = device
        self._exports: dict[tuple[str, str | None], Export] = {}
        self._keeping: frozenset[str] | None = None
        device.journal.on_commit.append(self._after_commit)
        device.journal.on_rollback.append(self.forget)

    def close(self) -> None:
        """Listen to the device no longer."""
        self.device.journal.on_commit.remove(self._after_commit)
        self.device.journal.on_rollback.remove(self.forget)

    def names(self) -> list[str]:
        """Return the names of all exports: REGION and REGION@SNAPSHOT."""
        found = []
        for region in self.device.regions():
            found.append(region.name)
            living = [record for record in region.snapshots if not record.get("parent") & lay.SNAPSHOT_DELETING]
            found += [f"{region.name}@{record.name}" for record in sorted(living, key=lambda each: each.id)]
        return found

    def export(self, name: str) -> Export:
        """Return what has the name REGION or REGION@SNAPSHOT; an empty REGION is the only one there is.

        Raises NotFoundError, or UsageError when there are several.
        """
        region_name, at, snapshot = name.partition("@")
        region = self.device.region(region_name or None)
        if at:
            region.snapshot(snapshot)
        key = region.name, snapshot if at else None
        found = self._exports.get(key)
        if found is None or found.region is not region:
            found = self._exports[key] = Export(self, region, key[1])
        return found

    def flush(self) -> None:
        """Make all that was written to any region durable; raises BusyError, NoSpaceError or StorageError, and then it stays pending."""
        with self.keeping("running points", "snapshots"):
            self.device.flush()

    @property
    def pending_blocks(self) -> int:
        """How many blocks wait for a flush."""
        return sum(len(export.region.pending) for (_, snapshot), export in self._exports.items() if snapshot is None)

    @contextmanager
    def keeping(self, *what: str) -> Iterator[None]:
        """Let commits inside leave alone what is known of "running points" or "snapshots"; after all others everything is looked up anew.

        Flushing and taking a snapshot move no block of any state that a reader could see; purging moves none of a running point.
        """
        before, self._keeping = self._keeping, frozenset(what)
        try:
            yield
        finally:
            self._keeping = before

    def forget(self) -> None:
        """Look everything up anew from now on."""
        for export in self._exports.values():
            export.locations.forget()

    def _after_commit(self) -> None:
        keeping = self._keeping or ()
        for (_, snapshot), export in self._exports.items():
            if ("running points" if snapshot is None else "snapshots") not in keeping:
                export.locations.forget()


class Export:
    """A region's running point, or one of its snapshots, as a range of bytes."""

    def __init__(self, access: Access, region: Region, snapshot: str | None) -> None:
        """Stand on an open region; `Access.export` is the usual way."""
        self.access = access
        self.region = region
        self.snapshot = snapshot
        self.name = region.name if snapshot is None else f"{region.name}@{snapshot}"
        self.size_bytes = region.size_bytes
        self.read_only = snapshot is not None or not access.device.writable
        self.locations = Locations(region, snapshot)
        self._view = access.device.store.view.data

    # --- reading

    def read(self, requests: Sequence[tuple[int, int]]) -> list[Answer]:
        """Answer reads of (offset, length), looked up together.

        The stretches lie in the image's mapping: use or copy them before anything else is done with the device. A range past the end
        (UsageError), a damaged word or block (DamagedError) or an unreadable mass store (StorageError) fails its own request alone.
        """
        leaves = self.locations.leaves
        shift = _BITS + lay.TABLE_BITS
        missing: set[int] = set()
        for offset, length in requests:
            first, last = offset >> shift, offset + length - 1 >> shift
            if first not in leaves or last != first:
                missing.update(range(first, last + 1))
        if missing:
            self.locations.load(table for table in missing if 0 <= table << shift < self.size_bytes)
        return [self._answer(offset, length) for offset, length in requests]

    def read_bytes(self, offset: int, length: int) -> bytes:
        """Return the bytes of one range; raises what `read` answers."""
        (answer,) = self.read([(offset, length)])
        if isinstance(answer, NvmtoolError):
            raise answer
        return bytes(length) if answer is None else b"".join(answer)

    def _answer(self, offset: int, length: int) -> Answer:
        try:
            index, skip = offset >> _BITS, offset & _MASK
            leaf = self.locations.leaves.get(index >> lay.TABLE_BITS)
            if leaf is not None and 0 < length <= lay.BLOCK_SIZE - skip and offset + length <= self.size_bytes:
                at = leaf[index & _LEAF_MASK]
                if at > 0 and not self.region.pending_data:
                    start = (at << _BITS) + skip
                    return [self._view[start : start + length]]
            return self._read_blocks(offset, length)
        except NvmtoolError as error:
            return error

    def _read_blocks(self, offset: int, length: int) -> Answer:
        self.region.check_range(offset, length)
        if length == 0:
            return []
        first, end = offset >> _BITS, -(-(offset + length) >> _BITS)
        where = self._locate(first, end)
        if not where[0] and not where.any():
            return None
        parts = self._pieces(first, where)
        if offset & _MASK:
            parts[0] = parts[0][offset & _MASK :]
        if (offset + length) & _MASK:
            parts[-1] = parts[-1][: len(parts[-1]) - ((end << _BITS) - offset - length)]
        return parts

    def _locate(self, first: int, end: int) -> Ints:
        """Return the locations of logical blocks; raises DamagedError."""
        arrays = self.locations.arrays
        parts = []
        for table in range(first >> lay.TABLE_BITS, (end - 1 >> lay.TABLE_BITS) + 1):
            start = table << lay.TABLE_BITS
            lo, hi = max(first, start), min(end, start + lay.TABLE_ENTRIES)
            known = arrays.get(table)
            parts.append(self.locations.look_up(np.arange(lo, hi)) if known is None else known[lo - start : hi - start])
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _pieces(self, first: int, where: Ints) -> list[memoryview]:
        """Return the contents of consecutive logical blocks at locations, in as few stretches as they have runs."""
        logged = self.region.pending_data if self.snapshot is None else {}
        at, count = int(where[0]), len(where)
        if at > 0 and where[-1] - at == count - 1 and not logged and (where[1:] - where[:-1] == 1).all():
            return [self._view[at << _BITS : (at + count) << _BITS]]  # as a region is that was written in one go
        steps = np.arange(count)
        # Blocks that follow one another, slots that do, and holes have equal keys, those of different kinds never.
        keys = np.where(where > 0, where - steps + (1 << 48), np.where(where < 0, where + steps - (1 << 48), 0))
        if logged:
            for index in logged.keys() & range(first, first + count):
                keys[index - first] = (1 << 60) + index
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        lengths = np.diff(np.concatenate([starts, [count]]))
        parts: list[memoryview] = []
        for start, length, at in zip(starts.tolist(), lengths.tolist(), where[starts].tolist(), strict=True):
            if logged and first + start in logged:
                parts.append(memoryview(logged[first + start]))
            elif at > 0:
                parts.append(self._view[at << _BITS : (at + length) << _BITS])
            elif at < 0:
                parts.append(self._from_mass(-at, length))
            else:
                parts += _zeros(length << _BITS)
        return parts

    def _from_mass(self, slot: int, count: int) -> memoryview:
        return self.region.device.slots.read(np.arange(slot, slot + count, dtype=np.int64)).reshape(-1).data

    # --- writing

    def write(self, requests: Sequence[tuple[int, memoryview]]) -> list[NvmtoolError | None]:
        """Do writes of (offset, contents), in this order, stored together; readers see them at once, `flush` makes them durable.

        Each fails alone: past the end (UsageError), to a snapshot (RefusedError), with a full device (NoSpaceError), or StorageError.
        BusyError says that readers keep the log from being emptied, and to try again.
        """
        answers: list[NvmtoolError | None] = [None] * len(requests)
        whole: list[tuple[int, int, memoryview]] = []
        for number, (offset, data) in enumerate(requests):
            answers[number] = self._why_not(offset, len(data))
            if answers[number] is None and len(data):
                if (offset | len(data)) & _MASK:
                    # Parts of blocks are read first, with all that was written before in view.
                    self._write_whole(whole, answers)
                    whole = []
                    answers[number] = self._write_parts(offset, data)
                else:
                    whole.append((number, offset, data))
        self._write_whole(whole, answers)
        return answers

    def _why_not(self, offset: int, length: int) -> NvmtoolError | None:
        if self.read_only:
            return RefusedError(f"{self.name}: is read-only")
        if offset >= 0 and offset + length <= self.size_bytes:
            return None
        return UsageError(f"{self.name}: bytes {offset} to {offset + length} are past the end ({self.size_bytes})")

    def _write_whole(self, requests: list[tuple[int, int, memoryview]], answers: list[NvmtoolError | None]) -> None:
        if not requests:
            return
        extents = [(offset >> _BITS, data) for _, offset, data in requests]
        error = self._store(extents)
        if error is not None and len(requests) > 1:
            for number, offset, data in requests:  # some of them may still fit
                answers[number] = self._store([(offset >> _BITS, data)])
        else:
            answers[requests[0][0]] = error

    def _store(self, extents: list[tuple[int, memoryview]]) -> NvmtoolError | None:
        try:
            with self.access.keeping("running points", "snapshots"):
                self.region.write_extents(extents)
        except NvmtoolError as error:
            return error
        for first, data in extents:
            self.locations.moved(first, len(data) >> _BITS)
        return None

    def _write_parts(self, offset: int, data: memoryview) -> NvmtoolError | None:
        first, end = offset >> _BITS, -(-(offset + len(data)) >> _BITS)
        try:
            with self.access.keeping("running points", "snapshots"):
                self.region.write(offset, data)
        except NvmtoolError as error:
            return error
        finally:
            self.locations.moved(first, end - first)
        return None

    def trim(self, offset: int, length: int) -> None:
        """Make whole blocks inside a range holes; durable on return. Raises what `write` answers."""
        start, stop = -(-offset >> _BITS) << _BITS, (offset + length) >> _BITS << _BITS
        self._require(offset, length)
        if start < stop:
            self._discard(start, stop - start)

    def write_zeroes(self, offset: int, length: int, *, keep_allocated: bool = False) -> None:
        """Make a range read as zeros: by holes, which are durable on return, unless blocks are to be there afterwards."""
        self._require(offset, length)
        if not keep_allocated:
            self._discard(offset, length)
            return
        while length:
            part = min(length, _ZERO_BYTES - (offset & _MASK))
            (error,) = self.write([(offset, ZEROS[:part])])
            if error is not None:
                raise error
            offset, length = offset + part, length - part

    def _discard(self, offset: int, length: int) -> None:
        # What is a hole already needs no transaction.
        for start, size, data in list(self.status(offset, length)):
            if data:
                try:
                    with self.access.keeping("running points", "snapshots"):
                        self.region.discard(start, size)
                finally:
                    self.locations.forget(range(start >> _BITS + lay.TABLE_BITS, (start + size - 1 >> _BITS + lay.TABLE_BITS) + 1))

    def _require(self, offset: int, length: int) -> None:
        error = self._why_not(offset, length)
        if error is not None:
            raise error

    def flush(self) -> None:
        """Make all that was written to any export of this device durable."""
        self.access.flush()

    # --- looking

    def status(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, whether there are data) of the stretches of a range, in order, without gaps.

        Nothing may be written meanwhile. Raises UsageError or DamagedError.
        """
        self.region.check_range(offset, length)
        behind, start, kind = offset, offset, False
        for first, flags in self._iter_flags(offset >> _BITS, -(-(offset + length) >> _BITS)):
            bounds = np.flatnonzero(np.concatenate([[True], flags[1:] != flags[:-1]]))
            stops = [*bounds[1:].tolist(), len(flags)]
            for lo, hi in zip(bounds.tolist(), stops, strict=True):
                at = max((first + lo) << _BITS, offset)
                if at > behind and kind:  # a hole lies before this table
                    yield start, behind - start, kind
                    start, kind = behind, False
                if bool(flags[lo]) != kind:
                    if at > start:
                        yield start, at - start, kind
                    start, kind = at, bool(flags[lo])
                behind = min((first + hi) << _BITS, offset + length)
        if kind and behind < offset + length:
            yield start, behind - start, True
            start, kind = behind, False
        if start < offset + length:
            yield start, offset + length - start, kind

    def _iter_flags(self, first: int, end: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Yield (first logical block, which of these are there) for the parts of a range that tables or unflushed writes cover."""
        region = self.region
        pending = region.pending if self.snapshot is None else {}
        written = sorted(table for table in region.pending_tables if pending and first >> lay.TABLE_BITS <= table)
        groups = region.pages.tables.iter_leaf_groups([region.root_of(self.snapshot)], first >> lay.TABLE_BITS)
        leaf = next(groups, None)
        while leaf is not None or written:
            table = min(([leaf[0]] if leaf is not None else []) + written[:1])
            start = table << lay.TABLE_BITS
            if start >= end:
                return
            lo, hi = max(first, start), min(end, start + lay.TABLE_ENTRIES)
            flags = np.zeros(lay.TABLE_ENTRIES, bool)
            if leaf is not None and leaf[0] == table:
                flags = region.pages.tables.leaf_words(int(leaf[1][0])) != 0
                leaf = next(groups, None)
            if written and written[0] == table:
                del written[0]
                flags |= np.array([index in pending for index in range(start, start + lay.TABLE_ENTRIES)])
            yield lo, flags[lo - start : hi - start]


def _zeros(length: int) -> list[memoryview]:
    whole, rest = divmod(length, _ZERO_BYTES)
    return [ZEROS] * whole + ([ZEROS[:rest]] if rest else [])
