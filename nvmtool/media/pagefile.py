"""Pages of a file that no transaction holds: read and written past the page cache, given storage, and given back.

The words that say which page is where are the journal's; here are only bytes. Buffers should begin at a page of memory, as numpy arrays
over an anonymous mapping do (`page_buffer`): others go through the page cache.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, StorageError
from . import sysio
from .store import PAGE, Writer, translated

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .store import Chunk

_IOV_MAX = 1024


def page_buffer(npages: int) -> NDArray[np.uint8]:
    """Return zeros of shape (npages, 4096), u1, which begin at a page of memory, as I/O past the page cache needs."""
    return np.frombuffer(mmap.mmap(-1, max(npages, 1) * PAGE), np.uint8).reshape(-1, PAGE)[:npages]


class PageFile:
    """The pages of one open file. Offsets are bytes. After a failed fence it is dead."""

    def __init__(self, path: Path, fd: int, *, writable: bool) -> None:
        """Stand on an open descriptor, which stays the caller's."""
        self.path = path
        self.fd = fd
        self._writer = Writer(fd, past_cache=writable, direct_bytes=PAGE)
        self._direct = sysio.open_direct(fd, os.O_RDONLY)
        self._dirty = False
        self._dead = False

    @property
    def size(self) -> int:
        """The file's size in bytes; there may be storage past it."""
        return os.fstat(self.fd).st_size

    def write(self, offset: int, chunks: Sequence[Chunk]) -> None:
        """Write chunks one behind the other; durable after the next fence. Raises NoSpaceError or StorageError."""
        self._alive()
        self._dirty = True
        with translated(self.path):
            self._writer.write(offset, chunks)

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill buffers one behind the other; raises DamagedError where the file ends before."""
        with translated(self.path):
            for start in range(0, len(buffers), _IOV_MAX):
                batch = buffers[start : start + _IOV_MAX]
                wanted = sum(len(each) for each in batch)
                if self._read(offset, batch) != wanted:
                    self._read_piecewise(offset, batch)
                offset += wanted

    def allocate(self, offset: int, length: int) -> None:
        """Give a range storage of its own, durable after the next fence; raises NoSpaceError."""
        self._alive()
        self._dirty = True
        with translated(self.path):
            if not sysio.allocate(self.fd, offset, length):
                zeros = bytes(1 << 20)
                for start in range(offset, offset + length, len(zeros)):
                    self._writer.write(start, [memoryview(zeros)[: offset + length - start]])

    def punch(self, offset: int, length: int) -> None:
        """Give the storage of a range back, durable after the next fence."""
        self._alive()
        self._dirty = True
        with translated(self.path):
            sysio.punch_hole(self.fd, offset, length)

    def trim(self) -> None:
        """Give back what storage there is past the file's end, durable after the next fence; works on a full file system too."""
        self._alive()
        self._dirty = True
        with translated(self.path):
            os.ftruncate(self.fd, self.size)

    def clone_from(self, source: PageFile, source_offset: int, offset: int, length: int) -> bool:
        """Let a range name the source's storage too, durable after the next fence; False where these files cannot share it."""
        self._alive()
        self._dirty = True
        with translated(self.path):
            return sysio.clone_range(source.fd, source_offset, self.fd, offset, length)

    def extents(self, offset: int, length: int) -> list[sysio.Extent]:
        """Return the storage of a range (FIEMAP); raises StorageError where the file system does not tell."""
        with translated(self.path):
            return list(sysio.iter_extents(self.fd, offset, length))

    def stored_bytes(self, offset: int, length: int) -> int:
        """Return how much of a range has storage."""
        return sum(extent.length for extent in self.extents(offset, length))

    def allocated_bytes(self) -> int:
        """Return the file system's own count of the whole file's storage."""
        return os.fstat(self.fd).st_blocks * 512

    def fence(self) -> None:
        """Return when all that was done before is durable; does nothing when there was nothing."""
        self._alive()
        if not self._dirty:
            return
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            self._dead = True
            raise StorageError(f"{self.path}: flush failed: {error.strerror}; run check before using it again") from error
        self._dirty = False

    def close(self) -> None:
        """Close what this object opened."""
        self._writer.close()
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1

    def _read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        if self._direct >= 0:
            try:
                return os.preadv(self._direct, buffers, offset)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EFAULT):  # buffers that do not suit the device: through the cache
                    raise
        return os.preadv(self.fd, buffers, offset)

    def _read_piecewise(self, offset: int, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            done = 0
            while done < len(buffer):
                count = os.preadv(self.fd, [buffer[done:]], offset + done)
                if count == 0:
                    raise DamagedError(f"{self.path}: truncated: no data at 0x{offset + done:x}")
                done += count
            offset += len(buffer)

    def _alive(self) -> None:
        if self._dead:
            raise StorageError(f"{self.path}: an earlier flush failed; run check before using it again")
