"""Estimating a guest's classes by looking at some of its page frames, chosen at random."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from .facts import CLASS_NAMES, Classes, Estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    # Page frames (i8) in, the index in CLASS_NAMES of each out (integers); NOT_COUNTED for one that the guest does not have.
    ClassOf = Callable[[NDArray[np.int64]], NDArray[np.integer]]

Z_95 = 1.959964
NOT_COUNTED = 255
# frames_for(0.05), whatever the size of the guest.
DEFAULT_FRAMES = 385


def frames_for(points: float) -> int:
    """Return how many frames keep both ends of the 95 % interval within `points` (0 to 1) of the estimate, whatever share a class has.

    An end p of Wilson's interval is z * sqrt(p * (1 - p) / n) from the estimate, which is most where p is a half: z / (2 * sqrt(n)).
    """
    if not 0 < points < 1:
        raise UsageError(f"{points} is not a share between 0 and 1")
    return max(1, math.ceil((Z_95 / (2 * points)) ** 2))


def wilson_interval(found: int, n: int) -> tuple[float, float]:
    """Return the ends of the 95 % interval of a share of which `found` of `n` were seen.

    Wilson's keeps what it promises near 0 and 1, where the interval around the mean that is in common use has no width at all.
    """
    share, z2 = found / n, Z_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (0.0 if not found else max(0.0, middle - half)), (1.0 if found == n else min(1.0, middle + half))


def estimate_from_counts(counts: Sequence[int], memory_bytes: int, *, complete: bool = False) -> Estimate:
    """Return the estimate for `memory_bytes` of which a sample had `counts` frames of each class, in the order of CLASS_NAMES.

    The classes add up to `memory_bytes` exactly. The six intervals hold with 95 % each, not all at once. `complete`: nothing was left out.
    """
    n = sum(counts)
    if len(counts) != len(CLASS_NAMES) or min(counts) < 0 or not n:
        raise UsageError(f"a sample needs six counts and a frame that is the guest's, not {list(counts)}")
    edges = [memory_bytes * sum(counts[:i]) // n for i in range(len(counts) + 1)]
    middle = Classes(*(edges[i + 1] - edges[i] for i in range(len(counts))))
    if complete:
        return Estimate(middle, middle, middle, "sample", n)
    ends = [wilson_interval(found, n) for found in counts]
    low = Classes(*(math.floor(memory_bytes * low) for low, _ in ends))
    high = Classes(*(min(memory_bytes, math.ceil(memory_bytes * high)) for _, high in ends))
    return Estimate(middle, low, high, "sample", n)


def sample_classes(
    nframes: int, class_of: ClassOf, visible_bytes: int, *, nsampled: int = DEFAULT_FRAMES, seed: int | None = None
) -> Estimate | None:
    """Look at `nsampled` of `nframes` page frames, no frame twice, and return the estimate for the `visible_bytes` that the guest has.

    None when no frame of the sample was the guest's. `seed` makes the choice repeatable; without it, it is another one each time, so that
    a guest whose memory has a pattern is not seen the same wrong way for ever.
    """
    if nframes < 1 or nsampled < 1:
        raise UsageError(f"cannot sample {nsampled} of {nframes} frames")
    nsampled = min(nsampled, nframes)
    frames = _distinct(np.random.default_rng(seed), nframes, nsampled)
    codes = np.asarray(class_of(frames))
    known = codes[codes != NOT_COUNTED]
    if len(codes) != nsampled or ((known < 0) | (known >= len(CLASS_NAMES))).any():
        raise UsageError(f"{nsampled} frames were asked about, {len(codes)} answers came, or one names no class")
    if not len(known):
        return None
    counts = np.bincount(known.astype(np.int64), minlength=len(CLASS_NAMES)).tolist()
    return estimate_from_counts(counts, visible_bytes, complete=nsampled == nframes)


def _distinct(generator: np.random.Generator, nframes: int, wanted: int) -> NDArray[np.int64]:
    """Return `wanted` different numbers below `nframes` in order, without a permutation of all of them."""
    if wanted * 4 > nframes:
        return np.sort(generator.permutation(nframes)[:wanted])
    chosen = np.unique(generator.integers(0, nframes, wanted))
    while len(chosen) < wanted:
        chosen = np.unique(np.append(chosen, generator.integers(0, nframes, wanted - len(chosen))))
    return chosen
