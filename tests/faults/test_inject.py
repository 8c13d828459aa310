"""A few of the faults of `make faults`, and a few of the kills of `make crash-long`."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from . import host_kills
from .inject import faults, have_strace, points, run_fault
from .kills import run_chain
from .run import make_bench
from .swap_kills import run_rounds

if TYPE_CHECKING:
    from pathlib import Path

_CHANGING = ("pwritev2", "pwrite64", "pwritev", "fdatasync", "fsync", "rename", "linkat")


@pytest.mark.skipif(not have_strace(), reason="strace is not installed")
@pytest.mark.parametrize(
    "name",
    [
        "write of one block",
        "purge virtblock",
        "format",
        "receive",
        "receive of what changed",
        "defrag",
        "vm suspend",
        "vm resume",
        "host return",
    ],
)
def test_failed_and_killed_system_calls_lose_nothing(name: str, tmp_path: Path) -> None:
    bench = make_bench(name, tmp_path)
    every = [fault for fault in faults(points(bench)) if fault.point.call in _CHANGING]
    for fault in random.Random(name).sample(every, 3):
        _, problems = run_fault(bench, fault)
        assert problems == [], str(fault)


def test_a_chain_of_killed_commands_loses_nothing() -> None:
    figures = run_chain(seed=1, kills=4)
    assert figures.failures == []
    assert figures.kills >= 4


def test_a_defragmentation_killed_beside_a_running_vm_that_is_killed_too_loses_no_page() -> None:
    figures = run_rounds(seed=3, kills=4, per_round=4)
    assert figures.failures == []
    assert figures.defrag_kills == 4
    assert figures.verified_pages > 0


def test_commands_killed_beside_a_guest_that_is_killed_too_lose_no_page_of_any_vm() -> None:
    figures = host_kills.run_rounds(seed=2, kills=8)
    assert figures.failures == []
    assert figures.kills == 8
    assert figures.guest_ends == 1
