"""The workloads on a swap file with a reservation: operations in one session, and what ends a swap file's borrowing."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.errors import NvmtoolError
from nvmtool.swap.create import create_swap
from nvmtool.swap.reservation import create_reservation, forget_lender, leave
from nvmtool.swap.reservationfile import ReservationFile
from nvmtool.swap.swapfile import SwapFile

from ..region.bases import frozen
from ..swap.model import PAGE, Model, digest_of, read_model
from ..swap.operations import into_memory, out
from ..trace import Media, Recording, Trace
from .ground import BLOCK, NFRAMES, Ground, standing_on

if TYPE_CHECKING:
    from ..swap.operations import Operation

NBLOCKS, PROMISE = 6, 5
# Beside frames, a model says these of the reservation: its blocks, and what is promised.
SIZE, PROMISED = -1, -2
THERE, LEFT = "there", "left"
ENDS = {
    "leave": lambda ground, uuid: leave(ground.reservation, uuid, ground.swap),
    "forget": lambda ground, uuid: forget_lender(ground.reservation, ground.swap),
}


@dataclass(frozen=True)
class Base:
    """A swap file and its reservation, and what they must show."""

    media: Media
    model: Model
    swap_uuid: bytes


def folder() -> tempfile.TemporaryDirectory[str]:
    """Return a new folder in memory, where there is one."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


@cache
def base(*, clones: bool) -> Base:
    """Return what all workloads start from: frames as in swap/operations.py; reserved blocks 3, 4 and 5 are lent, as blocks 0, 1 and 2."""
    with frozen(), folder() as where:
        ground = Ground(Path(where), clones=clones)
        with standing_on(ground):
            create_reservation(ground.reservation, NBLOCKS * BLOCK, BLOCK)
            create_swap(ground.swap, memory_bytes=NFRAMES * PAGE, reservation=ground.reservation, promise_bytes=PROMISE * BLOCK)
            with SwapFile.open(ground.swap, writable=True) as swap:
                # Once around, so that those at the end are lent.
                for version in (9, 0):
                    for first, behind in ((0, 16), (16, 32), (32, 40)):
                        out(swap, range(first, behind), version)
                    into_memory(swap, range(40) if version else [2, 3, 5, *range(16, 26)])
                    swap.commit()
                for frame in range(40, 44):
                    swap.touch(frame)
            return Base(ground.media(), read_all(ground), swap.fields["uuid"])


def read_all(ground: Ground) -> Model:
    """Return what the files show, by reading; raises NvmtoolError."""
    with SwapFile.open(ground.swap) as swap:
        model = read_model(swap)
    with ReservationFile.open(ground.reservation, writable=False) as file:
        return {**model, SIZE: file.nblocks, PROMISED: file.lenders.promised()}


def record(*steps: Operation, clones: bool, name: str) -> Recording | None:
    """Run operations in one session on the base and close it; None where the files refuse one of them.

    All but the last operation are recorded and not enumerated: they are enumerated as workloads of their own.
    """
    origin, trace = base(clones=clones), Trace()
    allowed: list[set[str]] = []
    model, start, lazily = origin.model, 0, set[str]()
    with folder() as where:
        ground = Ground(Path(where), clones=clones)
        ground.load(origin.media)
        ground.trace = trace
        with standing_on(ground):
            swap = SwapFile.open(ground.swap, writable=True)
            for number, operation in enumerate(steps):
                start = len(trace.events) if number == len(steps) - 1 else start
                try:
                    models = operation.steps(model)
                    operation.run(swap)
                except NvmtoolError:  # such frames are not swapped, or are already
                    swap.close(commit=False)
                    return None
                trace.ack()
                before = {digest_of(model)}
                allowed.append(lazily | before | {digest_of(each) for each in models})
                lazily = lazily | before if operation.lazy else set()
                model = models[-1]
            swap.close()
    trace.ack()
    allowed += [lazily | {digest_of(model)}, {digest_of(model)}]
    return Recording(name, origin.media, trace.events, allowed, start if len(steps) > 1 else 0, rules=False)


def record_end(what: str, *, clones: bool, name: str) -> Recording:
    """Record how a swap file's borrowing ends."""
    origin, trace = base(clones=clones), Trace()
    with folder() as where:
        ground = Ground(Path(where), clones=clones)
        media = without_swap(origin.media) if what == "forget" else origin.media
        ground.load(media)
        if what == "forget":
            ground.swap.unlink()
        ground.trace = trace
        with standing_on(ground):
            ENDS[what](ground, origin.swap_uuid)
    trace.ack()
    return Recording(name, media, trace.events, [{THERE, LEFT}, {LEFT}], rules=False)


def without_swap(media: Media) -> Media:
    """Return media of which the swap file's are gone."""
    return {each: content if each not in ("file", "pages") else bytes(len(content)) for each, content in media.items()}


def marks(content: bytes, most: int) -> np.ndarray:
    """Return what storage each block of a medium has."""
    return np.frombuffer(content, "<u8", most, most * BLOCK)
