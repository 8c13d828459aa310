"""host run: settles, balances and shares in the foreground, says what it did, and ends in order."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nvmtool.host.balance import balance, free_state
from nvmtool.host.check import check_host
from nvmtool.host.create import create_vm
from nvmtool.host.daemon import run_host
from nvmtool.host.host import Host
from nvmtool.host.power import power_on, settle
from nvmtool.stopping import Stop

from .ground import MIB, PAGE, expected, make_host, memory_of, require_sound, write


@pytest.mark.parametrize(
    ("free", "state"),
    [(1000, "high"), (60, "high"), (59, "soft"), (40, "soft"), (39, "hard"), (20, "hard"), (19, "low"), (10, "low"), (0, "low")],
)
def test_the_indicator_changes_at_6_4_and_2_percent(free: int, state: str) -> None:
    assert free_state(free, 1000) == state


def test_rounds_settle_lend_and_share_and_say_so(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=256, nvm_bytes=128 * MIB, vms={"a": 256})
    hold: dict[int, object] = {ppn: f"p{ppn // 2}" for ppn in range(250)}
    with Host.open(path, writable=True) as host:
        write(host, "a", hold)
    lines = list(run_host(path, interval=0.01, stop=Stop(), rounds=2))
    assert any(line.startswith("a: settled to 0 B of memory and 1 MiB of swap, complete") for line in lines), lines
    assert any(line.startswith("borrowed ") and line.endswith("from NVM: free memory was hard") for line in lines), lines
    assert any(line.startswith("shared: 500 KiB saved (a 500 KiB)") for line in lines), lines
    assert list(run_host(path, interval=0.01, stop=Stop(), rounds=1)) == []
    with Host.open(path, writable=True) as host:
        assert memory_of(host, "a") == expected(hold, 256)
    require_sound(path)


def test_without_nvm_a_round_swaps_what_vms_have_beyond_their_grant(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=512)
    hold = {name: {ppn: f"{name}{ppn}" for ppn in range(250)} for name in "ab"}
    with Host.open(path, writable=True) as host:
        for name, reservation in (("a", 256), ("b", 0)):
            create_vm(host, name, memory_bytes=256 * PAGE, reservation_bytes=reservation * PAGE)
            power_on(host, name)
            settle(host, name)
            write(host, name, dict(hold[name]))
        found = balance(host)
        assert (found.state_before, found.state, found.lent_pages, found.failure) == ("hard", "high", 0, None)
        assert [name for name, _ in found.from_vms] == ["b"]
        assert [memory_of(host, name) == expected(dict(hold[name]), 256) for name in "ab"] == [True, True]
    require_sound(path)


def test_when_nothing_can_be_taken_it_says_why(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=64, vms={"a": 64}, reservation_bytes=64 * PAGE)
    with Host.open(path, writable=True) as host:
        write(host, "a", {ppn: f"p{ppn}" for ppn in range(64)})
        found = balance(host)
        assert (found.state, found.swapped_pages) == ("low", 0)
        assert "short of the high mark" in str(found.failure)
    (line,) = run_host(path, interval=0.01, stop=Stop(), rounds=1)
    assert line.startswith("free memory is low: ")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(signum: signal.Signals, tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=256, vms={"a": 256})
    command = [sys.executable, "-m", "nvmtool", "host", "run", "--interval", "0.2", "--host", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("a: settled")
        time.sleep(0.3)
        process.send_signal(signum)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, "")
    require_sound(path)


def test_a_killed_loop_is_started_again_as_if_nothing_had_been(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=512, nvm_bytes=4 * MIB, vms={"a": 512})
    hold: dict[int, object] = {ppn: f"p{ppn % 100}" for ppn in range(500)}
    with Host.open(path, writable=True) as host:
        write(host, "a", hold)
    command = [sys.executable, "-m", "nvmtool", "host", "run", "--interval", "0.01", "--host", str(path)]
    for seconds in (0.3, 0.4, 0.5, 0.7):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        process.kill()
        process.wait()
        require_sound(path, may_leak=True)
    list(run_host(path, interval=0.01, stop=Stop(), rounds=3))
    with Host.open(path, writable=True) as host:
        assert memory_of(host, "a") == expected(hold, 512)
        assert check_host(host, repair=True).clean
    require_sound(path)
