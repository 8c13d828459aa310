"""Nonsense in facts: what a guest says wrongly costs only that guest its trust; what a host says wrongly is an error."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nvmtool.errors import UsageError
from nvmtool.sched.doubts import sound_facts, take_in_order
from nvmtool.sched.facts import Balloon, Classes, Estimate, Facts, HostFacts
from nvmtool.sched.plan import make_plan

from .host import GIB, host, planned, vm

ALL_ONES = (1 << 64) - 1
SOUND = vm("a", 1, 3, 2, 2)
OTHER = vm("b", 1, 3, 2, 2)


def reported(**sizes: int) -> Estimate:
    return Estimate.reported(dataclasses.replace(SOUND.estimate.classes, **sizes))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"estimate": Estimate.reported(Classes(*[ALL_ONES] * 6))}, "statistics-missing"),
        ({"estimate": Estimate.reported(Classes(*[-1] * 6))}, "statistics-missing"),
        ({"estimate": reported(free=-GIB, active_anon=4 * GIB)}, "statistics-missing"),
        ({"estimate": Estimate.reported(Classes())}, "statistics-missing"),
        ({"estimate": reported(free=9 * GIB)}, "statistics-nonsense"),
        ({"balloon": Balloon(size_bytes=9 * GIB)}, "balloon-nonsense"),
        ({"balloon": Balloon(size_bytes=-1)}, "balloon-nonsense"),
        ({"balloon": Balloon(size_bytes=ALL_ONES)}, "balloon-nonsense"),
        ({"balloon": Balloon(target_bytes=9 * GIB)}, "balloon-target-nonsense"),
        ({"limit_bytes": GIB, "reservation_bytes": 2 * GIB}, "limit-below-reservation"),
        ({"reservation_bytes": 9 * GIB}, "reservation-above-memory"),
        ({"minimum_bytes": 9 * GIB}, "minimum-above-memory"),
        ({"shares": 0}, "no-shares"),
        ({"shares": -5}, "no-shares"),
        ({"swapped_bytes": 9 * GIB}, "swapped-nonsense"),
    ],
)
def test_one_vms_nonsense_is_named_and_the_others_are_governed(change: dict[str, Any], code: str) -> None:
    plan = make_plan(host(64, 6, dataclasses.replace(SOUND, **change), OTHER, target=0.2))
    assert [(doubt.vm, doubt.code) for doubt in plan.doubts] == [("a", code)]
    assert plan.doubts[0].what
    assert plan.vms[1].change_bytes > 0
    assert plan.as_json()["doubts"] == [{"vm": "a", "code": code, "what": plan.doubts[0].what}]


@pytest.mark.parametrize("code", ["statistics-missing", "statistics-nonsense"])
def test_a_guest_that_is_not_believed_loses_nothing_above_hard(code: str) -> None:
    free = ALL_ONES if code == "statistics-missing" else 9 * GIB
    plan = make_plan(host(64, 3, dataclasses.replace(SOUND, estimate=reported(free=free)), target=0.2))
    assert plan.vms[0].reason == "classes-unknown"
    assert plan.vms[0].change_bytes == 0
    assert plan.host.short_bytes == plan.host.wanted_bytes > 0


def test_a_limit_below_the_reservation_does_not_break_the_promise() -> None:
    plan = make_plan(host(64, 40, dataclasses.replace(SOUND, limit_bytes=GIB, reservation_bytes=6 * GIB)))
    assert plan.vms[0].target_bytes == 6 * GIB


def test_a_report_older_than_the_balloon_is_cut_where_balloons_take() -> None:
    late = dataclasses.replace(SOUND, balloon=Balloon(size_bytes=3 * GIB))
    facts, doubts = sound_facts(host(64, 30, late))
    assert [doubt.code for doubt in doubts] == ["statistics-late"]
    assert facts.vms[0].estimate == Estimate.reported(Classes(active_anon=GIB, inactive_anon=3 * GIB, inactive_file=GIB))


def test_what_no_class_has_is_not_to_be_had() -> None:
    larger = dataclasses.replace(SOUND, memory_bytes=9 * GIB)
    facts, doubts = sound_facts(host(64, 30, larger))
    assert doubts == ()
    assert facts.vms[0].estimate == reported(unreclaimable=GIB)
    found = planned(host(64, 30, larger, target=0.9), largest_step=1.0)["a"]
    assert (found.balloon_bytes, found.swap_bytes) == (4 * GIB, 3 * GIB)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (HostFacts(0, 0), "no memory"),
        (HostFacts(GIB, 2 * GIB), "2 GiB free is more than its 1 GiB"),
        (HostFacts(-GIB, 0), "no size"),
        (HostFacts(GIB, -1), "no size"),
        (HostFacts(ALL_ONES, 0), "no size"),
        (HostFacts(GIB, 0, -1), "no size"),
        (HostFacts(GIB, 0, free_target=1.0), "free_target"),
        (HostFacts(GIB, 0, free_target=float("nan")), "free_target"),
    ],
)
def test_a_host_of_which_nothing_can_be_decided_is_an_error(facts: HostFacts, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_plan(Facts(facts, (SOUND,)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"memory_bytes": 0}, "a: it has no memory"),
        ({"memory_bytes": -1}, "a: memory -1"),
        ({"memory_bytes": ALL_ONES}, "a: memory"),
        ({"swapped_bytes": -1}, "a: swapped"),
        ({"resident_bytes": -1}, "a: resident"),
        ({"swap_room_bytes": -1}, "a: swap room"),
        ({"name": "b"}, "two VMs are called b"),
    ],
)
def test_a_vm_that_cannot_be_is_an_error_with_its_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_plan(host(64, 3, dataclasses.replace(SOUND, **change), OTHER))


def test_a_balloon_takes_what_hurts_least_first() -> None:
    classes = Classes(*[10] * 6)
    order = ["free", "inactive_file", "inactive_anon", "active_file", "active_anon", "unreclaimable"]
    for taken in range(0, 61, 5):
        left = take_in_order(classes, taken).as_dict()
        assert [left[name] for name in order] == [max(0, min(10, 10 * (index + 1) - taken)) for index in range(6)]
    assert take_in_order(classes, 99).total_bytes == 0
