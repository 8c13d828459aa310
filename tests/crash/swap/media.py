"""The media of a swap file: its metadata behind the seam, and pages in memory that write every change into the trace.

The pages' medium holds the storage blocks one behind the other, and behind them a word per storage block: 1 where it has storage.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvmtool.errors import NoSpaceError
from nvmtool.media.pagefile import PageFile
from nvmtool.swap import layout as lay
from nvmtool.swap.storage import PlainStorage
from nvmtool.swap.swapfile import SwapFile

from ..recorder import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvmtool.media.store import Chunk

    from ..trace import Media, Trace

FILE, PAGES = "file", "pages"
_PRESENT = (1).to_bytes(8, "little")


class MemoryPages(PageFile):
    """Pages over memory; offsets are those in the file. `allocations_left`: after so many the file system is full."""

    def __init__(self, trace: Trace, content: bytes, fields: dict[str, Any], medium: str = PAGES) -> None:
        """Start with the medium's content."""
        self.path = Path(f"memory.{medium}")
        self.fd = -1
        self.allocations_left = -1
        self._trace = trace
        self._medium = medium
        self._content = bytearray(content)
        self._base = fields["data_start"] * lay.PAGE
        self._block_bytes = fields["slots_per_block"] * lay.PAGE
        self._words_at = fields["nblocks"] * self._block_bytes
        self._dirty = False

    def content(self) -> bytes:
        """Return what all stores so far make of the medium."""
        return bytes(self._content)

    def write(self, offset: int, chunks: Sequence[Chunk]) -> None:
        """Write chunks one behind the other."""
        self._store(offset - self._base, b"".join(chunks))

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill buffers one behind the other."""
        at = offset - self._base
        for buffer in buffers:
            flat = buffer.cast("B")
            flat[:] = self._content[at : at + len(flat)]
            at += len(flat)

    def allocate(self, offset: int, length: int) -> None:
        """Give storage blocks storage; raises NoSpaceError."""
        if self.allocations_left == 0:
            raise NoSpaceError(f"{self.path}: full")
        self.allocations_left -= 1
        self._mark(offset, length, _PRESENT)

    def punch(self, offset: int, length: int) -> None:
        """Give the storage of blocks back: they read as zeros, at the latest after the next fence."""
        self._store(offset - self._base, bytes(length), punched=True)
        self._mark(offset, length, bytes(8))

    def stored_bytes(self, offset: int, length: int) -> int:
        """Return how much of a range of storage blocks has storage."""
        first, count = self._blocks(offset, length)
        words = self._content[self._words_at + first * 8 : self._words_at + (first + count) * 8]
        return sum(words[::8]) * self._block_bytes

    def fence(self) -> None:
        """Make all earlier changes durable; does nothing when there were none."""
        if self._dirty:
            self._trace.fence(self._medium)
        self._dirty = False

    def close(self) -> None:
        """Do nothing: memory goes by itself."""

    def _blocks(self, offset: int, length: int) -> tuple[int, int]:
        assert (offset - self._base) % self._block_bytes == length % self._block_bytes == 0
        return (offset - self._base) // self._block_bytes, length // self._block_bytes

    def _mark(self, offset: int, length: int, word: bytes) -> None:
        first, count = self._blocks(offset, length)
        self._store(self._words_at + first * 8, word * count, atomic=True, punched=not any(word))

    def _store(self, at: int, data: bytes, *, atomic: bool = False, punched: bool = False) -> None:
        self._trace.store(self._medium, at, data, atomic=atomic, punched=punched)
        self._content[at : at + len(data)] = data
        self._dirty = True


def fields_of(file: bytes) -> dict[str, Any]:
    """Return the header in force of a file's metadata."""
    return lay.SWAP_FORMAT.choose(file[: lay.PAGE], file[lay.PAGE : 2 * lay.PAGE], Path("memory.file"))[0]


def open_recorded(trace: Trace, media: Media) -> SwapFile:
    """Open a swap file on memory for writing, and finish what was cut off, with everything it stores in the trace."""
    fields = fields_of(media[FILE])
    pages = MemoryPages(trace, media[PAGES], fields)
    storage = PlainStorage(pages, fields["data_start"] * lay.PAGE, fields["slots_per_block"] * lay.PAGE)
    swap = SwapFile(MemoryStore(trace, media[FILE], FILE), pages, fields, storage, writable=True)
    swap.recover()
    return swap
