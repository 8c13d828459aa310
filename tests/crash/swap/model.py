"""What a swap file must show: the page of every frame that is swapped, and which others were touched."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.media.pagefile import page_buffer
from nvmtool.swap.swapfile import IN_MEMORY, UNTOUCHED

if TYPE_CHECKING:
    from nvmtool.swap.swapfile import SwapFile

PAGE = 4096
# Of a frame: the page that was swapped out, or IN_MEMORY or UNTOUCHED.
Model = dict[int, bytes | int]


def pattern(seed: int) -> bytes:
    """Return a page without structure; the same seed gives the same bytes."""
    return random.Random(seed).randbytes(PAGE)


def page_of(frame: int, version: int = 0) -> bytes:
    """Return what a frame's page holds when it is swapped out for the version-th time."""
    return pattern(frame * 1000 + version)


def digest_of(model: Model) -> str:
    """Return a digest of everything that can be seen of a model."""
    total = hashlib.blake2b(digest_size=16)
    for frame in sorted(model):
        state = model[frame]
        total.update(state if isinstance(state, bytes) else f"{frame}:{state}".encode())
    return total.hexdigest()


def read_model(swap: SwapFile) -> Model:
    """Return what a swap file shows, by reading the page of every frame that is swapped; raises NvmtoolError."""
    states = swap.states_of_range(0, swap.nframes)
    model: Model = {frame: IN_MEMORY if state == IN_MEMORY else UNTOUCHED for frame, state in enumerate(states.tolist())}
    frames = np.flatnonzero(states >= 0)
    pages = page_buffer(len(frames))
    swap.read_pages(frames, pages)
    model.update(zip(frames.tolist(), (page.tobytes() for page in pages), strict=True))
    return model
