"""Sampling: the intervals are as narrow as promised, hold as often as promised, and the classes add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmtool.errors import UsageError
from nvmtool.sched.classes import DEFAULT_FRAMES, NOT_COUNTED, estimate_from_counts, frames_for, sample_classes, wilson_interval
from nvmtool.sched.facts import CLASS_NAMES

GIB = 1 << 30


def test_the_default_keeps_every_interval_within_five_points() -> None:
    assert frames_for(0.05) == DEFAULT_FRAMES == 385
    for found in range(DEFAULT_FRAMES + 1):
        low, high = wilson_interval(found, DEFAULT_FRAMES)
        share = found / DEFAULT_FRAMES
        assert share - 0.05 <= low <= share <= high <= share + 0.05, found


@pytest.mark.parametrize("points", [0.01, 0.02, 0.05, 0.1])
def test_one_frame_less_would_not_do(points: float) -> None:
    def farthest(n: int) -> float:
        ends = [wilson_interval(found, n) for found in range(n + 1)]
        return max(max(found / n - low, high - found / n) for found, (low, high) in enumerate(ends))

    n = frames_for(points)
    assert farthest(n) <= points
    assert farthest(n - 2) > points


def test_known_intervals() -> None:
    # Brown, Cai and DasGupta 2001 give these for n = 10, to two places.
    assert [round(end, 4) for end in wilson_interval(0, 10)] == [0, 0.2775]
    assert [round(end, 4) for end in wilson_interval(5, 10)] == [0.2366, 0.7634]
    assert [round(end, 4) for end in wilson_interval(10, 10)] == [0.7225, 1]


@pytest.mark.parametrize("share", [0.005, 0.03, 0.2, 0.5, 0.8, 0.97])
def test_intervals_hold_in_about_95_of_100_samples(share: float) -> None:
    found = np.random.default_rng(7).binomial(DEFAULT_FRAMES, share, 4000)
    ends = [wilson_interval(int(each), DEFAULT_FRAMES) for each in range(DEFAULT_FRAMES + 1)]
    holds = sum(ends[each][0] <= share <= ends[each][1] for each in found)
    assert holds / 4000 > 0.93


@settings(deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=6, max_size=6).filter(any), st.integers(0, 1 << 50))
def test_scaled_classes_add_up_and_lie_in_their_intervals(counts: list[int], memory: int) -> None:
    estimate = estimate_from_counts(counts, memory)
    assert estimate.classes.total_bytes == memory
    for name in CLASS_NAMES:
        low, middle, high = (getattr(each, name) for each in (estimate.low, estimate.classes, estimate.high))
        assert 0 <= low <= middle + 1
        assert middle - 1 <= high <= memory


def test_a_sample_finds_a_guests_classes() -> None:
    nframes = 1 << 21  # 8 GiB
    borders = np.cumsum([nframes // 32, nframes // 2, nframes // 16, nframes // 8, nframes // 8])

    def class_of(frames: np.ndarray) -> np.ndarray:
        return np.searchsorted(borders, frames, side="right")

    estimate = sample_classes(nframes, class_of, 8 * GIB, seed=3)
    assert estimate is not None
    assert (estimate.source, estimate.nsampled) == ("sample", DEFAULT_FRAMES)
    shares = (1 / 32, 1 / 2, 1 / 16, 1 / 8, 1 / 8, 5 / 32)
    for name, share in zip(CLASS_NAMES, shares, strict=True):
        assert getattr(estimate.low, name) <= share * 8 * GIB <= getattr(estimate.high, name), name


def test_frames_are_asked_about_once_each_and_not_all_the_same_ones() -> None:
    asked: list[np.ndarray] = []

    def class_of(frames: np.ndarray) -> np.ndarray:
        asked.append(frames)
        return np.zeros(len(frames), int)

    for nframes in (385, 386, 1000, 1 << 30):
        sample_classes(nframes, class_of, GIB)
        sample_classes(nframes, class_of, GIB)
        first, second = asked[-2:]
        assert len(set(first.tolist())) == len(first) == DEFAULT_FRAMES
        assert 0 <= first.min() <= first.max() < nframes
        assert nframes == 385 or first.tolist() != second.tolist()


def test_a_guest_smaller_than_the_sample_is_known_exactly() -> None:
    estimate = sample_classes(100, lambda frames: frames % 2 * 5, 100 * 4096)
    assert estimate is not None
    assert estimate.low == estimate.classes == estimate.high
    assert (estimate.classes.unreclaimable, estimate.classes.free) == (50 * 4096, 50 * 4096)


def test_frames_in_the_balloon_do_not_count() -> None:
    estimate = sample_classes(1000, lambda frames: np.where(frames < 500, NOT_COUNTED, 5), 500 * 4096, nsampled=1000)
    assert estimate is not None
    assert (estimate.classes.free, estimate.nsampled) == (500 * 4096, 500)
    assert sample_classes(1000, lambda frames: np.full(len(frames), NOT_COUNTED), 0) is None


@pytest.mark.parametrize("answer", [lambda f: f[:-1] * 0, lambda f: f * 0 + 6, lambda f: f * 0 - 1])
def test_answers_that_are_no_classes_are_refused(answer) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError):
        sample_classes(1000, answer, GIB)
