"""Every crash state of a swap file with its reservation keeps the promise, and planted bugs are found; `make crash` does all of them."""

from __future__ import annotations

import pytest

from tests.crash.borrowed.suite import MECHANISMS, suite
from tests.crash.enumeration import Effort
from tests.crash.planting import planted
from tests.crash.selfproof import find_bug

SEED = 1
EFFORT = Effort(most=6, samples=1, prove_one_of=2000, depth=1)
ALONE = {"clone": ["in-whole-block", "shrink", "forget"], "allocate": ["out-into-new-block", "grow"]}
FOUND_QUICKLY = [
    "homecoming: blocks are held before they are whole",
    "resize: the file is cut first",
    "recovery: an empty block is taken for one with pages",
]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_lending_cut_off_anywhere_leaves_each_block_on_one_side_and_each_page_as_before_or_after(mechanism: str) -> None:
    for workload in ALONE[mechanism]:
        judge = suite(mechanism).enumerator(workload, EFFORT, SEED)
        for recording in suite(mechanism).recordings(workload):
            judge.run(recording)
        judge.close()
        assert judge.tally.failures == []
        assert judge.tally.counts["states"] > 100


@pytest.mark.parametrize("name", FOUND_QUICKLY)
def test_a_planted_bug_is_found(name: str) -> None:
    [bug] = [bug for bug in suite("clone").bugs if bug.name == name]
    assert find_bug(bug, [suite("clone")], SEED)


def test_every_planted_bug_fits_the_source() -> None:
    for bug in suite("clone").bugs:
        with planted(bug):
            pass
