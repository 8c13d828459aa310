"""A running VM loses nothing: whatever it swaps, however it ends, and when there is no space."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nvmtool.errors import BusyError, NoSpaceError, UsageError
from nvmtool.stopping import Stop
from nvmtool.swap.create import create_swap
from nvmtool.swap.layout import PAGE
from nvmtool.swap.pattern import Pattern
from nvmtool.swap.resident import Resident
from nvmtool.swap.run import RunOptions, RunReport, run_vm
from nvmtool.swap.swapfile import IN_MEMORY, SwapFile
from nvmtool.swap.verify import Findings
from nvmtool.swap.vm import Vm
from nvmtool.swap.workload import WORKLOADS

NFRAMES = 600
RESIDENT = 256 * PAGE
_COMMAND = [sys.executable, "-c", "from nvmtool.cli.swap_run import run_command; run_command()"]


@pytest.fixture
def swap_path(tmp_path: Path) -> Path:
    path = tmp_path / "vm.swap"
    create_swap(path, memory_bytes=NFRAMES * PAGE, block_bytes=64 << 10)
    return path


def _run(swap_path: Path, resident_bytes: int = RESIDENT, **options: object) -> RunReport:
    with SwapFile.open(swap_path, writable=True) as swap:
        return run_vm(swap, RunOptions(resident_bytes, **options))  # type: ignore[arg-type]


def _command(swap_path: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([*_COMMAND, *map(str, (swap_path, "--resident", RESIDENT, *arguments))], stdout=subprocess.PIPE, text=True)


def _wait_until_swapping(swap_path: Path, process: subprocess.Popen[str]) -> None:
    while os.stat(swap_path).st_blocks * 512 < (64 + 100) * PAGE:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_page_is_what_was_written_last(swap_path: Path, workload: str) -> None:
    report = _run(swap_path, workload=workload, ops=8000, verify=True)
    assert (report.ops, report.errors, report.still_in_memory, report.ended_by) == (8000, 0, 0, "ops")
    assert report.swap_ins > 0
    # What was swapped out and not in again is in the file at the end: each touched frame once.
    assert report.swap_outs - report.swap_ins == report.first_touches
    with SwapFile.open(swap_path) as swap:
        assert swap.used_slots == report.first_touches


def test_a_run_finds_the_pages_of_the_one_before(swap_path: Path) -> None:
    first = _run(swap_path, ops=5000)
    second = _run(swap_path, ops=5000, seed=1, verify=True)
    assert (first.errors, second.errors, second.lost_in_memory) == (0, 0, 0)
    assert first.first_touches + second.first_touches == NFRAMES


def test_the_file_holds_the_whole_memory_in_the_order_of_frames(swap_path: Path) -> None:
    _run(swap_path, NFRAMES * PAGE, workload="sweep", ops=NFRAMES)
    with SwapFile.open(swap_path) as swap:
        slots = swap.states_of_range(0, NFRAMES)
    assert (slots >= 0).all()
    assert (np.diff(slots) > 0).all()


def test_memory_larger_than_the_vm_never_swaps_before_the_end(swap_path: Path) -> None:
    report = _run(swap_path, 1 << 30, ops=8000, verify=True)
    assert (report.swap_ins, report.faults, report.faults_p99_us) == (0, 0, 0)
    assert report.swap_outs == report.first_touches == NFRAMES


def test_pages_that_were_never_written_are_zeros(swap_path: Path) -> None:
    assert _run(swap_path, ops=5000, write_ratio=0.0, verify=True).errors == 0
    with SwapFile.open(swap_path) as swap:
        pages = np.ones((2, PAGE), np.uint8)
        swap.read_pages(np.array([0, NFRAMES - 1]), pages)
    assert not pages.any()


def test_fewer_than_sixteen_pages_are_a_usage_error(swap_path: Path) -> None:
    with pytest.raises(UsageError, match="less than 16 pages"):
        _run(swap_path, 16 * PAGE - 1, ops=10)
    assert _run(swap_path, 16 * PAGE, ops=1000, verify=True).errors == 0


def test_seconds_end_a_run(swap_path: Path) -> None:
    report = _run(swap_path, seconds=0.2)
    assert report.ended_by == "seconds"
    assert 0.2 <= report.seconds < 5


def test_whoever_runs_a_vm_can_stop_it(swap_path: Path) -> None:
    stop = Stop()
    stop.ask("enough")
    with SwapFile.open(swap_path, writable=True) as swap:
        report = run_vm(swap, RunOptions(RESIDENT), stop=stop)
    assert (report.ended_by, report.still_in_memory) == ("enough", 0)


def test_verifying_can_be_stopped_and_says_that_it_was(swap_path: Path) -> None:
    stop = Stop()
    with SwapFile.open(swap_path, writable=True) as swap:
        assert run_vm(swap, RunOptions(RESIDENT, ops=0, verify=True), stop=stop).verified_all
        stop.ask("SIGINT")
        report = run_vm(swap, RunOptions(RESIDENT, ops=0, verify=True), stop=stop)
    assert (report.verified_all, report.ended_by) == (False, "SIGINT")


def test_swap_ins_give_their_slots_back_without_any_swap_out(swap_path: Path) -> None:
    _run(swap_path, NFRAMES * PAGE, workload="sweep", ops=NFRAMES)
    with SwapFile.open(swap_path, writable=True) as swap:
        before = os.stat(swap_path).st_blocks
        vm = Vm(swap, Pattern(swap.fields["uuid"]), NFRAMES, stamps=None, findings=Findings())
        vm.access(list(range(NFRAMES)), [False] * NFRAMES)
        time.sleep(0.3)
        vm.access([0], [False])
        assert swap.used_slots == 0
        assert os.stat(swap_path).st_blocks * 512 <= before * 512 - (NFRAMES - 16) * PAGE
        vm.swap_out_all()


def test_a_page_that_changes_in_memory_is_found(swap_path: Path) -> None:
    with SwapFile.open(swap_path, writable=True) as swap:
        findings = Findings()
        vm = Vm(swap, Pattern(swap.fields["uuid"]), 32, stamps=None, findings=findings)
        vm.access([1, 2, 3], [True, True, True])
        vm.resident.words[vm.resident.rows[1]] = vm.resident.words[vm.resident.rows[2]]
        vm.resident.words[vm.resident.rows[3], 100] += np.uint64(1)
        vm.check_resident()
        assert findings.errors == 2
        assert "frame 1 in memory: doubled" in findings.lines[0]
        assert "frame 3 in memory: torn" in findings.lines[1]
        vm.access([1, 2, 3], [False, False, False])
        vm.swap_out_all()
    assert _run(swap_path, ops=0, verify=True).errors == 0


def test_what_a_killed_process_had_in_memory_is_counted_and_begins_anew(swap_path: Path) -> None:
    _run(swap_path, ops=8000)
    with SwapFile.open(swap_path, writable=True) as swap:
        swap.forget(np.array([5, 6, 7]))
    assert _run(swap_path, ops=0, verify=True).lost_in_memory == 3
    report = _run(swap_path, workload="sweep", ops=6, verify=True)
    assert (report.lost_in_memory, report.errors) == (3, 0)
    assert _run(swap_path, ops=0, verify=True).lost_in_memory == 2


def test_a_full_file_system_ends_a_run_and_loses_nothing(small_tmpfs: Path, tmp_path: Path) -> None:
    path = small_tmpfs / "vm.swap"
    create_swap(path, memory_bytes=4096 * PAGE, block_bytes=64 << 10)
    stamps = tmp_path / "vm.stamps"
    report = _run(path, workload="sweep", ops=9000, write_ratio=1.0, verify=True, stamps=stamps)
    assert isinstance(report.failure, NoSpaceError)
    assert report.ended_by == "failure"
    assert (report.errors, report.lost_in_memory) == (0, 0)
    assert 0 < report.still_in_memory <= RESIDENT // PAGE
    assert report.still_in_memory + report.swap_outs - report.swap_ins == report.first_touches
    with SwapFile.open(path) as swap:
        assert int((swap.states_of_range(0, 4096) == IN_MEMORY).sum()) >= report.still_in_memory
        # Every slot that there is storage for was filled, to the last one.
        assert swap.used_slots == swap.blocks_allocated * swap.slots_per_block
    again = _run(path, ops=0, verify=True, stamps=stamps)
    assert (again.errors, again.lost_in_memory) == (0, report.still_in_memory)


def test_a_run_goes_on_where_space_is_short_but_pages_return(small_tmpfs: Path) -> None:
    path = small_tmpfs / "vm.swap"
    create_swap(path, memory_bytes=NFRAMES * PAGE, block_bytes=64 << 10)
    _run(path, ops=5000)
    filler = os.open(small_tmpfs / "filler", os.O_CREAT | os.O_WRONLY)
    with pytest.raises(OSError, match="No space"):
        while True:
            os.write(filler, bytes(PAGE))
    os.close(filler)
    report = _run(path, 32 * PAGE, ops=5000, seed=1, verify=True)
    assert (report.failure, report.errors, report.still_in_memory) == (None, 0, 0)


def test_a_second_vm_is_told_who_holds_the_file(swap_path: Path) -> None:
    with SwapFile.open(swap_path, writable=True), pytest.raises(BusyError, match="in use by"):
        _run(swap_path, ops=1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_a_run_in_order(swap_path: Path, number: signal.Signals, code: int) -> None:
    process = _command(swap_path, "--json", "--verify")
    _wait_until_swapping(swap_path, process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    report = json.loads(out)
    assert process.returncode == code
    assert (report["ended_by"], report["errors"], report["still_in_memory"]) == (number.name, 0, 0)
    assert _run(swap_path, ops=0, verify=True).verified_pages == report["first_touches"]


def test_the_command_reports_its_keys_and_exits_1_for_errors(swap_path: Path) -> None:
    process = _command(swap_path, "--json", "--ops", 5000, "--workload", "sweep")
    facts = json.loads(process.communicate(timeout=60)[0])
    keys = {"ops", "swap_ins", "swap_outs", "faults_p50_us", "faults_p99_us", "faults_p999_us", "verified_pages", "errors", "seconds"}
    assert keys <= set(facts)
    assert 0 < facts["faults_p50_us"] <= facts["faults_p99_us"] <= facts["faults_p999_us"]
    with SwapFile.open(swap_path) as swap:
        offset = swap.offset_of(swap.state_of(5))
    with swap_path.open("r+b") as file:
        os.pwrite(file.fileno(), b"\xff", offset + 99)
    process = _command(swap_path, "--ops", 0, "--verify")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "600 pages verified, 1 error" in out


def test_the_clock_spares_pages_that_were_touched_since_it_passed() -> None:
    resident = Resident(16)
    for frame in range(16):
        resident.put(frame, resident.free.pop())
    assert resident.choose(4) == [0, 1, 2, 3]
    resident.drop([0, 1, 2, 3])
    for frame in (20, 21, 22, 23):
        resident.put(frame, resident.free.pop())
    resident.referenced[resident.rows[5]] = 1
    assert resident.choose(4) == [4, 6, 7, 8]


def test_the_clock_never_takes_a_page_twice() -> None:
    rng = np.random.default_rng(1)
    resident = Resident(16)
    for frame in range(16):
        resident.put(frame, resident.free.pop())
    for _ in range(200):
        resident.referenced[:] = rng.integers(0, 2, 16, np.uint8).tobytes()
        count = int(rng.integers(1, 17))
        assert len(set(resident.choose(count))) == count
