"""The recorder behind the seam: a store in memory that writes every store and fence into one ordered trace."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nvmtool.media.store import Chunk

    from .trace import Trace


class MemoryStore:
    """A store over memory with the file store's rules: a private view, and fences that only follow stores.

    What `store_logged` stores is durable with the first fence after another store, as FileStore promises no more.
    """

    fence_kind = "recorder"

    def __init__(self, trace: Trace, content: bytes, medium: str) -> None:
        """Start with the medium's content."""
        self.path = Path(f"memory.{medium}")
        self.medium = medium
        self.size = len(content)
        self.trace = trace
        self.fd = os.memfd_create(self.medium)
        os.ftruncate(self.fd, self.size)
        self._shared = mmap.mmap(self.fd, self.size)
        self._shared[:] = content
        # A real private mapping: pages that were not changed in it show what is stored to the medium.
        self._private = mmap.mmap(self.fd, self.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self.view = np.frombuffer(self._private, np.uint8)
        self._dirty = False

    def content(self) -> bytes:
        """Return what all stores so far make of the medium."""
        return self._shared[:]

    def store_word(self, offset: int, value: int) -> None:
        """Store an aligned word in one piece."""
        assert offset % 8 == 0
        self._put(offset, value.to_bytes(8, "little"), atomic=True)
        self._dirty = True

    def store_bytes(self, offset: int, chunks: Sequence[Chunk]) -> None:
        """Store the chunks one behind the other."""
        self._put(offset, b"".join(chunks))
        self._dirty = True

    def store_logged(self, offset: int, content: Chunk) -> None:
        """Store a page that the log is about to hold too."""
        self._put(offset, bytes(content), logged=True)

    def fence(self) -> None:
        """Make all earlier stores durable; does nothing when there were none."""
        if self._dirty:
            self.trace.fence(self.medium)
        self._dirty = False

    def store_durable(self, offset: int, chunks: Sequence[Chunk]) -> None:
        """Store the chunks and fence: them alone when nothing else waits, as a synchronous write does."""
        alone = not self._dirty
        data = b"".join(chunks)
        self.store_bytes(offset, [data])
        if alone:
            self.trace.fence(self.medium, offset, len(data))
            self._dirty = False
        else:
            self.fence()

    def adopt(self, offset: int, length: int) -> None:
        """There is one process only."""

    def drop_private(self, offset: int, length: int) -> None:
        """Forget this process's private changes of a page range."""
        self._private.madvise(mmap.MADV_DONTNEED, offset, length)

    def prepare_read(self, offset: int, length: int) -> None:
        """Do nothing: memory needs no hint."""

    def iter_data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield the whole range."""
        yield offset, length

    def close(self) -> None:
        """Release the memory."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.view = np.empty(0, np.uint8)

    def _put(self, offset: int, data: bytes, *, atomic: bool = False, logged: bool = False) -> None:
        self.trace.store(self.medium, offset, data, atomic=atomic, logged=logged)
        self._shared[offset : offset + len(data)] = data
