"""The proof on real files of a device: what its image and its mass store are told to store is what is there at each fence."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from nvmtool.region import device as device_module
from nvmtool.region import layout as lay
from nvmtool.region.device import Device
from nvmtool.region.mass import MassStore, _sealed_tag

from ..proof import Watch, proven_store, watched_kernel
from .bases import base, frozen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from nvmtool.media.store import Chunk, FileStore

    from .operations import Operation


@contextmanager
def proven(image: Path, mass: Path) -> Iterator[list[str]]:
    """Prove everything that devices opened inside store to these files; give the list of problems."""
    nvm, far = Watch(image), Watch(mass)

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

    store = proven_store(nvm)

    def open_proven(path: Path, fd: int, size: int, *, writable: bool) -> FileStore:
        return store(path, fd, size, writable=writable)

    with (
        watched_kernel(nvm, far),
        mock.patch.object(device_module, "MassStore", ProvenMass),
        mock.patch.object(device_module, "open_store", open_proven),
    ):
        problems: list[str] = []
        yield problems
        problems += nvm.problems + far.problems


def prove(folder: Path, mapping: str, *steps: Operation) -> list[str]:
    """Run operations on real files in one session; return what the proof finds."""
    image, mass = folder / "disk.nvm", folder / "disk.mass"
    image.write_bytes(base(mapping).image)
    mass.write_bytes(base(mapping).mass)
    with frozen(), proven(image, mass) as problems, Device.open(image, writable=True) as device:
        for step in steps:
            step.run(device)
    return problems
