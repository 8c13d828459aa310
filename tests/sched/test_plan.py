"""Tables: a state in, targets out, to the byte; and what holds for every state."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmtool.sched.facts import Balloon, Classes, Estimate, Facts, State, VmFacts
from nvmtool.sched.plan import make_plan
from nvmtool.sched.reasons import REASONS
from nvmtool.sched.settings import Settings

from .host import GIB, PAGE, any_facts, gib, host, plan, planned, vm

MISSING, STUCK = Balloon(driver=False), Balloon(stalled_s=5.0)

# 64 GiB, 6.4 free, half of it wanted free in the end: what is taken is 3.2 GiB, from VMs of these kinds.
IDLE = {"hot": 1, "anon": 3, "file": 2, "free": 2}


def short(*vms: VmFacts, wanted: float = 3.2, **more: Any) -> Facts:
    """Return a host in state high that wants so much (GiB) by its operator's target."""
    return host(64, 12.8 - wanted, *vms, target=0.2, **more)


@pytest.mark.parametrize(
    ("facts", "settings", "expected"),
    [
        # name: (balloon, swapped, technique, reasons), sizes in GiB
        pytest.param(short(vm("a", **IDLE)), {}, {"a": (3.2, 0, "balloon", "idle-memory")}, id="free and file pages by the balloon"),
        pytest.param(
            short(vm("a", 1, 6, 0.5, 0.5)),
            {},
            {"a": (1, 2.2, "balloon+swap", "cheaper-inactive idle-memory")},
            id="then anonymous by swapping",
        ),
        pytest.param(
            short(vm("a", 1, 6, 0.5, 0.5)),
            {"headroom": 0.03},
            {"a": (0.76, 2.44, "balloon+swap", "cheaper-inactive idle-memory")},
            id="headroom",
        ),
        pytest.param(short(vm("a", **IDLE, balloon=MISSING)), {}, {"a": (0, 3.2, "swap", "driver-missing")}, id="no driver"),
        pytest.param(short(vm("a", **IDLE, balloon=STUCK)), {}, {"a": (0, 3.2, "swap", "driver-stuck")}, id="stuck driver"),
        pytest.param(
            short(vm("a", **IDLE, balloon=STUCK), vm("b", **IDLE)),
            {},
            {"a": (0, 1.6, "swap", "driver-stuck"), "b": (1.6, 0, "balloon", "idle-memory")},
            id="idle anonymous pages of a stuck VM are swapped, for that needs no balloon",
        ),
        pytest.param(
            short(vm("a", 1, 0, 4, 3, balloon=STUCK), vm("b", **IDLE)),
            {},
            {"a": (0, 0, "none", "driver-stuck better-funded"), "b": (3.2, 0, "balloon", "idle-memory")},
            id="a stuck balloon's work goes elsewhere",
        ),
        pytest.param(
            short(vm("a", **IDLE, balloon=Balloon(max_bytes=GIB))),
            {},
            {"a": (1, 2.2, "balloon+swap", "cheaper-inactive idle-memory")},
            id="a balloon's maximum",
        ),
        pytest.param(
            short(vm("a", **IDLE, balloon=Balloon(size_bytes=GIB, max_bytes=GIB))),
            {},
            {"a": (1, 3.2, "swap", "at-maximum")},
            id="at its maximum",
        ),
        pytest.param(
            host(64, 1, vm("a", 1, 1, 2, 1), vm("b", 1, 1, 2, 1)),
            {"largest_step": 1.0},
            dict.fromkeys("ab", (1, 0.42, "balloon+swap", "below-hard idle-memory")),
            id="below hard: free pages by balloon, then anonymous by swapping, file pages last",
        ),
        pytest.param(
            short(vm("a", 1, 6, 0.5, 0.5), swap_room_bytes=0),
            {},
            {"a": (1, 0, "balloon", "idle-memory")},
            id="no room to swap on the host",
        ),
        pytest.param(
            short(vm("a", 1, 6, 0.5, 0.5), swap_room_bytes=0),
            {"guest_swaps": True},
            {"a": (3.2, 0, "balloon", "guest-swaps idle-memory")},
            id="then guests swap, if they may",
        ),
        pytest.param(
            short(vm("a", 0, 8), vm("b", 0, 8), vm("c", 4, 0, 2, 2), swap_room_bytes=GIB),
            {},
            {
                "a": (0, 0.5, "swap", "cheaper-inactive"),
                "b": (0, 0.5, "swap", "cheaper-inactive"),
                "c": (2.2, 0, "balloon", "idle-memory"),
            },
            id="VMs share the room to swap, and the rest is found elsewhere",
        ),
        pytest.param(
            short(vm("a", 1, 6, 0.5, 0.5, sharable=1.5)),
            {},
            {"a": (1, 0.7, "balloon+swap+share", "cheaper-inactive idle-memory sharable")},
            id="what can be shared is not swapped",
        ),
        pytest.param(short(vm("a", 1, 6, 0.5, 0.5)), {"may_swap": False}, {"a": (1, 0, "balloon", "idle-memory")}, id="swapping forbidden"),
        pytest.param(short(vm("a", **IDLE, minimum=7.0)), {}, {"a": (1, 0, "balloon", "idle-memory")}, id="not below its minimum"),
        pytest.param(
            short(vm("a", **IDLE, minimum=7.0)),
            {"below_minimum": True},
            {"a": (3.2, 0, "balloon", "idle-memory")},
            id="below it when told to",
        ),
        pytest.param(
            short(vm("a", **IDLE, reservation=7.0, minimum=2.0)),
            {"below_minimum": True},
            {"a": (1, 0, "balloon", "idle-memory")},
            id="never below its reservation",
        ),
        pytest.param(short(vm("a", **IDLE, reservation=8.0)), {}, {"a": (0, 0, "none", "at-guarantee")}, id="at its reservation"),
        pytest.param(
            short(vm("a", 1, 0, 5, 2), wanted=7), {}, {"a": (4, 0, "balloon", "idle-memory largest-step")}, id="half of it at a time"
        ),
        pytest.param(
            short(vm("a", 4, 0, 4, 0), vm("b", 4, 0, 4, 0, shares=3000)),
            {},
            {"a": (3.2, 0, "balloon", "idle-memory"), "b": (0, 0, "none", "better-funded")},
            id="who pays less",
        ),
        pytest.param(
            short(vm("a", 4, 0, 4, 0), vm("b", 2, 0, 2, 0), wanted=2),
            {},
            {"a": (2, 0, "balloon", "idle-memory"), "b": (0, 0, "none", "better-funded")},
            id="of equal shares the larger",
        ),
        pytest.param(
            short(vm("a", 7, 0, 1, 0), vm("b", 1, 0, 7, 0), wanted=3),
            {},
            {"a": (0, 0, "none", "better-funded"), "b": (3, 0, "balloon", "idle-memory")},
            id="idle memory is taxed",
        ),
        pytest.param(
            short(vm("a", 8), vm("b", 8, shares=1)),
            {},
            {"a": (0, 0, "none", "no-idle-memory"), "b": (0, 0, "none", "no-idle-memory")},
            id="nobody's working set for a target of the operator",
        ),
        pytest.param(
            short(dataclasses.replace(vm("a", 8), estimate=None), vm("b", **IDLE)),
            {},
            {"a": (0, 0, "none", "classes-unknown"), "b": (3.2, 0, "balloon", "idle-memory")},
            id="a VM of which nothing is known",
        ),
        pytest.param(
            host(100, 1.5, vm("a", 8), vm("b", 8, swap_room_bytes=0)),
            {"largest_step": 1.0},
            {"a": (0, 2.5, "swap", "working-set"), "b": (0, 0, "none", "no-idle-memory")},
            id="working sets below hard, and only what it takes to reach soft",
        ),
        pytest.param(
            host(100, 1.5, dataclasses.replace(vm("a", 8), estimate=None)),
            {},
            {"a": (2.5, 0, "balloon", "working-set")},
            id="an unknown guest below hard: its balloon knows better than swapping",
        ),
        pytest.param(
            host(64, 30, vm("a", 8, limit=6.0)), {"largest_step": 1.0}, {"a": (0, 2, "swap", "over-limit working-set")}, id="over its limit"
        ),
        pytest.param(
            host(64, 30, vm("a", 2, 0, 4, 2, limit=6.0)), {}, {"a": (2, 0, "balloon", "over-limit idle-memory")}, id="over its limit, idle"
        ),
        pytest.param(
            short(vm("a", 2, 0, 3, 1, balloon=Balloon(size_bytes=2 * GIB, target_bytes=gib(5.2)))),
            {},
            {"a": (5.2, 0, "none", "in-balance")},
            id="what is on its way is not ordered again",
        ),
        pytest.param(
            host(64, 32, vm("a", 2, 0, 1, 1, balloon=4), target=0.2), {}, {"a": (0, 0, "balloon", "surplus")}, id="a surplus is given back"
        ),
        pytest.param(
            host(64, 13.8, vm("a", 2, 0, 1, 1, balloon=4), target=0.2),
            {},
            {"a": (3, 0, "balloon", "surplus")},
            id="down to the goal, no further",
        ),
        pytest.param(
            host(64, 12.8, vm("a", 3.9, 0, 0.05, 0.05, balloon=4), vm("b", **IDLE), target=0.2),
            {"headroom": 0.03},
            {"a": (3.86, 0, "balloon", "needs-memory"), "b": (0.14, 0, "balloon", "idle-memory")},
            id="a guest without headroom gets it from another's idle memory",
        ),
        pytest.param(
            host(64, 12.8, vm("a", 1, 2.95, 0, 0.05, balloon=4), vm("b", **IDLE), target=0.2),
            {"headroom": 0.03},
            {"a": (3.81, 0, "balloon", "needs-memory"), "b": (0.19, 0, "balloon", "idle-memory")},
            id="a guest with idle memory that it cannot use itself",
        ),
        pytest.param(
            short(vm("a", 1, 2.95, 0, 0.05, balloon=4), vm("b", 5, 1, 1, 1, shares=4000), wanted=1),
            {"headroom": 0.03},
            {"a": (3.81, 0, "balloon", "needs-memory"), "b": (1.19, 0, "balloon", "idle-memory")},
            id="is not taken from meanwhile, though it pays least",
        ),
        pytest.param(
            host(64, 14, vm("a", 6, swapped=2.0), target=0.2),
            {},
            {"a": (0, 0.8, "swap", "needs-memory")},
            id="a working set is swapped in again",
        ),
        pytest.param(
            host(64, 13.8, vm("a", 6, balloon=2, swapped=2.0), target=0.2),
            {},
            {"a": (2, 1, "swap", "needs-memory")},
            id="before its balloon is made smaller",
        ),
        pytest.param(
            host(64, 12.8, vm("a", 3.8, 0, 0.1, 0.1, balloon=4), vm("b", **IDLE), target=0.2),
            {"headroom": 0.03},
            {"a": (4, 0, "none", "in-balance"), "b": (0, 0, "none", "in-balance")},
            id="half of the headroom may go",
        ),
        pytest.param(
            host(64, 14, vm("a", 1, 5, swapped=2.0), target=0.2),
            {},
            {"a": (0, 2, "none", "in-balance")},
            id="idle pages stay where they are",
        ),
        pytest.param(
            host(64, 12.8, vm("a", 4, balloon=4, reservation=6.0), vm("b", **IDLE), target=0.2),
            {},
            {"a": (2, 0, "balloon", "guaranteed"), "b": (2, 0, "balloon", "idle-memory")},
            id="what was guaranteed",
        ),
        pytest.param(host(64, 12.6, vm("a", **IDLE), target=0.2), {}, {"a": (0, 0, "none", "in-balance")}, id="within the deadband"),
        pytest.param(host(64, 3, vm("a", **IDLE)), {}, {"a": (0, 0, "none", "in-balance")}, id="between soft and high, never below"),
        pytest.param(
            host(64, 3, vm("a", **IDLE), before=State.SOFT), {}, {"a": (0.84, 0, "balloon", "idle-memory")}, id="the same after soft"
        ),
    ],
)
def test_targets(facts: Facts, settings: dict[str, Any], expected: dict[str, tuple[float, float, str, str]]) -> None:
    found = planned(facts, **settings)
    assert {name: (each.technique, " ".join(each.reasons)) for name, each in found.items()} == {
        name: (technique, reasons) for name, (_, _, technique, reasons) in expected.items()
    }
    for name, (balloon, swapped, _, _) in expected.items():
        # Goals are whole pages, rounded up once, and once a VM.
        assert abs(found[name].balloon_bytes - gib(balloon)) <= 2 * PAGE, found[name]
        assert abs(found[name].swap_bytes - gib(swapped)) <= 2 * PAGE, found[name]
        memory = next(each.memory_bytes for each in facts.vms if each.name == name)
        assert found[name].target_bytes == memory - found[name].balloon_bytes - found[name].swap_bytes - found[name].share_bytes


def test_sampled_classes_count_as_idle_only_to_the_low_end() -> None:
    sure = vm("a", **IDLE)
    middle = sure.estimate.classes  # type: ignore[union-attr]
    low = dataclasses.replace(middle, inactive_anon=2 * GIB, inactive_file=GIB, free=GIB)
    unsure = dataclasses.replace(sure, estimate=Estimate(middle, low, middle, "sample", 385))
    found = planned(short(unsure, wanted=7), largest_step=1.0)["a"]
    assert (found.balloon_bytes, found.swap_bytes) == (2 * GIB, 2 * GIB)


def test_memory_that_the_guest_never_touched_is_not_counted_as_taken() -> None:
    # 2 GiB free, but only 7 of 8 GiB are really there.
    guest = vm("a", 1, 0, 5, 2, resident=7.0)
    found = plan(short(guest, wanted=6.5), largest_step=1.0)
    assert (found.vms[0].balloon_bytes, found.host.short_bytes) == (6 * GIB, gib(0.5) + PAGE)


def test_what_stays_swapped_is_idle() -> None:
    guest = vm("a", 1, 3, 2, 2, swapped_bytes=3 * GIB)
    found = planned(short(guest, wanted=6), largest_step=1.0)["a"]
    assert (found.balloon_bytes, found.swap_bytes) == (4 * GIB, 3 * GIB)


def test_a_stuck_balloon_is_told_to_stay_where_it_is() -> None:
    stuck = Balloon(size_bytes=2 * GIB, target_bytes=gib(5.2), stalled_s=5.0)
    found = planned(short(vm("a", 2, 0, 3, 1, balloon=stuck), vm("b", **IDLE)))["a"]
    assert (found.balloon_bytes, found.command_bytes, found.technique) == (2 * GIB, 2 * GIB, "none")


def test_nothing_is_told_to_a_missing_driver_or_to_one_that_knows() -> None:
    for balloon in (MISSING, Balloon(size_bytes=GIB), Balloon(size_bytes=GIB, target_bytes=GIB + 1)):
        found = plan(host(64, 12.8, vm("a", 1, balloon=balloon), target=0.2))
        assert found.vms[0].command_bytes is None
        assert not found.changes_anything


@pytest.mark.parametrize(("since", "balloon"), [(3.0, 4.0), (29.9, 4.0), (30.0, 0.0), (None, 0.0)])
def test_nothing_is_given_back_during_the_cool_down(since: float | None, balloon: float) -> None:
    guest = dataclasses.replace(vm("a", 2, 0, 1, 1, balloon=4), since_shrink_s=since)
    found = planned(host(64, 32, guest, target=0.2))["a"]
    assert found.balloon_bytes == gib(balloon)
    assert found.reason == ("cool-down" if balloon else "surplus")


@pytest.mark.parametrize(("free", "taken"), [(9.6, False), (2.0, True)])
def test_a_cool_down_waits_for_nobody_below_soft(free: float, taken: bool) -> None:
    guest = dataclasses.replace(vm("a", **IDLE), since_grow_s=3.0)
    found = planned(host(64, free, guest, target=0.2))["a"]
    assert (found.balloon_bytes > 0) is taken
    assert ("cool-down" in found.reasons) is not taken


def test_the_host_is_told_of_what_nobody_can_give() -> None:
    found = plan(short(vm("a", 7, 0, 1), wanted=3)).host
    assert (found.taken_bytes, found.short_bytes, found.wanted_bytes) == (GIB, 2 * GIB + PAGE, 3 * GIB + PAGE)


def test_a_host_without_vms() -> None:
    found = plan(host(64, 1, target=0.2))
    assert (found.vms, found.host.state, found.host.taken_bytes) == ((), State.LOW if 1 / 64 < 0.01 else State.HARD, 0)


@settings(deadline=None)
@given(any_facts())
def test_a_plan_never_breaks_a_promise(facts: Facts) -> None:
    for each, before in zip(make_plan(facts).vms, facts.vms, strict=True):
        assert each.balloon_bytes >= 0
        assert each.swap_bytes >= 0
        assert each.target_bytes == before.memory_bytes - each.balloon_bytes - each.swap_bytes - each.share_bytes
        if each.change_bytes > 0:
            assert each.target_bytes >= before.reservation_bytes
            assert each.target_bytes >= before.minimum_bytes
            assert each.change_bytes <= before.held_bytes / 2 + PAGE
        if each.balloon_change_bytes > 0:
            assert before.balloon.driver
            assert before.balloon.stalled_s < 5
        if each.swap_change_bytes > 0 and before.swap_room_bytes is not None:
            assert each.swap_change_bytes + each.share_bytes <= before.swap_room_bytes
        assert set(each.reasons) <= REASONS.keys()


@settings(deadline=None)
@given(any_facts())
def test_sums_are_conserved(facts: Facts) -> None:
    found = make_plan(facts)
    changes = [each.change_bytes for each in found.vms]
    assert sum(change for change in changes if change > 0) == found.host.taken_bytes
    assert -sum(change for change in changes if change < 0) == found.host.given_bytes
    if facts.host.swap_room_bytes is not None:
        assert sum(max(0, each.swap_change_bytes + each.share_bytes) for each in found.vms) <= facts.host.swap_room_bytes
    if found.host.wanted_bytes:
        assert found.host.taken_bytes + found.host.short_bytes >= found.host.wanted_bytes


@settings(deadline=None)
@given(any_facts())
def test_nothing_is_given_that_is_not_there(facts: Facts) -> None:
    found = make_plan(facts).host
    assert (
        found.given_bytes
        <= max(0, found.free_bytes + _pending(facts) - found.goal_bytes) + max(0, found.taken_bytes - found.wanted_bytes) + PAGE
    )


def _pending(facts: Facts) -> int:
    """Return what balloons that move will still bring."""
    total = 0
    for each in facts.vms:
        if each.balloon.driver and each.balloon.stalled_s < 5 and each.balloon.target_bytes is not None:
            total += each.balloon.target_bytes - each.balloon.size_bytes
    return max(0, total)


@settings(deadline=None)
@given(any_facts())
def test_nobodys_working_set_is_taken_while_there_is_idle_memory(facts: Facts) -> None:
    settings = Settings(largest_step=1.0)
    found = make_plan(facts, settings)
    if not any("working-set" in each.reasons and "over-limit" not in each.reasons for each in found.vms):
        return
    assert found.host.state >= State.HARD
    for each, before in zip(found.vms, facts.vms, strict=True):
        if before.estimate is None or not before.balloon.driver or before.balloon.stalled_s >= 5 or before.resident_bytes is not None:
            continue
        target = before.balloon.size_bytes if before.balloon.target_bytes is None else before.balloon.target_bytes
        left = before.estimate.low.free + before.estimate.low.inactive_file - (each.balloon_bytes - before.balloon.size_bytes)
        may = each.target_bytes - max(before.reservation_bytes, before.minimum_bytes)
        if target != before.balloon.size_bytes or before.swapped_bytes > before.estimate.low.inactive_anon:
            continue
        # Idle pages that its balloon could still have had: none beyond headroom, unless a promise keeps them.
        assert min(left - before.memory_bytes * settings.headroom, may) <= 2 * PAGE, (each, before)


@settings(deadline=None)
@given(any_facts(), st.data())
def test_more_shares_never_mean_a_lower_target(facts: Facts, data: st.DataObject) -> None:
    if not facts.vms:
        return
    which = data.draw(st.integers(0, len(facts.vms) - 1))
    # The room to swap is divided once, by what was first wanted of it, which is not monotone.
    facts = dataclasses.replace(facts, host=dataclasses.replace(facts.host, swap_room_bytes=None))
    more = dataclasses.replace(facts.vms[which], shares=facts.vms[which].shares * 2)
    richer = dataclasses.replace(facts, vms=(*facts.vms[:which], more, *facts.vms[which + 1 :]))
    before, after = make_plan(facts).vms[which], make_plan(richer).vms[which]
    assert after.target_bytes >= before.target_bytes - len(facts.vms) * PAGE
    assert after.entitlement_bytes >= before.entitlement_bytes - len(facts.vms) * PAGE


@settings(deadline=None)
@given(any_facts())
def test_a_plan_is_a_pure_function(facts: Facts) -> None:
    assert make_plan(facts) == make_plan(facts)


@settings(deadline=None)
@given(any_facts(), st.permutations(range(5)))
def test_the_order_of_the_vms_changes_pages_at_most(facts: Facts, order: list[int]) -> None:
    shuffled = dataclasses.replace(facts, vms=tuple(facts.vms[index] for index in order if index < len(facts.vms)))
    before = {each.name: each for each in make_plan(facts).vms}
    for each in make_plan(shuffled).vms:
        assert abs(each.target_bytes - before[each.name].target_bytes) <= 2 * len(facts.vms) * PAGE


def test_json_has_what_scripts_rely_on() -> None:
    found = plan(short(vm("a", **IDLE), dataclasses.replace(vm("b", 1), estimate=None))).as_json()
    assert found.keys() >= {"host", "vms"}
    assert found["host"].keys() >= {"state", "free_bytes"}
    keys = {"name", "classes", "entitlement_bytes", "target_bytes", "balloon_bytes", "swap_bytes", "technique", "reason"}
    assert all(each.keys() >= keys for each in found["vms"])
    assert found["vms"][0]["classes"] == {
        **Classes().as_dict(),
        "active_anon": GIB,
        "inactive_anon": 3 * GIB,
        "inactive_file": 2 * GIB,
        "free": 2 * GIB,
    }
    assert (found["vms"][1]["classes"], found["vms"][1]["source"]) == (None, "unknown")
