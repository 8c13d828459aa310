"""Every crash state of a swap file keeps the promise, and planted bugs are found; `make crash` does all of them and all pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.enumeration import Effort
from tests.crash.planting import planted
from tests.crash.selfproof import find_bug
from tests.crash.swap.suite import suite

SEED = 1
EFFORT = Effort(most=6, samples=2, prove_one_of=500, depth=1)
PAIRS = ["in-whole-block+out-into-new-block", "in-lazily+out-whole-block"]
FOUND_QUICKLY = [
    "swap: the slot of a page that was swapped in is free at once",
    "swap: the first record leaves out the counts of frames that came back",
    "mover: a frame that left is moved all the same",
    "swap: a killed process's storage stays",
    "page file: fence without fdatasync",
]


def test_every_operation_cut_off_anywhere_shows_each_page_as_before_or_after() -> None:
    judge = suite().enumerator("", EFFORT, SEED)
    for workload in [*suite().operations, *PAIRS]:
        for recording in suite().recordings(workload):
            judge.run(recording)
    judge.close()
    assert judge.tally.failures == []
    assert judge.tally.counts["workloads"] == len(suite().operations) + len(PAIRS)
    assert judge.tally.counts["states"] > 5_000


@pytest.mark.parametrize("name", ["out-into-new-block", "in-whole-block", "relocate", "relocate-one-returns"])
def test_at_each_fence_the_real_file_is_what_the_seam_was_told(tmp_path: Path, name: str) -> None:
    assert suite().prove(tmp_path, name) == []


@pytest.mark.parametrize("name", FOUND_QUICKLY)
def test_a_planted_bug_is_found(name: str) -> None:
    [bug] = [bug for bug in suite().bugs if bug.name == name]
    assert find_bug(bug, [suite()], SEED)


def test_every_planted_bug_fits_the_source() -> None:
    for bug in suite().bugs:
        with planted(bug):
            pass
