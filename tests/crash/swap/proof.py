"""The proof on a real swap file: what its store and its pages are told to store is what is there at each fence."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

from nvmtool.media.pagefile import PageFile
from nvmtool.swap import swapfile as swap_module
from nvmtool.swap.swapfile import SwapFile

from ..proof import Watch, proven_store, watched_kernel
from .workloads import make_base

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from nvmtool.media.store import Chunk

    from .operations import Operation


class _Part(Watch):
    """One medium of a file that two media share: what both stored is expected, each asks the kernel for itself."""

    def __init__(self, whole: Watch) -> None:
        self.path, self.expected, self.problems = whole.path, whole.expected, whole.problems
        self.unsynced = False


@contextmanager
def proven(path: Path) -> Iterator[list[str]]:
    """Prove everything that swap files opened inside store to this one; give the list of problems."""
    metadata = Watch(path)
    pages = _Part(metadata)

    class ProvenPages(PageFile):
        def write(self, offset: int, chunks: Sequence[Chunk]) -> None:
            pages.stored(offset, b"".join(chunks))
            super().write(offset, chunks)

        def allocate(self, offset: int, length: int) -> None:
            pages.stored(offset, bytes(length))
            super().allocate(offset, length)

        def punch(self, offset: int, length: int) -> None:
            pages.stored(offset, bytes(length))
            super().punch(offset, length)

        def fence(self) -> None:
            super().fence()
            pages.fenced("fence of pages")

    with (
        watched_kernel(metadata, pages),
        mock.patch.object(swap_module, "PageFile", ProvenPages),
        mock.patch.object(swap_module, "FileStore", proven_store(metadata)),
    ):
        problems: list[str] = []
        yield problems
        problems += metadata.problems


def prove(folder: Path, *steps: Operation) -> list[str]:
    """Run operations on a real file in one session; return what the proof finds."""
    path = folder / "vm.swap"
    path.unlink(missing_ok=True)
    make_base(path)
    with proven(path) as problems, SwapFile.open(path, writable=True) as swap:
        for step in steps:
            step.run(swap)
    return problems
