"""The workloads on a swap file: every operation alone, and every ordered pair of operations in one session."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.errors import NvmtoolError
from nvmtool.swap import layout as lay
from nvmtool.swap.create import create_swap
from nvmtool.swap.swapfile import SwapFile

from ..region.bases import frozen
from ..subject import PER_BLOCK
from ..trace import Media, Recording, Trace
from .media import FILE, PAGES, fields_of, open_recorded
from .model import PAGE, Model, digest_of, read_model
from .operations import into_memory, out

if TYPE_CHECKING:
    from .operations import Operation

NFRAMES = 64
SLOTS_PER_BLOCK = 16


@dataclass(frozen=True)
class Base:
    """A swap file, and what it must show."""

    media: Media
    model: Model


@cache
def base() -> Base:
    """Return the file that all workloads start from (see operations.py)."""
    with frozen(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vm.swap"
        make_base(path)
        with SwapFile.open(path) as swap:
            return Base(media_of(path.read_bytes(), swap.used >= 0), read_model(swap))


def make_base(path: Path) -> None:
    """Make the file that all workloads start from."""
    create_swap(path, memory_bytes=NFRAMES * PAGE, block_bytes=SLOTS_PER_BLOCK * PAGE)
    with SwapFile.open(path, writable=True) as swap:
        for first, behind in ((0, 16), (16, 32), (32, 40)):
            out(swap, range(first, behind))
        into_memory(swap, [2, 3, 5, *range(16, 26)])
        for frame in range(40, 44):
            swap.touch(frame)


def media_of(content: bytes, present: np.ndarray) -> Media:
    """Return the media of a file; `present` tells which storage blocks have storage."""
    fields = fields_of(content)
    data = fields["data_start"] * lay.PAGE
    marks = np.zeros(-(-len(present) // PER_BLOCK) * PER_BLOCK, "<u8")
    marks[: len(present)] = present
    return {FILE: content[:data], PAGES: content[data:] + marks.tobytes()}


def record(*steps: Operation) -> Recording | None:
    """Run operations in one session on the base and close it; None where the file refuses one of them.

    All but the last operation are recorded and not enumerated: they are enumerated as workloads of their own.
    """
    origin, trace = base(), Trace()
    allowed: list[set[str]] = []
    model, start, lazily = origin.model, 0, set[str]()
    swap = open_recorded(trace, origin.media)
    for number, operation in enumerate(steps):
        if number == len(steps) - 1:
            start = len(trace.events)
        try:
            models = operation.steps(model)
            operation.run(swap)
        except NvmtoolError:  # such frames are not swapped, or are already
            return None
        trace.ack()
        before = {digest_of(model)}
        allowed.append(lazily | before | {digest_of(each) for each in models})
        lazily = lazily | before if operation.lazy else set()
        model = models[-1]
    swap.close()
    trace.ack()
    allowed += [lazily | {digest_of(model)}, {digest_of(model)}]
    return Recording(
        "+".join(["swap", *(step.name for step in steps)]), origin.media, trace.events, allowed, start if len(steps) > 1 else 0
    )
