"""The host's state: where it begins and ends, and that it does not flap; settings that no policy could follow."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmtool.errors import UsageError
from nvmtool.sched.facts import State
from nvmtool.sched.reclaim import host_state
from nvmtool.sched.settings import Settings, Terms, with_terms

from .host import GIB, host, vm

HIGH, SOFT, HARD, LOW = State
SETTINGS = Settings()


@pytest.mark.parametrize(
    ("free", "before", "after"),
    [
        (100, None, HIGH),
        (60, HIGH, HIGH),
        (40, HIGH, HIGH),
        (39, HIGH, SOFT),
        (39, None, SOFT),
        (20, SOFT, SOFT),
        (19, SOFT, HARD),
        (10, HARD, HARD),
        (9, HARD, LOW),
        (0, HIGH, LOW),
        (19, LOW, LOW),
        (20, LOW, HARD),
        (39, HARD, HARD),
        (40, HARD, SOFT),
        (59, SOFT, SOFT),
        (60, SOFT, HIGH),
        (60, LOW, HIGH),
        (45, LOW, SOFT),
    ],
)
def test_a_state_begins_below_its_threshold_and_ends_at_the_next_better_one(free: int, before: State | None, after: State) -> None:
    assert host_state(free, 1000, before, SETTINGS) is after


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50))
def test_noise_within_one_gap_changes_the_state_at_most_once(noise: list[int]) -> None:
    for lower, upper in ((40, 60), (20, 40), (10, 20)):
        state, changes = None, 0
        for each in noise:
            after = host_state(lower * 1000 + each * (upper - lower - 1), 1_000_000, state, SETTINGS)
            changes += state is not None and after is not state
            state = after
        assert changes <= 1


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000), st.none() | st.sampled_from(State))
def test_less_free_memory_is_never_a_better_state(less: int, more: int, before: State | None) -> None:
    less, more = sorted((less, more))
    assert host_state(less, 1000, before, SETTINGS) >= host_state(more, 1000, before, SETTINGS)


@pytest.mark.parametrize(
    "settings",
    [
        {"tax": 1.0},
        {"tax": -0.1},
        {"tax": float("nan")},
        {"high": 0.03},
        {"low": 0.02},
        {"deadband": 1.1},
        {"largest_step": 0.0},
        {"cool_down_s": -1.0},
        {"cool_down_s": float("inf")},
        {"free_target": 1.0},
    ],
)
def test_settings_that_no_policy_could_follow(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings)) if "high" not in settings and "low" not in settings else "thresholds"):
        Settings(**settings)


def test_terms_stand_in_for_what_the_world_says() -> None:
    facts = host(64, 30, vm("a", 1), vm("b", 1, shares=7))
    found = with_terms(facts, {"a": Terms(minimum_bytes=GIB, shares=2000), "b": Terms(limit_bytes=GIB, reservation_bytes=5)})
    a, b = found.vms
    assert (a.minimum_bytes, a.shares, a.limit_bytes, a.reservation_bytes) == (GIB, 2000, None, 0)
    assert (b.minimum_bytes, b.shares, b.limit_bytes, b.reservation_bytes) == (0, 7, GIB, 5)
    with pytest.raises(UsageError, match="no VM is called c"):
        with_terms(facts, {"c": Terms()})
