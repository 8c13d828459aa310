"""A guest for tests: swaps pages out and in through a real swap file, and knows what each page must hold."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.media.pagefile import page_buffer
from nvmtool.swap.create import create_swap
from nvmtool.swap.swapfile import SwapFile

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PAGE = 4096
SMALL_BLOCK = 16 * PAGE


def page_of(frame: int, version: int) -> bytes:
    """Return contents that no other frame or version has."""
    return random.Random(f"{frame} {version}").randbytes(PAGE)


class Guest:
    """An open swap file and the pages that were swapped out to it."""

    def __init__(self, path: Path, *, frames: int = 1024, block_bytes: int = SMALL_BLOCK) -> None:
        self.path = path
        create_swap(path, memory_bytes=frames * PAGE, block_bytes=block_bytes)
        self.swapped: dict[int, bytes] = {}
        self.version = 0
        self.open()

    def open(self) -> None:
        self.swap = SwapFile.open(self.path, writable=True)

    def close(self) -> None:
        self.swap.close()

    def out(self, frames: Iterable[int]) -> None:
        """Swap frames out, in batches."""
        frames = list(frames)
        self.version += 1
        for start in range(0, len(frames), self.swap.max_batch):
            batch = frames[start : start + self.swap.max_batch]
            pages = [page_of(frame, self.version) for frame in batch]
            buffer = page_buffer(len(batch))
            buffer[:] = np.frombuffer(b"".join(pages), np.uint8).reshape(-1, PAGE)
            self.swap.swap_out(np.array(batch, np.int64), [row.data for row in buffer])
            self.swapped.update(zip(batch, pages, strict=True))

    def bring_in(self, frames: Iterable[int]) -> None:
        """Swap frames in, and compare what comes."""
        for frame in list(frames):
            into = bytearray(PAGE)
            self.swap.swap_in(frame, memoryview(into))
            assert into == self.swapped.pop(frame), f"frame {frame}"

    def fill(self, seed: int, *, share: float = 0.4) -> None:
        """Swap all frames out and most of them in again, at random: every storage block is sparsely used."""
        self.out(range(self.swap.nframes))
        rng = random.Random(seed)
        self.bring_in(frame for frame in range(self.swap.nframes) if rng.random() > share)
        self.swap.commit()

    def verify(self) -> None:
        """Compare every swapped page, by a reader of its own."""
        self.verify_against(self.swapped)

    def verify_against(self, swapped: dict[int, bytes]) -> None:
        """Compare every page, by a reader of its own, with what was swapped at the last commit."""
        with SwapFile.open(self.path) as reader:
            verify(reader, swapped)


def verify(swap: SwapFile, swapped: dict[int, bytes]) -> None:
    """Compare all frames of an open swap file with what must be swapped."""
    states = swap.states_of_range(0, swap.nframes)
    assert set(np.flatnonzero(states >= 0).tolist()) == set(swapped)
    assert len(np.unique(states[states >= 0])) == len(swapped), "two frames name one slot"
    frames = np.array(sorted(swapped), np.int64)
    out = page_buffer(len(frames))
    swap.read_pages(frames, out)
    for row, frame in zip(out, frames.tolist(), strict=True):
        assert row.tobytes() == swapped[frame], f"frame {frame}"
