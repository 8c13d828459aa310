"""The seam: every store to a device image goes through one of these classes.

A store offers `store_word` (an aligned 8-byte store that is never torn), `store_bytes` (may tear at any byte until the next
fence) and `fence` (all earlier stores are durable when it returns). Reading goes through `view`, a private copy-on-write mapping:
what a transaction changes there is seen by this process alone until the journal stores it for good (see journal.py).

After a failed fence the handle is dead: the kernel may have dropped the very pages it could not write.
"""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import ExistsError, FormatError, NoSpaceError, NotFoundError, NvmtoolError, StorageError, UsageError
from . import sysio

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Chunk = bytes | bytearray | memoryview

PAGE = 4096
_ERRORS: dict[int, type[NvmtoolError]] = {
    errno.ENOSPC: NoSpaceError,
    errno.EDQUOT: NoSpaceError,
    errno.EFBIG: NoSpaceError,
    errno.ENOENT: NotFoundError,
    errno.EEXIST: ExistsError,
}
_IOV_MAX = 1024
# From here on writing past the page cache is faster than through it.
_DIRECT_BYTES = 256 << 10
_MAP_NORESERVE = 0x4000
_MADV_POPULATE_READ = 22
_MAP_SHARED_VALIDATE_SYNC = 0x03 | 0x80000


class Store(Protocol):
    """What the journal and the device need of a medium."""

    path: Path
    size: int
    view: NDArray[np.uint8]
    fence_kind: str

    def store_word(self, offset: int, value: int) -> None:
        """Store an aligned word in one piece."""

    def store_bytes(self, offset: int, chunks: Sequence[Chunk]) -> None:
        """Store the chunks one behind the other; may tear until the next fence."""

    def store_logged(self, offset: int, content: Chunk) -> None:
        """Store a page that the log is about to hold too: durable with the first fence after another store."""

    def fence(self) -> None:
        """Return when all earlier stores are durable; does nothing when there were none."""

    def store_durable(self, offset: int, chunks: Sequence[Chunk]) -> None:
        """Store the chunks and fence, in one step where that is cheaper."""

    def adopt(self, offset: int, length: int) -> None:
        """Let the next fence cover a range that another process stored and may not have flushed."""

    def stay_cached(self) -> None:
        """Let large stores too go through the page cache: whoever stores does not wait for the medium, and reads them soon."""

    def start_writeback(self) -> None:
        """Let the kernel begin to store what was stored here, so that the next fence waits for less; from any thread."""

    def drop_private(self, offset: int, length: int) -> None:
        """Forget this process's private changes of a page range: the view shows the medium again."""

    def prepare_read(self, offset: int, length: int) -> None:
        """Map a page range of the view in one go before much of it is read; a hint."""

    def iter_data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the stretches of the medium that may hold anything but zeros."""

    def close(self) -> None:
        """Release the mapping; stores that were not fenced may be lost."""


class FileStore:
    """A store on a regular file or block device: pwrite for bytes, a shared mapping for words, fdatasync as the fence.

    Bytes go through pwrite because the kernel then writes back just the blocks that changed, where a store into the
    mapping dirties a whole folio of up to 2 MiB.
    """

    fence_kind = "fdatasync"

    def __init__(self, path: Path, fd: int, size: int, *, writable: bool) -> None:
        """Map `size` bytes of an open file, which must have them."""
        self.path = path
        self.fd = fd
        self.size = size
        self._dirty = False
        self._dead = False
        self._private = _map_private(path, fd, self.size)
        self.view = np.frombuffer(self._private, np.uint8)
        self._writer = Writer(fd, past_cache=writable)
        self._shared = mmap.mmap(fd, size) if writable else None
        self._words = memoryview(self._shared).cast("B").cast("Q") if self._shared is not None else None

    def store_word(self, offset: int, value: int) -> None:
        """Store an aligned word in one piece."""
        assert self._words is not None
        self._alive()
        self._dirty = True
        self._words[offset >> 3] = value

    def store_words(self, indexes: NDArray[np.int64], values: NDArray[np.uint64]) -> None:
        """Store scattered words, each in one piece, in no particular order; an index is a byte offset divided by 8."""
        assert self._shared is not None
        self._alive()
        self._dirty = True
        # An aligned item of 8 bytes is one store in numpy's assignment, as it is in a memoryview's.
        np.frombuffer(self._shared, "<u8")[indexes] = values

    def store_bytes(self, offset: int, chunks: Sequence[Chunk]) -> None:
        """Store the chunks one behind the other; may tear until the next fence."""
        self._alive()
        self._dirty = True
        with _translated(self.path):
            self._writer.write(offset, chunks)

    def store_logged(self, offset: int, content: Chunk) -> None:
        """Store a page that the log is about to hold too: durable with the first fence after another store."""
        self._alive()
        with _translated(self.path):
            self._writer.write(offset, [content])

    def fence(self) -> None:
        """Return when all earlier stores are durable; does nothing when there were none."""
        self._alive()
        if not self._dirty:
            return
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            self._dead = True
            raise StorageError(f"{self.path}: flush failed: {error.strerror}; run check before using it again") from error
        self._dirty = False

    def store_durable(self, offset: int, chunks: Sequence[Chunk]) -> None:
        """Store the chunks and fence, in one step where that is cheaper."""
        if self._dirty or len(chunks) > _IOV_MAX:
            self.store_bytes(offset, chunks)
            self.fence()
            return
        self._alive()
        length = sum(len(chunk) for chunk in chunks)
        try:
            done = os.pwritev(self.fd, chunks, offset, os.RWF_DSYNC)
        except OSError as error:
            self._dead = True
            raise StorageError(f"{self.path}: write failed: {error.strerror}; run check before using it again") from error
        if done != length:
            self.store_bytes(offset, [b"".join(chunks)])
            self.fence()

    def adopt(self, offset: int, length: int) -> None:
        """Let the next fence cover a range that another process stored and may not have flushed."""
        self._dirty = True

    def stay_cached(self) -> None:
        """Let large stores too go through the page cache: whoever stores does not wait for the medium, and reads them soon."""
        self._writer.close()

    def start_writeback(self) -> None:
        """Let the kernel begin to store what was stored here, so that the next fence waits for less; from any thread."""
        sysio.start_writeback(self.fd)

    def drop_private(self, offset: int, length: int) -> None:
        """Forget this process's private changes of a page range: the view shows the medium again."""
        self._private.madvise(mmap.MADV_DONTNEED, offset, length)

    def prepare_read(self, offset: int, length: int) -> None:
        """Map a page range of the view in one go before much of it is read; a hint."""
        with suppress(OSError):  # kernels before 5.14 map page by page, as without the hint
            self._private.madvise(_MADV_POPULATE_READ, offset, length)

    def iter_data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the stretches of the medium that may hold anything but zeros."""
        return sysio.iter_data(self.fd, offset, length)

    def close(self) -> None:
        """Release the mapping; stores that were not fenced may be lost."""
        # Arrays over the mappings keep them alive; they are unmapped when the last one goes.
        self._writer.close()
        self._words = None
        self._shared = None
        self.view = np.empty(0, np.uint8)

    def _alive(self) -> None:
        if self._dead:
            raise StorageError(f"{self.path}: an earlier flush failed; run check before using it again")


class DaxStore(FileStore):
    """A store on a DAX mapping: stores go straight to the medium, cache lines are flushed through libpmem.

    `pmem` is the loaded library; `_ranges` are the stores since the last fence.
    """

    fence_kind = "libpmem"

    def __init__(self, path: Path, fd: int, size: int, *, writable: bool) -> None:
        """Map `size` bytes of an open file on a DAX file system."""
        super().__init__(path, fd, size, writable=False)
        from .pmem import load_libpmem

        self._ranges: list[tuple[int, int]] = []
        if writable:
            self._pmem = load_libpmem()
            self._shared = mmap.mmap(fd, self.size, flags=_MAP_SHARED_VALIDATE_SYNC)
            self._bytes = memoryview(self._shared)
            self._words = self._bytes.cast("B").cast("Q")
            self._base = np.frombuffer(self._shared, np.uint8).ctypes.data

    def store_word(self, offset: int, value: int) -> None:
        """Store an aligned word in one piece."""
        super().store_word(offset, value)
        self._ranges.append((offset, 8))

    def store_words(self, indexes: NDArray[np.int64], values: NDArray[np.uint64]) -> None:
        """Store scattered words, each in one piece, in no particular order; an index is a byte offset divided by 8."""
        super().store_words(indexes, values)
        self._ranges.extend((index << 3, 8) for index in indexes.tolist())

    def store_bytes(self, offset: int, chunks: Sequence[Chunk]) -> None:
        """Store the chunks one behind the other; may tear until the next fence."""
        self._alive()
        self._dirty = True
        for chunk in chunks:
            self._bytes[offset : offset + len(chunk)] = chunk
            self._ranges.append((offset, len(chunk)))
            offset += len(chunk)

    def store_logged(self, offset: int, content: Chunk) -> None:
        """Store a page that the log is about to hold too: durable with the next fence."""
        self.store_bytes(offset, [content])

    def start_writeback(self) -> None:
        """Do nothing: there is no cache between."""

    def adopt(self, offset: int, length: int) -> None:
        """Let the next fence cover a range that another process stored and may not have flushed."""
        self._ranges.append((offset, length))

    def fence(self) -> None:
        """Flush the cache lines of all earlier stores and drain."""
        self._alive()
        for offset, length in self._ranges:
            self._pmem.pmem_flush(self._base + offset, length)
        if self._ranges:
            self._pmem.pmem_drain()
        self._ranges.clear()
        self._dirty = False

    def store_durable(self, offset: int, chunks: Sequence[Chunk]) -> None:
        """Store the chunks and fence."""
        self.store_bytes(offset, chunks)
        self.fence()


def open_store(path: Path, fd: int, size: int, *, writable: bool) -> FileStore:
    """Return the store for an open file: DAX where the mapping allows MAP_SYNC and libpmem is there, else fdatasync."""
    from .pmem import can_map_sync, find_libpmem

    if can_map_sync(fd) and find_libpmem() is not None:
        return DaxStore(path, fd, size, writable=writable)
    return FileStore(path, fd, size, writable=writable)


class Writer:
    """Writes bytes to one open file; large aligned stretches go past the page cache where the file system allows it.

    Going past it spares a copy and the memory, which matters to bulk data that nobody will read soon, and leaves no large folios behind
    that a small store would later have to write back whole. Durable after fdatasync on the same file, like any write.
    """

    def __init__(self, fd: int, *, past_cache: bool = True, direct_bytes: int = _DIRECT_BYTES) -> None:
        """Write to `fd`, which stays the caller's; from `direct_bytes` on past the page cache."""
        self.fd = fd
        self._direct_bytes = direct_bytes
        self._direct = sysio.open_direct(fd) if past_cache else -1

    def write(self, offset: int, chunks: Sequence[Chunk]) -> None:
        """Write all chunks one behind the other, however many and however the kernel splits them; raises OSError."""
        for start in range(0, len(chunks), _IOV_MAX):
            batch = chunks[start : start + _IOV_MAX]
            length = sum(len(chunk) for chunk in batch)
            done = self._write_direct(offset, batch, length) if self._direct >= 0 and length >= self._direct_bytes else 0
            if done == 0:
                done = os.pwritev(self.fd, batch, offset)
            while done < length:
                # A short write: go on from where the kernel stopped, in the one form that needs no splitting of chunks.
                written = os.pwrite(self.fd, memoryview(b"".join(batch))[done:], offset + done)
                if written == 0:
                    raise OSError(errno.EIO, "the kernel wrote nothing")
                done += written
            offset += length

    def close(self) -> None:
        """Close what this object opened."""
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1

    def _write_direct(self, offset: int, batch: Sequence[Chunk], length: int) -> int:
        if (offset | length) % PAGE:
            return 0
        try:
            return os.pwritev(self._direct, batch, offset)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EFAULT):  # chunks that do not suit the device: through the cache
                raise
            return 0


class _translated:
    """Turn an OSError of a write into the library's error, with the file's name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            cls = _ERRORS.get(error.errno or 0, StorageError)
            raise cls(f"{self.path}: {error.strerror}") from error


def translated(path: Path) -> _translated:
    """Return a context in which an OSError becomes NoSpaceError or StorageError about this file."""
    return _translated(path)


def _map_private(path: Path, fd: int, size: int) -> mmap.mmap:
    if size < PAGE:
        raise FormatError(f"{path}: {size} bytes is too short for an image")
    try:
        # NORESERVE: a private mapping of 1 TiB needs no 1 TiB of memory, only what is changed between two checkpoints.
        return mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise UsageError(
                f"{path}: cannot map {size} bytes; with vm.overcommit_memory=2 the commit limit bounds the image's size"
            ) from error
        raise StorageError(f"{path}: cannot be mapped: {error.strerror}") from error
