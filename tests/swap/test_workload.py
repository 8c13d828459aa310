"""Workloads are reproducible, stay inside the memory, and have the shape that their names promise."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest

from nvmtool.errors import UsageError
from nvmtool.swap.latency import Latencies
from nvmtool.swap.workload import WORKLOADS, iter_accesses


def _frames(workload: str, nframes: int, nbatches: int, seed: int = 1) -> list[int]:
    batches = islice(iter_accesses(workload, nframes, seed=seed, write_ratio=0.5), nbatches)
    return [frame for frames, _ in batches for frame in frames]


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("nframes", [1, 2, 3, 9, 4097, 1 << 32])
def test_accesses_stay_inside_the_memory(workload: str, nframes: int) -> None:
    frames = _frames(workload, nframes, 3)
    assert min(frames) >= 0
    assert max(frames) < nframes
    assert all(type(frame) is int for frame in frames[:10])


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_same_seed_gives_the_same_accesses(workload: str) -> None:
    once, again = (list(islice(iter_accesses(workload, 1000, seed=7, write_ratio=0.3), 3)) for _ in range(2))
    assert once == again
    if workload != "sweep":
        assert _frames(workload, 1000, 3, seed=8) != [frame for frames, _ in once for frame in frames]


def test_the_share_of_writes_does_not_change_the_frames() -> None:
    few, many = (next(iter_accesses("zipf", 1000, seed=7, write_ratio=ratio)) for ratio in (0.1, 0.9))
    assert few[0] == many[0]
    assert sum(few[1]) < 1000 < 3000 < sum(many[1])


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (1.0, 4096)])
def test_no_writes_and_only_writes(ratio: float, expected: int) -> None:
    assert sum(next(iter_accesses("uniform", 10, seed=0, write_ratio=ratio))[1]) == expected


def test_sweep_touches_every_frame_in_order_round_and_round() -> None:
    assert _frames("sweep", 1500, 3) == [number % 1500 for number in range(3 * 4096)]


@pytest.mark.parametrize("nframes", [1000, 1 << 17, 1 << 22])
def test_zipf_ranks_are_as_frequent_as_theta_says(nframes: int) -> None:
    frames = _frames("zipf", nframes, 100)
    counts = [count for _, count in Counter(frames).most_common(32)]
    total = float((np.arange(1, nframes + 1) ** -0.99).sum())
    for rank in (1, 2, 10):
        assert counts[rank - 1] == pytest.approx(len(frames) * rank**-0.99 / total, rel=0.15)


def test_zipf_spreads_popular_frames_over_the_memory() -> None:
    popular = sorted(frame for frame, _ in Counter(_frames("zipf", 1 << 20, 50)).most_common(16))
    assert popular[-1] - popular[0] > 1 << 19
    assert min(after - before for before, after in pairwise(popular)) > 1


def test_zipf_reaches_every_frame_of_a_small_memory() -> None:
    assert set(_frames("zipf", 100, 20)) == set(range(100))


def test_churn_stays_mostly_in_a_window_that_moves() -> None:
    nframes = 1 << 16
    batches = [frames for frames, _ in islice(iter_accesses("churn", nframes, seed=3, write_ratio=0), 40)]
    densest = [_densest_eighth(frames, nframes) for frames in batches]
    assert all(share > 0.85 for _, share in densest)
    assert len({start for start, _ in densest}) > 3


def _densest_eighth(frames: list[int], nframes: int) -> tuple[int, float]:
    """Return the 64th of the memory at which its densest eighth starts, and the share of accesses in there."""
    counts = np.bincount(np.array(frames) * 64 // nframes, minlength=64)
    around = np.concatenate([counts, counts])
    sums = [int(around[start : start + 9].sum()) for start in range(64)]
    best = int(np.argmax(sums))
    return best, sums[best] / len(frames)


def test_an_unknown_workload_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="none of uniform, zipf"):
        next(iter_accesses("random", 10, seed=0, write_ratio=0.5))


def test_percentiles_are_within_two_percent() -> None:
    durations = np.random.default_rng(1).lognormal(11, 2, 20000).astype(np.int64).tolist()
    latencies = Latencies()
    for duration in durations:
        latencies.add(duration)
    assert latencies.count == len(durations)
    durations.sort()
    for per_mille in (10, 500, 990, 999, 1000):
        exact = durations[len(durations) * per_mille // 1000 - 1] / 1000
        assert exact <= latencies.percentile_us(per_mille) <= exact * 1.02


def test_no_durations_have_no_percentiles_and_endless_ones_are_counted() -> None:
    latencies = Latencies()
    assert latencies.percentile_us(500) == 0
    latencies.add(1 << 60)
    latencies.add(0)
    assert latencies.percentile_us(500) == 0
    assert latencies.percentile_us(1000) > 1e11
