"""Import from and export to raw files, qcow2 images and pipes, with holes kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, FormatError, NotFoundError, UsageError
from ..media import sysio, word
from ..media.journal import run_arrays, runs
from ..media.newfile import NewFile
from ..media.pagefile import page_buffer
from ..media.store import Writer, translated
from ..media.stream import STREAM, OutStream
from . import layout as lay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .region import Region

    Progress = Callable[[int, int, str], None] | None

_CHUNK = 16 << 20
_READ_BLOCKS = 4096
_EXPORT_LEAVES = 8
_COUNTED_LEAVES = 256
# Runs from here on are mapped in one go before they are copied.
_RUN_BLOCKS = 32
_QCOW2_MAGIC = b"QFI\xfb"


@dataclass(frozen=True)
class ImportResult:
    """Bytes taken from the source, and those of them that were neither zeros nor there already, and so were written."""

    bytes_read: int
    bytes_written: int
    seconds: float


@dataclass(frozen=True)
class ExportResult:
    """The size of the export, and the bytes of it that are data."""

    bytes_total: int
    bytes_data: int
    seconds: float


def import_file(region: Region, src: str, offset: int = 0, progress: Progress = None) -> ImportResult:
    """Copy a raw or sparse file, a qcow2 image (through qemu-img) or standard input (`-`) into the running point.

    Blocks of zeros become holes; blocks that are there already are left alone. Durable on return; killed before, a leading part is
    there, of whose last blocks some may not be holes yet. Raises NotFoundError, UsageError when the source is larger than the region,
    or NoSpaceError.
    """
    region.device.require(dry_run=False)
    if src != STREAM:
        region.device.require_other_file(src)
    if offset % lay.BLOCK_SIZE:
        raise UsageError(f"offset {offset}: must be a multiple of {lay.BLOCK_SIZE}")
    region.flush()
    started = time.monotonic()
    written = 0
    with _open_source(src) as (fd, piped):
        size = 0 if piped else sysio.file_size(fd)
        region.check_range(offset, size)
        position = 0
        buffer = page_buffer(_CHUNK // lay.BLOCK_SIZE).reshape(-1).data
        for start, length in _iter_chunks(fd, size, buffer, piped=piped):
            _discard(region, offset + position, start - position)
            if offset + start + length > region.size_bytes:
                raise UsageError(f"{src}: is longer than region {region.name!r}, which holds its first {start} bytes now")
            if piped and start == 0 and buffer[:4] == _QCOW2_MAGIC:
                raise FormatError(f"{src}: a qcow2 image cannot be read from a pipe; save it in a file")
            written += _store_chunk(region, offset + start, buffer[:length])
            position = start + length
            if progress is not None:
                progress(position, max(size, position), "bytes")
        _discard(region, offset + position, size - position)
        region.flush()
    return ImportResult(max(position, size), written, round(time.monotonic() - started, 6))


def export_file(region: Region, dst: str, snapshot: str | None = None, progress: Progress = None) -> ExportResult:
    """Write the running point or a snapshot to a sparse raw file, or to standard output (`-`); purged blocks are verified on the way.

    The file appears whole or not at all. Raises DamagedError, NotFoundError, NoSpaceError, StorageError, or BusyError when the image's
    writer could not wait any longer.
    """
    region.flush()
    started = time.monotonic()
    require_all_pointers(region, snapshot)
    if dst == STREAM:
        data = _export_stream(region, snapshot, 1, progress)
    else:
        region.device.require_other_file(dst)
        new = NewFile(Path(dst))
        try:
            if new.is_stream:
                data = _export_stream(region, snapshot, new.fd, progress)
            else:
                new.allocate(region.size_bytes, sparse=True)
                new.clear(region.size_bytes)
                data = _export_sparse(region, snapshot, new, progress)
                region.device.require_current()  # what may be a mixture takes no file's place
                new.publish(durable=False)
        finally:
            new.close()
    return ExportResult(region.size_bytes, data, round(time.monotonic() - started, 6))


@contextmanager
def _open_source(src: str) -> Iterator[tuple[int, bool]]:
    """Open a source; give its descriptor, and whether it can only be read from front to back."""
    if src == STREAM:
        yield 0, True
        return
    path = Path(src)
    with translated(path):
        fd = os.open(path, os.O_RDONLY)
    try:
        if os.path.isdir(path):
            raise UsageError(f"{path}: is a folder")
        if not (path.is_file() or path.is_block_device()):
            yield fd, True
        elif os.pread(fd, 4, 0) == _QCOW2_MAGIC:
            with _raw_of_qcow2(path) as raw:
                yield raw, False
        else:
            yield fd, False
    finally:
        os.close(fd)


@contextmanager
def _raw_of_qcow2(path: Path) -> Iterator[int]:
    if shutil.which("qemu-img") is None:
        raise NotFoundError(f"{path}: is a qcow2 image; install qemu-img (Debian: qemu-utils) to import it")
    # Beside the source, where there is room for it, if that may be; and gone when it is closed.
    folder = path.parent if os.access(path.parent, os.W_OK) else None
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".nvmtool-import-") as raw:
        command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), raw.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FormatError(f"{path}: {done.stderr.strip() or 'qemu-img failed'}")
        with open(raw.name, "rb") as reopened:
            yield reopened.fileno()


def _iter_chunks(fd: int, size: int, view: memoryview, *, piped: bool) -> Iterator[tuple[int, int]]:
    """Fill the view with the source's data, chunk by chunk; yield (position, length) of each. Holes are passed over."""
    position = 0
    while piped or position < size:
        if not piped:
            try:
                data = os.lseek(fd, position, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return
            position = max(position, data // lay.BLOCK_SIZE * lay.BLOCK_SIZE)
            hole = os.lseek(fd, position, os.SEEK_HOLE) if data == position else size
            wanted = min(_CHUNK, -(-hole // lay.BLOCK_SIZE) * lay.BLOCK_SIZE - position, size - position)
        else:
            wanted = _CHUNK
        got = 0
        while got < wanted:
            part = os.readv(fd, [view[got:wanted]]) if piped else os.preadv(fd, [view[got:wanted]], position + got)
            if part == 0:
                break
            got += part
        if got == 0:
            return
        yield position, got
        position += got
        if piped and got < wanted:
            return


def _store_chunk(region: Region, offset: int, data: memoryview) -> int:
    """Write the blocks that are not zeros, discard the others; leave alone what is there already. Return the bytes written."""
    nblocks = len(data) // lay.BLOCK_SIZE
    words = np.frombuffer(data[: nblocks * lay.BLOCK_SIZE], "<u8").reshape(nblocks, -1)
    # Most data show themselves in the first word; only the rest is looked at whole.
    used = words[:, 0] != 0
    quiet = np.flatnonzero(~used)
    used[quiet] = words[quiet].any(axis=1)
    indexes = np.arange(nblocks, dtype=np.int64) + offset // lay.BLOCK_SIZE
    changed = used.copy()
    if region.pages.tables.lookup(region.root_of(None), indexes).any():
        # An unchanged block stays shared with the snapshots.
        there = np.frombuffer(region.read(offset, nblocks * lay.BLOCK_SIZE), "<u8").reshape(nblocks, -1)
        changed = (there != words).any(axis=1)
    written = 0
    for wanted, write in ((used & changed, True), (~used & changed, False)):
        for first, length in runs(np.flatnonzero(wanted)):
            start, end = first * lay.BLOCK_SIZE, (first + length) * lay.BLOCK_SIZE
            if write:
                region.write(offset + start, data[start:end])
                written += end - start
            else:
                _discard(region, offset + start, end - start)
    tail = data[nblocks * lay.BLOCK_SIZE :]
    if tail:
        region.write(offset + nblocks * lay.BLOCK_SIZE, tail)
        written += len(tail)
    return written


def _discard(region: Region, offset: int, length: int) -> None:
    if length > 0 and (region.record.get("mapped") or region.has_pending):
        region.discard(offset, length)


def iter_data(region: Region, snapshot: str | None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (logical blocks, kinds, values) of the blocks that are not holes, a few level-1 tables at a time."""
    pages = region.pages
    for indexes, words in pages.tables.iter_words(region.root_of(snapshot), _EXPORT_LEAVES):
        present = np.flatnonzero(words)
        kinds, values = pages.tables.decode(words[present], indexes[present])
        kinds, values = pages.follow(kinds, values, indexes[present])
        yield indexes[present], kinds, values


def require_all_pointers(region: Region, snapshot: str | None) -> None:
    """Raise DamagedError where a state has more or fewer words than its record counts: one that was zeroed looks like a hole."""
    record = region.record if snapshot is None else region.snapshot(snapshot)
    nblocks = 0
    for indexes, words in region.pages.tables.iter_words(region.root_of(snapshot), _COUNTED_LEAVES):
        present = words != 0
        nblocks += int(present.sum())
        if indexes[-1] >= region.nblocks and present[indexes >= region.nblocks].any():
            raise DamagedError(f"{region.device.path}: region {region.name!r} maps blocks past its end ({region.nblocks})")
    if nblocks != record.get("mapped"):
        raise DamagedError(
            f"{region.device.path}: region {region.name!r}: {nblocks} blocks are mapped in {snapshot or '@current'}, "
            f"its record counts {record.get('mapped')}; see: nvmtool check {region.device.path}"
        )


def _export_sparse(region: Region, snapshot: str | None, new: NewFile, progress: Progress) -> int:
    view = region.device.store.view.data
    writer = Writer(new.fd, past_cache=False)
    size = lay.BLOCK_SIZE
    nblocks = 0
    for indexes, kinds, values in iter_data(region, snapshot):
        in_nvm, on_mass = kinds == word.BLOCK, kinds == word.SLOT
        for first, length, block in _joint_runs(indexes[in_nvm], values[in_nvm]):
            if length >= _RUN_BLOCKS:
                region.device.store.prepare_read(block * size, length * size)
            with translated(new.path):
                writer.write(first * size, [view[block * size : (block + length) * size]])
        if on_mass.any():
            contents = region.device.slots.read(values[on_mass]).reshape(-1).data
            starts, lengths = run_arrays(indexes[on_mass])
            done = 0
            for first, length in zip(starts.tolist(), lengths.tolist(), strict=True):
                with translated(new.path):
                    writer.write(first * size, [contents[done * size : (done + length) * size]])
                done += length
        nblocks += len(indexes)
        if progress is not None and len(indexes):
            progress(int(indexes[-1] + 1) * size, region.size_bytes, "bytes")
    mapped = _mapped_blocks(region, snapshot)
    if nblocks != mapped:
        # A word that was lost whole looks like a hole; the count tells.
        raise DamagedError(f"{region.device.path}: region {region.name!r} has {nblocks} mapped blocks, its record says {mapped}")
    return nblocks * size


def _mapped_blocks(region: Region, snapshot: str | None) -> int:
    return (region.record if snapshot is None else region.snapshot(snapshot)).get("mapped")


def _joint_runs(indexes: np.ndarray, values: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield (first logical block, length, first block) where both numbers run on together."""
    if len(indexes):
        breaks = np.flatnonzero((np.diff(indexes) != 1) | (np.diff(values) != 1)) + 1
        bounds = np.concatenate([[0], breaks, [len(indexes)]])
        firsts, lengths, blocks = indexes[bounds[:-1]], np.diff(bounds), values[bounds[:-1]]
        yield from zip(firsts.tolist(), lengths.tolist(), blocks.tolist(), strict=True)


def _export_stream(region: Region, snapshot: str | None, fd: int, progress: Progress) -> int:
    stream, chunk = OutStream(fd), _READ_BLOCKS * lay.BLOCK_SIZE
    for offset in range(0, region.size_bytes, chunk):
        length = min(chunk, region.size_bytes - offset)
        stream.write(region.read(offset, length, snapshot))
        if progress is not None:
            progress(offset + length, region.size_bytes, "bytes")
    return _mapped_blocks(region, snapshot) * lay.BLOCK_SIZE
