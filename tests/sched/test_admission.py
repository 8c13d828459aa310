"""Admission: yes or no, with whose memory it would be."""

from __future__ import annotations

from typing import Any

import pytest

from nvmtool.errors import UsageError
from nvmtool.sched.admission import ADMISSION_REASONS, Newcomer, admit
from nvmtool.sched.facts import Classes, Facts
from nvmtool.sched.settings import Settings

from .host import GIB, PAGE, gib, host, vm

# 64 GiB, of which 6 % (3.84) must stay free.
IDLE = vm("idle", 1, 3, 2, 2)
BUSY = vm("busy", 8)
SETTINGS = Settings(headroom=0.0)


@pytest.mark.parametrize(
    ("facts", "newcomer", "reason", "reclaim", "short"),
    [
        (host(64, 12, IDLE, BUSY), Newcomer(8 * GIB), "fits", {}, 0),
        (host(64, 10, IDLE, BUSY), Newcomer(8 * GIB), "fits-with-idle-memory", {"idle": 1.84}, 0),
        (host(64, 4.84, IDLE, BUSY), Newcomer(8 * GIB), "fits-with-idle-memory", {"idle": 7}, 0),
        (host(64, 4, IDLE, BUSY), Newcomer(8 * GIB), "working-sets", {"idle": 7}, 0.84),
        (
            host(64, 4, IDLE, BUSY),
            Newcomer(8 * GIB, classes=Classes(active_anon=GIB, inactive_file=7 * GIB)),
            "fits-with-idle-memory",
            {"idle": 0.84},
            0,
        ),
        (host(64, 4, IDLE, BUSY), Newcomer(8 * GIB, 2 * GIB, Classes(active_anon=GIB)), "fits-with-idle-memory", {"idle": 1.84}, 0),
        (host(64, 5, IDLE, vm("b", 1, 0, 7, minimum=8.0)), Newcomer(8 * GIB), "fits-with-idle-memory", {"idle": 6.84}, 0),
        (host(64, 20, vm("a", 40, reservation=40.0)), Newcomer(30 * GIB, 19 * GIB, Classes(free=GIB)), "guarantees", {"idle": 0}, None),
        (host(64, 20, target=0.9), Newcomer(GIB), "working-sets", {}, None),
        (host(64, 64), Newcomer(63 * GIB), "working-sets", {}, None),
        (host(64, 64), Newcomer(60 * GIB), "fits", {}, 0),
    ],
)
def test_answers(facts: Facts, newcomer: Newcomer, reason: str, reclaim: dict[str, float], short: float | None) -> None:
    found = admit(facts, newcomer, SETTINGS)
    assert (found.reason, found.admitted) == (reason, reason.startswith("fits"))
    assert reason in ADMISSION_REASONS
    for name, size in reclaim.items():
        assert dict(found.reclaim).get(name, 0) == pytest.approx(gib(size), abs=2 * PAGE)
    if short is not None:
        assert found.short_bytes == pytest.approx(gib(short), abs=2 * PAGE)
    assert sum(size for _, size in found.reclaim) == found.reclaim_bytes
    assert found.need_bytes - max(0, found.free_bytes - found.goal_bytes) <= found.reclaim_bytes + found.short_bytes + PAGE


def test_who_would_suffer_is_named() -> None:
    found = admit(host(64, 4, IDLE, BUSY, vm("safe", 4, reservation=4.0)), Newcomer(12 * GIB), SETTINGS)
    suffering = dict(found.suffering)
    assert found.reason == "working-sets"
    assert "safe" not in suffering
    assert suffering["busy"] > suffering.get("idle", 0)
    assert sum(suffering.values()) == found.short_bytes


def test_it_is_the_same_in_json() -> None:
    found = admit(host(64, 4, IDLE, BUSY), Newcomer(8 * GIB), SETTINGS).as_json()
    assert found["admitted"] is False
    assert found["reclaim"] == [{"name": "idle", "bytes": 7 * GIB}]
    assert {"need_bytes", "free_bytes", "short_bytes", "guaranteed_bytes", "capacity_bytes", "suffering", "reason"} <= found.keys()


@pytest.mark.parametrize(
    "newcomer",
    [{"memory_bytes": 0}, {"memory_bytes": GIB, "reservation_bytes": 2 * GIB}, {"memory_bytes": GIB, "classes": Classes(free=2 * GIB)}],
)
def test_a_vm_that_could_not_be_is_refused(newcomer: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Newcomer(**newcomer)
