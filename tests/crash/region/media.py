"""The media of a device: its image, and a mass store in memory that writes every change into the trace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.media.journal import runs
from nvmtool.region import layout as lay
from nvmtool.region import mass as mass_module
from nvmtool.region.device import Device
from nvmtool.region.header import choose_header
from nvmtool.region.mass import MassStore

from ..recorder import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvmtool.media.store import Chunk

    from ..trace import Trace

NVM, MASS = "nvm", "mass"


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
    device = Device(MemoryStore(trace, image, NVM), header, MemoryMass(trace, mass), writable=True)
    device.resume()
    return device
