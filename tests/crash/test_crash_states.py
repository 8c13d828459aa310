"""Every crash state of a few operations keeps the promise, and planted bugs are found; `make crash` does all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvmtool.region.header import decode_header
from tests.crash.bases import MAPPINGS, base
from tests.crash.bugs import BUGS
from tests.crash.enumeration import Effort, Enumerator
from tests.crash.model import BLOCK
from tests.crash.operations import operations
from tests.crash.oracle import RepairOracle
from tests.crash.planting import planted
from tests.crash.proof import prove
from tests.crash.recorder import FENCE, MASS, NVM, STORE, Recording
from tests.crash.selfproof import find_bug
from tests.crash.special import formats, repairs
from tests.crash.workloads import record

SEED = 1
EFFORT = Effort(most=7, samples=2, prove_one_of=1000, depth=1)
STEPS = {step.name: step for step in operations()}
ALONE = ["write-logged", "write-home-purged", "snapshot-create", "purge-pointers", "recall", "convert", "region-delete-other"]
PAIRS = [("recall", "purge-pointers"), ("snapshot-delete-oldest", "write-home")]
FOUND_QUICKLY = [
    "fence dropped: the log record",
    "commit word hoisted: void before home",
    "replay skips the CRC",
    "a slot is punched before the commit",
    "count forgotten: shared table copied",
    "file store: fence without fdatasync",
]


def enumerate_all(recordings: list[Recording], oracle: RepairOracle | None = None) -> Enumerator:
    judge = Enumerator(decode_header(base("virtblock").image[:BLOCK], "base"), EFFORT, SEED, oracle)
    for recording in recordings:
        judge.run(recording)
    judge.close()
    return judge


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_every_operation_cut_off_anywhere_leaves_one_of_its_documented_states(mapping: str) -> None:
    chosen = [(name,) for name in ALONE] + PAIRS
    recordings = [record(mapping, *(STEPS[name] for name in names)) for names in chosen]
    judge = enumerate_all([recording for recording in recordings if recording])
    assert judge.tally.failures == []
    assert judge.tally.counts["states"] > 500


def test_a_format_cut_off_anywhere_is_refused_or_empty() -> None:
    assert enumerate_all(formats()[1:]).tally.failures == []


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_repair_cut_off_anywhere_is_finished_by_another(mapping: str) -> None:
    assert enumerate_all(repairs(mapping), RepairOracle()).tally.failures == []


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_at_each_fence_the_real_files_are_what_the_seam_was_told(tmp_path: Path, mapping: str) -> None:
    for name in ("write-home", "write-logged-few", "purge-pointers", "recall", "snapshot-delete-oldest", "convert"):
        assert prove(tmp_path, mapping, STEPS[name]) == [], name


@pytest.mark.parametrize("name", FOUND_QUICKLY)
def test_a_planted_bug_is_found(name: str) -> None:
    [bug] = [bug for bug in BUGS if bug.name == name]
    assert find_bug(bug, SEED)


def test_every_planted_bug_fits_the_source() -> None:
    for bug in BUGS:
        with planted(bug):
            pass


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_slots_given_back_are_gone_before_the_image_says_so(mapping: str) -> None:
    recording = record(mapping, STEPS["recall"])
    assert recording is not None
    [punched, *_] = [number for number, event in enumerate(recording.events) if event.punched]
    later = recording.events[punched + 1 :]
    fence = next(number for number, event in enumerate(later) if event.what == FENCE and event.medium == MASS)
    assert not any(event.what == STORE and event.medium == NVM for event in later[:fence])
