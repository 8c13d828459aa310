"""Every crash state of a host's file keeps the promise, and planted bugs are found; `make crash` does all of them and all pairs."""

from __future__ import annotations

import random

import pytest

from tests.crash.enumeration import Effort
from tests.crash.host.suite import suite
from tests.crash.planting import planted
from tests.crash.selfproof import find_bug

SEED = 1
EFFORT = Effort(most=6, samples=1, prove_one_of=500, depth=1)
PAIRS = ["vm-create+power-on", "suspend+restart"]
_QUICKLY = random.Random(SEED).sample([bug.name for bug in suite().bugs], 6)


def test_every_operation_cut_off_anywhere_shows_records_as_one_of_its_transactions_left_them() -> None:
    judge = suite().enumerator("", EFFORT, SEED)
    for workload in [*suite().operations, *PAIRS]:
        for recording in suite().recordings(workload):
            judge.run(recording)
    judge.close()
    assert judge.tally.failures == []
    assert judge.tally.counts["workloads"] == len(suite().operations) + len(PAIRS)
    assert judge.tally.counts["states"] > 2_500


@pytest.mark.parametrize("name", _QUICKLY)
def test_a_planted_bug_is_found(name: str) -> None:
    [bug] = [bug for bug in suite().bugs if bug.name == name]
    assert find_bug(bug, [suite()], SEED)


def test_every_planted_bug_fits_the_source() -> None:
    for bug in suite().bugs:
        with planted(bug):
            pass


def test_without_a_bug_the_walk_meets_every_promise(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert suite().prove(tmp_path_factory.mktemp("walk"), "walk") == []
