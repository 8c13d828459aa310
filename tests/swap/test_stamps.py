"""Stamps say what each page must hold, whenever their process was killed; and pages that are something else are found and named."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nvmtool.errors import DamagedError, FormatError, NotFoundError, RefusedError
from nvmtool.media.store import FileStore
from nvmtool.swap.create import create_swap
from nvmtool.swap.layout import PAGE
from nvmtool.swap.pattern import Pattern
from nvmtool.swap.run import RunOptions, RunReport, run_vm
from nvmtool.swap.stamps import Stamps
from nvmtool.swap.stamps_layout import ANY, MEMORY, NEVER, SWAPPED, stamps_bytes
from nvmtool.swap.swapfile import SwapFile

NFRAMES = 600
RESIDENT = 256 * PAGE
_COMMAND = [sys.executable, "-c", "from nvmtool.cli.swap_run import run_command; run_command()"]


@pytest.fixture
def swap_path(tmp_path: Path) -> Path:
    path = tmp_path / "vm.swap"
    create_swap(path, memory_bytes=NFRAMES * PAGE, block_bytes=64 << 10)
    return path


@pytest.fixture
def stamps_path(tmp_path: Path) -> Path:
    return tmp_path / "vm.stamps"


def _run(swap_path: Path, **options: object) -> RunReport:
    with SwapFile.open(swap_path, writable=True) as swap:
        return run_vm(swap, RunOptions(RESIDENT, **options))  # type: ignore[arg-type]


def _write_all(swap_path: Path, stamps: Path | None = None) -> None:
    assert _run(swap_path, ops=NFRAMES, workload="sweep", write_ratio=1.0, stamps=stamps).swap_outs >= NFRAMES


def _verify(swap_path: Path, stamps_path: Path) -> RunReport:
    return _run(swap_path, ops=0, verify=True, stamps=stamps_path)


def _slot_offset(swap_path: Path, frame: int) -> int:
    with SwapFile.open(swap_path) as swap:
        return swap.offset_of(swap.state_of(frame))


def _read(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), PAGE, offset)


def _overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), content, offset)


def test_after_an_orderly_end_stamps_agree_with_the_file(swap_path: Path, stamps_path: Path) -> None:
    assert _run(swap_path, ops=5000, stamps=stamps_path).errors == 0
    with SwapFile.open(swap_path) as swap, Stamps.open(stamps_path, swap.fields["uuid"], NFRAMES) as stamps:
        expected = stamps.expected(0, NFRAMES)
        slots = swap.states_of_range(0, NFRAMES)
        assert ((slots >= 0) == (expected.states == SWAPPED)).all()
        assert (expected.committed == expected.pending).all()
        frames = np.flatnonzero(slots >= 0)
        pages = np.empty((frames.size, PAGE), np.uint8)
        swap.read_pages(frames, pages)
        assert Pattern(swap.fields["uuid"]).hold(pages, frames, expected.committed[frames]).all()


def test_runs_go_on_from_each_other(swap_path: Path, stamps_path: Path) -> None:
    for seed, workload in enumerate(["uniform", "churn", "sweep", "zipf"]):
        report = _run(swap_path, ops=3000, seed=seed, workload=workload, verify=True, stamps=stamps_path)
        assert (report.errors, report.lost_in_memory) == (0, 0)
    report = _verify(swap_path, stamps_path)
    assert (report.errors, report.lost_in_memory, report.ops) == (0, 0, 0)
    assert report.verified_pages == NFRAMES


def test_verifying_changes_neither_the_stamps_nor_the_pages(swap_path: Path, stamps_path: Path) -> None:
    _write_all(swap_path, stamps=stamps_path)
    before = stamps_path.read_bytes(), swap_path.read_bytes()
    _verify(swap_path, stamps_path)
    assert (stamps_path.read_bytes(), swap_path.read_bytes()) == before


def test_stamps_for_a_file_with_pages_learn_their_versions(swap_path: Path, stamps_path: Path) -> None:
    _run(swap_path, ops=5000)
    assert _run(swap_path, ops=100, stamps=stamps_path).errors == 0
    assert _verify(swap_path, stamps_path).errors == 0
    assert _run(swap_path, ops=5000, seed=2, stamps=stamps_path, verify=True).errors == 0
    with SwapFile.open(swap_path) as swap, Stamps.open(stamps_path, swap.fields["uuid"], NFRAMES) as stamps:
        assert not (stamps.expected(0, NFRAMES).states == ANY).any()


def _stale(swap_path: Path, stamps_path: Path) -> str:
    old = _read(swap_path, _slot_offset(swap_path, 5))
    _write_all(swap_path, stamps=stamps_path)
    _overwrite(swap_path, _slot_offset(swap_path, 5), old)
    return "stale: expected version"


def _zeroed(swap_path: Path, stamps_path: Path) -> str:
    _overwrite(swap_path, _slot_offset(swap_path, 5), bytes(PAGE))
    return "found zeros"


def _doubled(swap_path: Path, stamps_path: Path) -> str:
    _overwrite(swap_path, _slot_offset(swap_path, 5), _read(swap_path, _slot_offset(swap_path, 6)))
    return "of frame 6"


def _torn(swap_path: Path, stamps_path: Path) -> str:
    old = _read(swap_path, _slot_offset(swap_path, 5))
    _write_all(swap_path, stamps=stamps_path)
    _overwrite(swap_path, _slot_offset(swap_path, 5) + 2048, old[2048:])
    return "torn"


def _one_bit(swap_path: Path, stamps_path: Path) -> str:
    offset = _slot_offset(swap_path, 5)
    page = bytearray(_read(swap_path, offset))
    page[-1] ^= 0x10
    _overwrite(swap_path, offset, bytes(page))
    return "torn"


def _lost(swap_path: Path, stamps_path: Path) -> str:
    with SwapFile.open(swap_path, writable=True) as swap:
        swap.forget(np.array([5]))
    return "lost: expected version"


@pytest.mark.parametrize("damage", [_stale, _zeroed, _doubled, _torn, _one_bit, _lost])
def test_a_page_that_is_something_else_is_found_and_named(swap_path: Path, stamps_path: Path, damage: Callable[[Path, Path], str]) -> None:
    _write_all(swap_path, stamps=stamps_path)
    said = damage(swap_path, stamps_path)
    report = _verify(swap_path, stamps_path)
    assert report.errors == 1
    assert report.findings[0].startswith("frame 5 ")
    assert said in report.findings[0]
    # A run meets it too, and what it reported once is not an error for ever.
    assert _run(swap_path, ops=2 * NFRAMES, workload="sweep", stamps=stamps_path, verify=True).errors == 1
    assert _verify(swap_path, stamps_path).errors == 0


@pytest.mark.parametrize("damage", [_doubled, _one_bit])
def test_pages_contradict_themselves_without_stamps_too(swap_path: Path, damage: Callable[[Path, Path], str]) -> None:
    _write_all(swap_path)
    said = damage(swap_path, Path())
    report = _run(swap_path, ops=0, verify=True)
    assert (report.errors, said in report.findings[0]) == (1, True)
    assert _run(swap_path, ops=2 * NFRAMES, workload="sweep").errors == 1


def test_a_page_swapped_out_without_the_stamps_is_named_as_newer(swap_path: Path, stamps_path: Path) -> None:
    _write_all(swap_path, stamps=stamps_path)
    _run(swap_path, ops=50, seed=1, write_ratio=1.0)
    report = _verify(swap_path, stamps_path)
    assert report.errors > 0
    assert "by a run without these stamps" in report.findings[0]
    assert len(report.findings) <= 10


def test_only_the_first_ten_frames_are_described(swap_path: Path, stamps_path: Path) -> None:
    _write_all(swap_path, stamps=stamps_path)
    for frame in range(20):
        _overwrite(swap_path, _slot_offset(swap_path, frame), bytes(PAGE))
    report = _verify(swap_path, stamps_path)
    assert (report.errors, len(report.findings)) == (20, 10)


@pytest.mark.parametrize("frames_done", ["pended", "swapped out", "committed"])
def test_a_kill_between_any_two_steps_of_a_swap_out_leaves_a_version_that_is_expected(
    swap_path: Path, stamps_path: Path, frames_done: str
) -> None:
    _write_all(swap_path, stamps=stamps_path)
    with SwapFile.open(swap_path, writable=True) as swap, Stamps.open(stamps_path, swap.fields["uuid"], NFRAMES) as stamps:
        pattern, page = Pattern(swap.fields["uuid"]), np.zeros(PAGE // 8, np.uint64)
        stamps.enter_memory(5)
        swap.swap_in(5, page.view(np.uint8).data)
        pattern.stamp(page, 5, int(page[1]) + 1)
        frame, version = np.array([5]), page[1:2].copy()
        stamps.pend(frame, version)
        if frames_done != "pended":
            swap.swap_out(frame, [page.view(np.uint8).data])
        if frames_done == "committed":
            stamps.commit(frame, version)
    report = _verify(swap_path, stamps_path)
    assert (report.errors, report.lost_in_memory) == (0, int(frames_done == "pended"))
    assert _run(swap_path, ops=3000, stamps=stamps_path, verify=True).errors == 0
    assert _verify(swap_path, stamps_path).lost_in_memory == 0


def test_a_swap_in_that_a_kill_undid_leaves_the_committed_version(swap_path: Path, stamps_path: Path) -> None:
    _write_all(swap_path, stamps=stamps_path)
    with SwapFile.open(swap_path) as swap, Stamps.open(stamps_path, swap.fields["uuid"], NFRAMES) as stamps:
        stamps.enter_memory(5)
    assert _verify(swap_path, stamps_path).errors == 0
    _run(swap_path, ops=1, stamps=stamps_path)
    with SwapFile.open(swap_path) as swap, Stamps.open(stamps_path, swap.fields["uuid"], NFRAMES) as stamps:
        assert stamps.expected(5, 6).states.tolist() == [SWAPPED]


def test_what_went_with_a_killed_process_begins_anew(swap_path: Path, stamps_path: Path) -> None:
    _write_all(swap_path, stamps=stamps_path)
    with SwapFile.open(swap_path, writable=True) as swap, Stamps.open(stamps_path, swap.fields["uuid"], NFRAMES) as stamps:
        stamps.enter_memory(5)
        swap.forget(np.array([5]))
        assert stamps.expected(5, 6).states.tolist() == [MEMORY]
    assert _run(swap_path, ops=1, workload="sweep", stamps=stamps_path).lost_in_memory == 1
    with SwapFile.open(swap_path) as swap, Stamps.open(stamps_path, swap.fields["uuid"], NFRAMES) as stamps:
        expected = stamps.expected(5, 6)
        assert (expected.states.tolist(), expected.committed.tolist(), expected.pending.tolist()) == ([NEVER], [0], [0])
    assert _verify(swap_path, stamps_path).lost_in_memory == 0


def test_kills_at_any_moment_leave_pages_that_the_stamps_know(swap_path: Path, stamps_path: Path) -> None:
    rng = random.Random(1)
    lost = 0
    for seed in range(int(os.environ.get("NVMTOOL_KILLS", "4"))):
        arguments = [swap_path, "--resident", RESIDENT, "--stamps", stamps_path, "--seed", seed, "--workload", "uniform"]
        process = subprocess.Popen([*_COMMAND, *map(str, arguments)], stdout=subprocess.DEVNULL)
        while not stamps_path.exists():
            time.sleep(0.01)
        time.sleep(0.4 + rng.random())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        report = _verify(swap_path, stamps_path)
        assert report.errors == 0, report.findings
        assert report.lost_in_memory <= RESIDENT // PAGE
        lost += report.lost_in_memory
    assert lost > 0


def test_stamps_of_another_swap_file_are_refused(swap_path: Path, stamps_path: Path, tmp_path: Path) -> None:
    _run(swap_path, ops=10, stamps=stamps_path)
    other = tmp_path / "other.swap"
    create_swap(other, memory_bytes=NFRAMES * PAGE)
    with pytest.raises(RefusedError, match="another swap file"):
        _run(other, ops=10, stamps=stamps_path)


def test_truncated_stamps_are_damaged(swap_path: Path, stamps_path: Path) -> None:
    _run(swap_path, ops=10, stamps=stamps_path)
    os.truncate(stamps_path, stamps_bytes(NFRAMES) - 1)
    with pytest.raises(DamagedError, match="truncated"):
        _verify(swap_path, stamps_path)


def test_a_damaged_header_copy_is_survived_and_two_are_named(swap_path: Path, stamps_path: Path) -> None:
    _run(swap_path, ops=10, stamps=stamps_path)
    _overwrite(stamps_path, 16, b"\xff")
    assert _verify(swap_path, stamps_path).errors == 0
    _overwrite(stamps_path, PAGE + 16, b"\xff")
    with pytest.raises(DamagedError, match="checksum"):
        _verify(swap_path, stamps_path)


def test_another_file_is_not_taken_for_stamps(swap_path: Path, stamps_path: Path) -> None:
    shutil.copy(swap_path, stamps_path)
    with pytest.raises(FormatError, match="not a stamps file of swap run, but a swap file"):
        _run(swap_path, ops=10, stamps=stamps_path)


def test_verifying_without_the_stamps_that_were_named_is_an_error(swap_path: Path, stamps_path: Path) -> None:
    with pytest.raises(NotFoundError):
        _verify(swap_path, stamps_path)
    assert not stamps_path.exists()


def test_every_word_of_a_page_depends_on_file_frame_and_version() -> None:
    pages = np.zeros((4, PAGE // 8), np.uint64)
    one, other = Pattern(b"a" * 16), Pattern(b"b" * 16)
    one.stamp(pages[0], 7, 3)
    one.stamp(pages[1], 8, 3)
    one.stamp(pages[2], 7, 4)
    other.stamp(pages[3], 7, 3)
    for page in pages[1:]:
        assert (pages[0][2:] != page[2:]).all()
    assert len(np.unique(pages[:, 2:])) == 4 * 510


def test_pages_are_told_apart_one_by_one_and_in_batches() -> None:
    pattern = Pattern(b"a" * 16)
    pages = np.zeros((5, PAGE // 8), np.uint64)
    for row, (frame, version) in enumerate([(7, 3), (8, 3), (7, 4)]):
        pattern.stamp(pages[row], frame, version)
    pages[3] = pages[0]
    pages[3, 511] += np.uint64(1)
    assert [pattern.identify(page) for page in pages] == [(7, 3), (8, 3), (7, 4), None, (-1, 0)]
    frames, versions = np.full(5, 7), np.array([3, 3, 3, 3, 0], np.uint64)
    assert pattern.hold(pages.view(np.uint8), frames, versions).tolist() == [True, False, False, False, True]
    assert [pattern.holds(page, 7, int(version)) for page, version in zip(pages, versions, strict=True)] == [
        True,
        False,
        False,
        False,
        True,
    ]


def test_scattered_words_are_stored_where_they_belong(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_bytes(bytes(2 * PAGE))
    with path.open("r+b") as file:
        store = FileStore(path, file.fileno(), 2 * PAGE, writable=True)
        store.store_words(np.array([1023, 0, 5]), np.array([1, 2, 1 << 63], np.uint64))
        assert store.view.view("<u8")[[0, 5, 1023]].tolist() == [2, 1 << 63, 1]
        store.fence()
        store.close()
    words = np.frombuffer(path.read_bytes(), "<u8")
    assert words[[0, 5, 1023]].tolist() == [2, 1 << 63, 1]
    assert np.count_nonzero(words) == 3
