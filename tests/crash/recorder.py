"""The recorder behind the seam: a store and a mass store in memory that write every store and fence into one ordered trace."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.media.journal import runs
from nvmtool.region import layout as lay
from nvmtool.region import mass as mass_module
from nvmtool.region.device import Device
from nvmtool.region.header import choose_header
from nvmtool.region.mass import MassStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvmtool.media.store import Chunk

NVM, MASS = "nvm", "mass"
STORE, FENCE, ACK = "store", "fence", "ack"


@dataclass(frozen=True)
class Event:
    """One step of a trace.

    `store`: bytes at an offset of a medium; `atomic` ones are never torn, `logged` ones are also in the record that follows.
    `fence`: all earlier stores to the medium are durable, or those of one range alone. `ack`: the step was acknowledged.
    """

    what: str
    medium: str = NVM
    offset: int = 0
    data: bytes = b""
    atomic: bool = False
    logged: bool = False
    # Of a fence: bytes that it covers from `offset` on; -1 for the whole medium.
    length: int = -1
    punched: bool = False


@dataclass
class Trace:
    """The ordered events of both media."""

    events: list[Event] = field(default_factory=list)

    def store(self, medium: str, offset: int, data: bytes, *, atomic: bool = False, logged: bool = False, punched: bool = False) -> None:
        """Note a store."""
        self.events.append(Event(STORE, medium, offset, data, atomic, logged, punched=punched))

    def fence(self, medium: str, offset: int = 0, length: int = -1) -> None:
        """Note a fence."""
        self.events.append(Event(FENCE, medium, offset, length=length))

    def ack(self) -> None:
        """Note that all steps up to here were acknowledged."""
        self.events.append(Event(ACK))


@dataclass(frozen=True)
class Recording:
    """A workload's trace on media with known contents.

    `allowed`: the digests that may be seen, for each stretch of the trace that an acknowledgement ends. `start`: the event from which
    on crash states are enumerated. `tolerated`: beginnings of problems that the documents allow before the first acknowledgement.
    `rules`: whether the cheap rules apply.
    """

    name: str
    image: bytes
    mass: bytes
    events: list[Event]
    allowed: list[set[str]]
    start: int = 0
    tolerated: tuple[str, ...] = ()
    rules: bool = True


class MemoryStore:
    """A store over memory with the file store's rules: a private view, and fences that only follow stores.

    What `store_logged` stores is durable with the first fence after another store, as FileStore promises no more.
    """

    fence_kind = "recorder"

    def __init__(self, trace: Trace, content: bytes, path: Path = Path("memory.nvm")) -> None:
        """Start with the medium's content."""
        self.path = path
        self.size = len(content)
        self.trace = trace
        self.fd = os.memfd_create("nvm")
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
            self.trace.fence(NVM)
        self._dirty = False

    def store_durable(self, offset: int, chunks: Sequence[Chunk]) -> None:
        """Store the chunks and fence: them alone when nothing else waits, as a synchronous write does."""
        alone = not self._dirty
        data = b"".join(chunks)
        self.store_bytes(offset, [data])
        if alone:
            self.trace.fence(NVM, offset, len(data))
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

    def close(self) -> None:
        """Release the memory."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.view = np.empty(0, np.uint8)

    def _put(self, offset: int, data: bytes, *, atomic: bool = False, logged: bool = False) -> None:
        self.trace.store(NVM, offset, data, atomic=atomic, logged=logged)
        self._shared[offset : offset + len(data)] = data


class MemoryMass(MassStore):
    """A mass store over memory; each write, fence and punch goes into the trace."""

    def __init__(self, trace: Trace, content: bytes) -> None:
        """Start with the medium's content, header included."""
        fd = os.memfd_create("mass")
        write_mass(fd, content)
        _, _, tag = mass_module._read_header(Path("memory.mass"), fd)
        super().__init__(Path("memory.mass"), fd, tag, writable=True)
        self.trace = trace

    def show_tag(self, tag: int) -> None:
        """Let the header show a tag: one aligned word, written in one piece."""
        if tag != self.tag:
            self.trace.store(MASS, lay.MASS_HEADER.itemsize, mass_module._sealed_tag(tag), atomic=True)
        super().show_tag(tag)

    def write(self, slots: np.ndarray, chunks: Sequence[Chunk]) -> None:
        """Write chunks that together fill the slots in order."""
        data = b"".join(chunks)
        for position, slot in enumerate(slots.tolist()):
            self.trace.store(MASS, slot * lay.BLOCK_SIZE, data[position * lay.BLOCK_SIZE : (position + 1) * lay.BLOCK_SIZE])
        super().write(slots, chunks)

    def fence(self) -> None:
        """Make all written slots durable."""
        if self._dirty:
            self.trace.fence(MASS)
        super().fence()

    def punch(self, slots: np.ndarray) -> None:
        """Give slots back: they read as zeros, at the latest after the next fence."""
        for first, nslots in runs(np.unique(slots)):
            self.trace.store(MASS, first * lay.BLOCK_SIZE, bytes(nslots * lay.BLOCK_SIZE), punched=True)
        super().punch(slots)


def write_mass(fd: int, content: bytes) -> None:
    """Let a file hold a mass store's content, with holes where there are zeros."""
    os.ftruncate(fd, 0)
    os.ftruncate(fd, len(content))
    used = np.frombuffer(content, "<u8").reshape(-1, lay.WORDS_PER_BLOCK).any(axis=1)
    for first, nslots in runs(np.flatnonzero(used)):
        start, end = first * lay.BLOCK_SIZE, (first + nslots) * lay.BLOCK_SIZE
        os.pwrite(fd, content[start:end], start)


def open_recorded(trace: Trace, image: bytes, mass: bytes) -> Device:
    """Open a device on memory for writing, and finish what was cut off, with everything it stores in the trace."""
    header, _, _ = choose_header(image[: lay.BLOCK_SIZE], image[lay.BLOCK_SIZE : 2 * lay.BLOCK_SIZE], Path("memory.nvm"))
    device = Device(MemoryStore(trace, image), header, MemoryMass(trace, mass), writable=True)
    device.resume()
    return device
