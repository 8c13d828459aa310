"""Mappings that processes share and nobody flushes: machine memory, and the words that say who uses it.

They are what RAM is to a hypervisor. A store is seen by every process at once and survives a kill -9 of the one that made it; it does not
survive the end of the machine, and a restart of the hypervisor throws the words away. So there is no fence here.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, StorageError
from . import sysio
from .store import PAGE, translated

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .word import Words

    Ints = NDArray[np.int64]

# Storage for words is asked for in steps of this size, so that a store cannot meet a full file system.
_ALLOCATION_BYTES = 1 << 21
_COPY_PAGES = 1024


def create_mapped(path: Path, size_bytes: int, head: bytes = b"") -> None:
    """Create a file to be mapped, for its owner alone: zeros, without storage, behind a head; raises NoSpaceError, or ExistsError."""
    with translated(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(fd, size_bytes)
            # Not through a mapping, whose first fault may fill a whole folio of 2 MiB.
            os.pwrite(fd, head, 0)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(fd)


class WordFile:
    """A file of plain words in shared memory. Indexes count words. `words` gives Python's own integers, `array` is read-only.

    Aligned words are stored in one piece each, in program order.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Map an existing file; raises NotFoundError or StorageError."""
        self.path = path
        with translated(path):
            self._fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        size = os.fstat(self._fd).st_size
        if size < PAGE or size % PAGE:
            os.close(self._fd)
            raise DamagedError(f"{path}: truncated: {size} bytes")
        self.nwords = size // 8
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map: mmap.mmap | None = mmap.mmap(self._fd, size, mmap.MAP_SHARED, access)
        self.words = memoryview(self._map).cast("B").cast("Q")
        self._array: Words = np.frombuffer(self._map, "<u8")
        self.array = self._array[:]
        self.array.flags.writeable = False
        self._allocated: set[int] = set()

    def store(self, index: int, value: int) -> None:
        """Store one word."""
        self.words[index] = value

    def store_many(self, indexes: Ints, values: Words) -> None:
        """Store scattered words, each in one piece."""
        # An aligned item of 8 bytes is one store in numpy's assignment.
        self._array[indexes] = values

    def store_range(self, first: int, values: Words) -> None:
        """Store consecutive words."""
        self._array[first : first + len(values)] = values

    def fill(self, first: int, count: int, value: int) -> None:
        """Store one value into consecutive words."""
        self._array[first : first + count] = value

    def allocate(self, first: int, count: int) -> None:
        """See to it that stores into a range have room on the file system, once per process; raises NoSpaceError."""
        end = min((first + count) * 8, self.nwords * 8)
        for step in range(first * 8 // _ALLOCATION_BYTES, -(-end // _ALLOCATION_BYTES)):
            if step not in self._allocated:
                start = step * _ALLOCATION_BYTES
                with translated(self.path):
                    sysio.allocate(self._fd, start, min(_ALLOCATION_BYTES, self.nwords * 8 - start))
                self._allocated.add(step)

    def allocate_for(self, indexes: Ints) -> None:
        """The same for scattered words."""
        for step in np.unique(indexes * 8 // _ALLOCATION_BYTES).tolist():
            if step not in self._allocated:
                self.allocate(step * _ALLOCATION_BYTES // 8, 1)

    def iter_written(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield (first, count) of the stretches of words that may differ from 0."""
        for offset, length in sysio.iter_data(self._fd, first * 8, count * 8):
            yield offset // 8, length // 8

    def close(self) -> None:
        """Unmap, once the last array over it is gone."""
        self.words = memoryview(b"").cast("Q")
        self._array = self.array = np.empty(0, np.uint64)
        self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class PageMapping:
    """Pages of a file in shared memory: `rows` of shape (npages, 4096), u1, writable where the mapping is."""

    def __init__(self, path: Path, first_page: int, npages: int, *, writable: bool) -> None:
        """Map pages of an existing file, which must have them; raises NotFoundError, DamagedError or StorageError."""
        self.path = path
        with translated(path):
            fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        try:
            wanted = (first_page + npages) * PAGE
            if sysio.file_size(fd) < wanted:
                raise DamagedError(f"{path}: truncated: {sysio.file_size(fd)} bytes, {wanted} are needed")
            access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            mapped = mmap.mmap(fd, wanted, mmap.MAP_SHARED, access)
        except OSError as error:
            raise StorageError(f"{path}: cannot be mapped: {error.strerror}") from error
        finally:
            os.close(fd)
        self.rows: NDArray[np.uint8] = np.frombuffer(mapped, np.uint8).reshape(-1, PAGE)[first_page:]
        self.bytes = self.rows.reshape(-1).data

    def close(self) -> None:
        """Unmap, once the last array over it is gone."""
        self.rows = np.empty((0, PAGE), np.uint8)
        self.bytes = self.rows.reshape(-1).data


class FrameMemory:
    """Machine frames: those of RAM, and behind them the pages of a device image, of which the lent ones may be used.

    Frame numbers (MPN) below `nram` are RAM's; `nram + b` is block `b` of the device image.
    """

    def __init__(self, ram: PageMapping, nvm: PageMapping | None) -> None:
        """Stand on the mappings."""
        self.ram = ram
        self.nvm = nvm
        self.nram = len(ram.rows)

    def page(self, mpn: int) -> memoryview:
        """Return the 4096 bytes of one frame, to read and to write."""
        if mpn < self.nram:
            return self.ram.bytes[mpn * PAGE : (mpn + 1) * PAGE]
        at = (mpn - self.nram) * PAGE
        return self._nvm().bytes[at : at + PAGE]

    def words(self, mpn: int) -> Words:
        """Return the 512 words of one frame, to read and to write."""
        row: NDArray[np.uint8] = self.ram.rows[mpn] if mpn < self.nram else self._nvm().rows[mpn - self.nram]
        return row.view("<u8")

    def read(self, mpns: Ints, out: NDArray[np.uint8]) -> None:
        """Copy frames into rows of 4096 bytes."""
        in_ram = mpns < self.nram
        if in_ram.all():
            np.take(self.ram.rows, mpns, axis=0, out=out, mode="clip")
        else:
            out[in_ram] = self.ram.rows[mpns[in_ram]]
            out[~in_ram] = self._nvm().rows[mpns[~in_ram] - self.nram]

    def write(self, mpns: Ints, rows: NDArray[np.uint8]) -> None:
        """Copy rows of 4096 bytes into frames."""
        in_ram = mpns < self.nram
        if in_ram.all():
            self.ram.rows[mpns] = rows
        else:
            self.ram.rows[mpns[in_ram]] = rows[in_ram]
            self._nvm().rows[mpns[~in_ram] - self.nram] = rows[~in_ram]

    def copy(self, sources: Ints, targets: Ints) -> None:
        """Copy frames to other frames, a batch at a time."""
        buffer = np.empty((min(len(sources), _COPY_PAGES), PAGE), np.uint8)
        for start in range(0, len(sources), _COPY_PAGES):
            batch = sources[start : start + _COPY_PAGES]
            self.read(batch, buffer[: len(batch)])
            self.write(targets[start : start + _COPY_PAGES], buffer[: len(batch)])

    def zero(self, mpns: Ints) -> None:
        """Let frames hold zeros."""
        for start in range(0, len(mpns), _COPY_PAGES):
            batch = mpns[start : start + _COPY_PAGES]
            self.write(batch, np.zeros((len(batch), PAGE), np.uint8))

    def close(self) -> None:
        """Unmap."""
        self.ram.close()
        if self.nvm is not None:
            self.nvm.close()

    def _nvm(self) -> PageMapping:
        if self.nvm is None:
            raise DamagedError(f"{self.ram.path}: a frame past the end of RAM is named, but the host has no device image")
        return self.nvm
