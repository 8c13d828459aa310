"""Receiving a stream: all of it is verified first, then it is applied where nobody reads, and shows when it is complete (`arriving.py`).

What arrives through a pipe is kept in a nameless file meanwhile.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DamagedError, ExistsError, NoSpaceError, NotFoundError, RefusedError
from ..media.record import check_name
from ..media.store import translated
from ..media.stream import STREAM
from . import layout as lay
from . import stream_format as form
from .arriving import NewRegion, NextSnapshot
from .send import digest_of
from .snapshots import diff_states

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from .device import Device
    from .region import Region

    Progress = Callable[[int, int, str], None] | None

_HEADER_BYTES = 4096
# For records, and an array that has begun.
_SPARE_BLOCKS = 8


@dataclass(frozen=True)
class ReceiveResult:
    """What the stream was, and what it held."""

    region: str
    snapshot: str
    base: str | None
    blocks: int
    hole_blocks: int
    stream_bytes: int
    seconds: float


class _File:
    """The bytes of a stream; what is read is written to `spool` too, if there is one."""

    def __init__(self, file: BinaryIO, name: str, spool: BinaryIO | None = None) -> None:
        self._file, self._name, self._spool = file, name, spool
        self.position = 0

    def read(self, count: int) -> memoryview:
        data = self._file.read(count)
        if self._spool is not None:
            self._spool.write(data)
        if len(data) < count:
            raise DamagedError(f"{self._name}: ends at byte {self.position + len(data)}, in the middle: the stream was cut off")
        self.position += count
        return memoryview(data)

    def at_end(self) -> bool:
        return not self._file.read(1)


class _Needed:
    """The blocks of a device that a stream takes: its data, the page tables over what it names, and virtblock entries."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.data = self.holes = self._tables = 0
        # On each level the first table that no record so far lies under.
        self._behind = [0] * (lay.MAX_REGION_BLOCKS.bit_length() // lay.TABLE_BITS + 1)

    def add(self, record: form.StreamRecord) -> None:
        if record.kind == form.END:
            return
        if record.kind == form.DATA:
            self.data += record.count
        else:
            self.holes += record.count
        for level, behind in enumerate(self._behind):
            shift = lay.TABLE_BITS * (level + 1)
            end = (record.first + record.count - 1 >> shift) + 1
            self._tables += max(0, end - max(behind, record.first >> shift))
            self._behind[level] = max(behind, end)
        if self.data > self._device.blocks.nblocks:
            raise NoSpaceError(f"{self._device.path}: the stream has more data than the device has blocks ({self._device.blocks.nblocks})")

    def require(self) -> None:
        """Raise NoSpaceError unless all fits."""
        needed = self.data + self._tables + self.data // lay.LIVE_ENTRIES + _SPARE_BLOCKS
        if needed > self._device.blocks.available:
            raise NoSpaceError(
                f"{self._device.path}: receiving {self.data} blocks of data takes {needed} blocks of 4 KiB, "
                f"{max(self._device.blocks.available, 0)} are available; purge, delete snapshots, or revert what --force would discard"
            )


def receive(
    device: Device, src: str, region: str | None = None, *, force: bool = False, dry_run: bool = False, progress: Progress = None
) -> ReceiveResult:
    """Take in a stream from a file or standard input (`-`): a region and its snapshot, or a further snapshot of a region.

    `region` is the name it gets, or has, here; the stream's own unless said. `force` discards what the running point has that its base
    has not. All is durable on return; until then, and after any error or kill, readers see every region, snapshot and running point as it
    was before. A dry run verifies the stream and all conditions. Raises FormatError, DamagedError (cut off, or damaged), NotFoundError
    (no such base), ExistsError, RefusedError (a base with other contents, a running point that was written to), NoSpaceError or
    StorageError.
    """
    device.require(dry_run=dry_run)
    started = time.monotonic()
    with ExitStack() as stack:
        file, piped, size = _open(stack, src)
        name = "stdin" if src == STREAM else src
        spool = stack.enter_context(open_spool(device)) if piped else None
        total = 2 * size
        with translated(device.path):
            needed, header, length = _verify(device, file, name, spool, lambda done: progress and total and progress(done, total, "bytes"))
        target = _target(device, header, region)
        needed.require()
        if isinstance(target, tuple):
            _require_unchanged(*target, force)
        if not dry_run:
            again = file if spool is None else spool
            again.seek(0)
            before = size if total else 0
            _apply(device, target, header, again, name, lambda done: progress and progress(before + done, before + length, "bytes"))
    shown = target[0].name if isinstance(target, tuple) else target
    seconds = round(time.monotonic() - started, 6)
    return ReceiveResult(shown, header.snapshot, header.base or None, needed.data, needed.holes, length, seconds)


def _open(stack: ExitStack, src: str) -> tuple[BinaryIO, bool, int]:
    """Return the open source, whether it can only be read once, and its size where that is known."""
    if src == STREAM:
        return stack.enter_context(os.fdopen(os.dup(0), "rb")), True, 0
    path = Path(src)
    with translated(path):
        file = stack.enter_context(path.open("rb"))
    return file, not path.is_file(), path.stat().st_size if path.is_file() else 0


def open_spool(device: Device) -> BinaryIO:
    """Open a nameless file beside the image, beside its mass store where the image is a device or its folder read-only, else in TMPDIR."""
    for path in (device.path, device.mass.path if device.mass is not None else device.path):
        if path.is_file() and os.access(path.resolve().parent, os.W_OK):
            return tempfile.TemporaryFile(dir=path.resolve().parent)
    return tempfile.TemporaryFile()


def _verify(
    device: Device, file: BinaryIO, name: str, spool: BinaryIO | None, report: Callable[[int], object]
) -> tuple[_Needed, form.StreamHeader, int]:
    """Return what the stream needs, its header, and its bytes; raises NoSpaceError as soon as no purge could make room for it."""
    source = _File(file, name, spool)
    header = form.StreamHeader.decode(bytes(_header(source, name)), name)
    for given in (header.region, header.snapshot, *([header.base] if header.base else [])):
        check_name(given)
    needed = _Needed(device)
    for record in form.iter_records(source, header, name):
        needed.add(record)
        report(source.position)
    return needed, header, source.position


def _header(source: _File, name: str) -> memoryview:
    try:
        return source.read(_HEADER_BYTES)
    except DamagedError:
        # Too short even for a header: then what it is not comes before that it is cut off.
        raise DamagedError(f"{name}: is shorter than a stream's header of {_HEADER_BYTES} bytes") from None


def _target(device: Device, header: form.StreamHeader, wanted: str | None) -> str | tuple[Region, str]:
    """Return the name of the region to make, or the region and the base that are there; raises as `receive` does."""
    name = wanted or header.region
    check_name(name)
    if not header.base:
        if device.records.find(name) is not None:
            raise ExistsError(f"{device.path}: region {name!r} exists already; --region names another one")
        return name
    region = device.region(name)
    if region.snapshots.find(header.snapshot) is not None:
        raise ExistsError(f"{device.path}: region {name!r} has a snapshot {header.snapshot!r} already")
    if region.snapshots.find(header.base) is None:
        raise NotFoundError(f"{device.path}: region {name!r} has no snapshot {header.base!r}, which the stream stands on")
    if region.nblocks != header.size_blocks or digest_of(region, header.base) != header.base_digest:
        raise RefusedError(
            f"{device.path}: snapshot {header.base!r} of region {name!r} has other contents than the one the stream stands on"
        )
    return region, header.base


def _require_unchanged(region: Region, base: str, force: bool) -> None:
    if not force and next(diff_states(region, base, None), None) is not None:
        raise RefusedError(
            f"{region.device.path}: region {region.name!r} was written to since snapshot {base!r}; --force discards that, as a revert does"
        )


def _apply(
    device: Device,
    target: str | tuple[Region, str],
    header: form.StreamHeader,
    file: BinaryIO,
    name: str,
    report: Callable[[int], object],
) -> None:
    if isinstance(target, tuple):
        arriving: NewRegion | NextSnapshot = NextSnapshot(*target)
    else:
        arriving = NewRegion(device, target, header.size_blocks * lay.BLOCK_SIZE, "virtblock" if header.virtblock else "direct")
    try:
        source = _File(file, name)
        source.read(_HEADER_BYTES)
        for record in form.iter_records(source, header, name):
            offset, length = record.first * lay.BLOCK_SIZE, record.count * lay.BLOCK_SIZE
            if record.data is not None:
                arriving.region.write(offset, record.data.reshape(-1).data)
            elif record.kind == form.HOLE:
                arriving.region.discard(offset, length)
            report(source.position)
        arriving.complete(header.snapshot, header.created)
    except BaseException:  # an interrupt too must leave nothing of it
        arriving.abandon()
        raise
