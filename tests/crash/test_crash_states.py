"""Every crash state of a few operations keeps the promise, and planted bugs are found; `make crash` does all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.enumeration import Effort, Enumerator
from tests.crash.planting import planted
from tests.crash.region.bases import MAPPINGS
from tests.crash.region.bugs import BUGS
from tests.crash.region.media import MASS, NVM
from tests.crash.region.suite import suite
from tests.crash.selfproof import find_bug
from tests.crash.trace import FENCE, STORE

SEED = 1
EFFORT = Effort(most=6, samples=1, prove_one_of=1000, depth=1)
ALONE = ["write-logged", "write-home-purged", "snapshot-create", "purge-pointers", "recall", "convert", "region-delete-other", "lend"]
ALONE += ["receive", "receive-next", "snapshot-receive"]
PAIRS = ["recall+purge-pointers", "snapshot-delete-oldest+write-home", "lend+take-back", "lend+forget", "receive-next+snapshot-revert"]
REPAIRS = [name for name in suite("virtblock").special if name.startswith("repair")]
FOUND_QUICKLY = [
    "fence dropped: the log record",
    "commit word hoisted: void before home",
    "replay skips the CRC",
    "a slot is punched before the commit",
    "count forgotten: shared table copied",
    "receiving: the running point is written to",
    "file store: fence without fdatasync",
]


def enumerate_all(mapping: str, workloads: list[str]) -> Enumerator:
    judge = suite(mapping).enumerator(workloads[0], EFFORT, SEED)
    for workload in workloads:
        for recording in suite(mapping).recordings(workload):
            judge.run(recording)
    judge.close()
    return judge


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_every_operation_cut_off_anywhere_leaves_one_of_its_documented_states(mapping: str) -> None:
    judge = enumerate_all(mapping, ALONE + PAIRS)
    assert judge.tally.failures == []
    assert judge.tally.counts["states"] > 500


def test_a_format_cut_off_anywhere_is_refused_or_empty() -> None:
    assert enumerate_all("virtblock", ["format"]).tally.failures == []


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_repair_cut_off_anywhere_is_finished_by_another(mapping: str) -> None:
    assert enumerate_all(mapping, REPAIRS).tally.failures == []


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_at_each_fence_the_real_files_are_what_the_seam_was_told(tmp_path: Path, mapping: str) -> None:
    for name in ("write-home", "write-logged-few", "purge-pointers", "recall", "snapshot-delete-oldest", "convert", "receive-next"):
        assert suite(mapping).prove(tmp_path, name) == [], name


@pytest.mark.parametrize("name", FOUND_QUICKLY)
def test_a_planted_bug_is_found(name: str) -> None:
    [bug] = [bug for bug in BUGS if bug.name == name]
    assert find_bug(bug, [suite(mapping) for mapping in MAPPINGS], SEED)


def test_every_planted_bug_fits_the_source() -> None:
    for bug in BUGS:
        with planted(bug):
            pass


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_slots_given_back_are_gone_before_the_image_says_so(mapping: str) -> None:
    [recording] = suite(mapping).recordings("recall")
    [punched, *_] = [number for number, event in enumerate(recording.events) if event.punched]
    later = recording.events[punched + 1 :]
    fence = next(number for number, event in enumerate(later) if event.what == FENCE and event.medium == MASS)
    assert not any(event.what == STORE and event.medium == NVM for event in later[:fence])
