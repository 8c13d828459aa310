"""What guests report, and what they report when they have nothing to say."""

from __future__ import annotations

import pytest

from nvmtool.sched.facts import Classes
from nvmtool.sched.reports import from_balloon_statistics, from_meminfo

MIB = 1 << 20
NONE = (1 << 64) - 1
WHOLE = {
    "stat-total-memory": 1000 * MIB,
    "stat-free-memory": 300 * MIB,
    "stat-disk-caches": 400 * MIB,
    "stat-available-memory": 550 * MIB,
    "stat-swap-in": 0,
}


def test_balloon_statistics() -> None:
    found = from_balloon_statistics(WHOLE)
    assert found is not None
    assert found.classes == Classes(active_anon=300 * MIB, active_file=150 * MIB, inactive_file=250 * MIB, free=300 * MIB)
    assert (found.source, found.low, found.high) == ("report", found.classes, found.classes)


@pytest.mark.parametrize("absent", [NONE, -1, None])
@pytest.mark.parametrize("name", ["stat-available-memory", "stat-disk-caches"])
def test_what_an_older_driver_leaves_out_is_taken_for_used(name: str, absent: int | None) -> None:
    found = from_balloon_statistics({**WHOLE, name: absent})  # type: ignore[dict-item]
    assert found is not None
    assert found.classes.inactive_file == 0
    assert found.classes.working_set_bytes == 700 * MIB


@pytest.mark.parametrize(
    "stats",
    [
        {},
        dict.fromkeys(WHOLE, NONE),
        dict.fromkeys(WHOLE, -1),
        {**WHOLE, "stat-total-memory": 0},
        {**WHOLE, "stat-free-memory": 1001 * MIB},
        {**WHOLE, "stat-disk-caches": 701 * MIB},
        {**WHOLE, "stat-available-memory": 1001 * MIB},
        {**WHOLE, "stat-free-memory": NONE},
        {**WHOLE, "stat-free-memory": True},
        {**WHOLE, "stat-free-memory": "300"},
    ],
)
def test_statistics_that_cannot_be_are_no_report(stats: dict[str, int]) -> None:
    assert from_balloon_statistics(stats) is None


MEMINFO = """\
MemTotal:        1000 kB
MemFree:          100 kB
Active(anon):     200 kB
Inactive(anon):   150 kB
Active(file):      50 kB
Inactive(file):   250 kB
SReclaimable:      30 kB
HugePages_Total:       0
"""


def test_meminfo() -> None:
    found = from_meminfo(MEMINFO)
    assert found is not None
    assert found.classes == Classes(*(1024 * size for size in (220, 200, 50, 150, 280, 100)))


@pytest.mark.parametrize(
    "text", ["", "nonsense", MEMINFO.replace("MemFree", "Free"), MEMINFO.replace("1000 kB", "700 kB"), "MemTotal: x kB"]
)
def test_a_meminfo_that_cannot_be_is_no_report(text: str) -> None:
    assert from_meminfo(text) is None
