"""Which page frames a running VM touches: endless batches of accesses, the same ones for the same seed.

- uniform: every frame alike;
- zipf: a few frames get most accesses (the r-th most popular in proportion to r^-0.99), spread over the whole memory;
- sweep: all frames in order, round and round;
- churn: nine accesses in ten fall into a window of an eighth of the memory, which jumps at times. Storage blocks become sparse by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    Frames = NDArray[np.int64]

WORKLOADS = ("uniform", "zipf", "sweep", "churn")
BATCH = 4096
_THETA = 0.99
# So many of the most popular ranks have a table of their own; the sum over the others is an integral, exact to 1e-12.
_HEAD_RANKS = 1 << 16
_WINDOW_SHARE = 8
_IN_WINDOW = 0.9
_WINDOW_ROUNDS = 2


def iter_accesses(workload: str, nframes: int, *, seed: int, write_ratio: float) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield batches of 4096 accesses without end: the frames, and which of the accesses write. Raises UsageError.

    Memory used is bounded (1 MiB), however many frames there are.
    """
    if workload not in WORKLOADS:
        raise UsageError(f"workload {workload!r} is none of {', '.join(WORKLOADS)}")
    # Two streams, so that the frames do not depend on the share of writes.
    for_frames, for_writes = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    next_frames = _SOURCES[workload](nframes, for_frames)
    while True:
        yield next_frames().tolist(), (for_writes.random(BATCH) < write_ratio).tolist()


def _uniform(nframes: int, rng: Generator) -> Callable[[], Frames]:
    return lambda: rng.integers(0, nframes, BATCH)


def _sweep(nframes: int, _rng: Generator) -> Callable[[], Frames]:
    start = -BATCH

    def frames() -> Frames:
        nonlocal start
        start = (start + BATCH) % nframes
        return (start + np.arange(BATCH)) % nframes

    start %= nframes
    return frames


def _zipf(nframes: int, rng: Generator) -> Callable[[], Frames]:
    head = min(nframes, _HEAD_RANKS)
    power = 1 - _THETA
    cumulated = np.cumsum(np.arange(1, head + 1) ** -_THETA)
    # The sum of r^-theta over the ranks behind the head, by the midpoint rule: from head + 1/2 on.
    first = (head + 0.5) ** power / power
    total = cumulated[-1] + (nframes + 0.5) ** power / power - first
    scatter = _permutation(nframes, rng)

    def frames() -> Frames:
        weight = rng.random(BATCH) * total
        ranks = np.searchsorted(cumulated, weight, side="right")
        behind = weight >= cumulated[-1]
        ranks[behind] = np.rint(((weight[behind] - cumulated[-1] + first) * power) ** (1 / power)).astype(np.int64) - 1
        return scatter(np.minimum(ranks, nframes - 1))

    return frames


def _permutation(nframes: int, rng: Generator) -> Callable[[Frames], Frames]:
    """Return a one-to-one mapping of 0 to nframes - 1 without a table: neighbours end up far from each other."""
    factor = int(rng.integers(nframes // 4, nframes // 4 * 3 + 1)) if nframes > 8 else 1
    while math.gcd(factor, nframes) != 1:
        factor += 1
    shift = int(rng.integers(0, nframes))
    # Both numbers are below 2^32 (layout.MAX_FRAMES), so that the product fits 64 bits.
    return lambda ranks: ((ranks.astype(np.uint64) * np.uint64(factor) + np.uint64(shift)) % np.uint64(nframes)).astype(np.int64)


def _churn(nframes: int, rng: Generator) -> Callable[[], Frames]:
    window = max(nframes // _WINDOW_SHARE, 1)
    start = left = 0

    def frames() -> Frames:
        nonlocal start, left
        if left <= 0:
            start, left = int(rng.integers(0, nframes)), window * _WINDOW_ROUNDS
        left -= BATCH
        inside = (start + rng.integers(0, window, BATCH)) % nframes
        return np.where(rng.random(BATCH) < _IN_WINDOW, inside, rng.integers(0, nframes, BATCH))

    return frames


_SOURCES = {"uniform": _uniform, "zipf": _zipf, "sweep": _sweep, "churn": _churn}
