"""The proof on real files: at each fence they equal the replayed trace byte for byte, so that no store escapes the seam, and the kernel was
asked to make it durable."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from nvmtool.media.store import FileStore
from nvmtool.region import device as device_module
from nvmtool.region import layout as lay
from nvmtool.region.device import Device
from nvmtool.region.mass import MassStore, _sealed_tag

from .bases import base, frozen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from nvmtool.media.store import Chunk

    from .operations import Operation


class Watch:
    """One file under proof: what the seam was told to store, and whether a synchronising call came after it."""

    def __init__(self, path: Path) -> None:
        """Start with what the file holds."""
        self.path = path
        self.expected = bytearray(path.read_bytes())
        self.unsynced = False
        self.problems: list[str] = []

    def stored(self, offset: int, data: bytes) -> None:
        """Note a store at the seam."""
        self.unsynced = True
        if len(self.expected) < offset + len(data):
            self.expected.extend(bytes(offset + len(data) - len(self.expected)))
        self.expected[offset : offset + len(data)] = data

    def fenced(self, what: str) -> None:
        """Hold the file, read through a descriptor of its own, against the trace."""
        if self.unsynced:
            self.problems.append(f"proof: {what} of {self.path.name} did not reach the kernel")
        if self.path.read_bytes() != bytes(self.expected):
            self.problems.append(f"proof: {self.path.name} is not what the trace says")


@contextmanager
def proven(image: Path, mass: Path) -> Iterator[list[str]]:
    """Prove everything that devices opened inside store to these files; give the list of problems."""
    nvm, far = Watch(image), Watch(mass)

    class ProvenStore(FileStore):
        _inside = False

        def _seam(self, name: str, stores: list[tuple[int, bytes]], *arguments: Any) -> None:
            outer, self._inside = self._inside, True
            for offset, data in () if outer else stores:
                nvm.stored(offset, data)
            getattr(super(), name)(*arguments)
            self._inside = outer
            if name in ("fence", "store_durable") and not outer:
                nvm.fenced(name)

        def store_word(self, offset: int, value: int) -> None:
            self._seam("store_word", [(offset, value.to_bytes(8, "little"))], offset, value)

        def store_bytes(self, offset: int, chunks: Sequence[Chunk]) -> None:
            self._seam("store_bytes", [(offset, b"".join(chunks))], offset, chunks)

        def store_logged(self, offset: int, content: Chunk) -> None:
            synced = not nvm.unsynced
            self._seam("store_logged", [(offset, bytes(content))], offset, content)
            if synced:  # the log record that follows holds it too
                nvm.unsynced = False

        def fence(self) -> None:
            self._seam("fence", [])

        def store_durable(self, offset: int, chunks: Sequence[Chunk]) -> None:
            self._seam("store_durable", [(offset, b"".join(chunks))], offset, chunks)

    class ProvenMass(MassStore):
        def write(self, slots: Any, chunks: Sequence[Chunk]) -> None:
            data = b"".join(chunks)
            for position, slot in enumerate(slots.tolist()):
                far.stored(slot * lay.BLOCK_SIZE, data[position * lay.BLOCK_SIZE : (position + 1) * lay.BLOCK_SIZE])
            super().write(slots, chunks)

        def show_tag(self, tag: int) -> None:
            if tag != self.tag:
                far.stored(lay.MASS_HEADER.itemsize, _sealed_tag(tag))
            super().show_tag(tag)

        def punch(self, slots: Any) -> None:
            for slot in slots.tolist():
                far.stored(slot * lay.BLOCK_SIZE, bytes(lay.BLOCK_SIZE))
            super().punch(slots)

        def fence(self) -> None:
            super().fence()
            far.fenced("fence")

    def open_proven(path: Path, fd: int, size: int, *, writable: bool) -> FileStore:
        return ProvenStore(path, fd, size, writable=writable)

    with (
        _watched_kernel(nvm, far),
        mock.patch.object(device_module, "MassStore", ProvenMass),
        mock.patch.object(device_module, "open_store", open_proven),
    ):
        problems: list[str] = []
        yield problems
        problems += nvm.problems + far.problems


@contextmanager
def _watched_kernel(*watches: Watch) -> Iterator[None]:
    fdatasync, pwritev = os.fdatasync, os.pwritev

    def note(fd: int) -> None:
        for watch in watches:
            if os.path.samestat(os.fstat(fd), os.stat(watch.path)):
                watch.unsynced = False

    def watched_fdatasync(fd: int) -> None:
        fdatasync(fd)
        note(fd)

    def watched_pwritev(fd: int, chunks: Any, offset: int, flags: int = 0) -> int:
        done = pwritev(fd, chunks, offset, flags)
        if flags & os.RWF_DSYNC:
            note(fd)
        return done

    with mock.patch.object(os, "fdatasync", watched_fdatasync), mock.patch.object(os, "pwritev", watched_pwritev):
        yield


def prove(folder: Path, mapping: str, *steps: Operation) -> list[str]:
    """Run operations on real files in one session; return what the proof finds."""
    image, mass = folder / "disk.nvm", folder / "disk.mass"
    image.write_bytes(base(mapping).image)
    mass.write_bytes(base(mapping).mass)
    with frozen(), proven(image, mass) as problems, Device.open(image, writable=True) as device:
        for step in steps:
            step.run(device)
    return problems
