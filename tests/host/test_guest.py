"""Guests at work in processes of their own, beside everything else that works on a host; nothing is lost, and the next command recovers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nvmtool.host.accounting import account
from nvmtool.host.create import create_vm
from nvmtool.host.host import Host
from nvmtool.host.power import power_on, settle
from nvmtool.host.sharing import share
from nvmtool.host.suspend import resume, suspend
from nvmtool.host.transfer import load

from .ground import MIB, PAGE, make_host, memory_of, require_sound

_SECONDS = 60


def _command(path: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "nvmtool", *args, "--host", str(path)]


def _run(path: Path, *args: str, code: int = 0) -> dict[str, Any]:
    done = subprocess.run([*_command(path, *args), "--json"], capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert done.returncode == code, (args, done.returncode, done.stderr)
    facts: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    return facts


@contextmanager
def _guest(path: Path, name: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Start a guest and wait until it works; one that is still there at the end is killed."""
    process = subprocess.Popen(
        _command(path, "vm", "run", name, *args, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + _SECONDS
        with Host.open(path) as host:
            while not host.has_guest(host.vm(name)) and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


def _end(process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    out, err = process.communicate(timeout=_SECONDS)
    assert process.returncode == code, err
    facts: dict[str, Any] = json.loads(out)
    return facts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A host of 4 MiB with VMs a and b of 4 MiB, settled."""
    path = make_host(tmp_path, ram=1024)
    with Host.open(path, writable=True) as host:
        for name in "ab":
            create_vm(host, name, memory_bytes=1024 * PAGE)
            power_on(host, name)
            settle(host, name)
    return path


def test_two_guests_that_do_not_fit_swap_and_lose_nothing(path: Path) -> None:
    with _guest(path, "a", "--ops", "4000", "--verify") as a, _guest(path, "b", "--ops", "4000", "--verify", "--seed", "1") as b:
        found = [_end(a), _end(b)]
    assert [each["errors"] for each in found] == [0, 0]
    assert sum(each["swap_outs"] for each in found) > 0
    assert all(each["verified_pages"] > 900 for each in found)
    require_sound(path)
    assert [_run(path, "vm", "run", name, "--ops", "0", "--verify")["errors"] for name in "ab"] == [0, 0]


def test_everything_goes_on_beside_running_guests(path: Path) -> None:
    busy = ("--seconds", "60", "--verify", "--rate", "2000")  # and the other commands have their turn
    with _guest(path, "a", *busy) as a, _guest(path, "b", *busy, "--workload", "zipf") as b:
        found = _run(path, "host", "account")
        assert found["difference_pages"] == 0
        _run(path, "host", "share")
        assert _run(path, "host", "check")["clean"]
        _run(path, "host", "status")
        _run(path, "vm", "dump", "a", str(path.parent / "a.raw"))
        (path.parent / "a.raw").unlink()
        a.terminate()
        b.terminate()
        reports = [_end(a), _end(b)]
    assert [report["errors"] for report in reports] == [0, 0]
    assert all(report["pauses"] > 0 for report in reports)
    require_sound(path)


def test_a_guest_ends_when_its_vm_is_suspended_and_goes_on_after_the_resume(path: Path) -> None:
    with _guest(path, "a", "--seconds", "60") as a:
        time.sleep(0.5)
        _run(path, "vm", "suspend", "a")
        assert _end(a)["ended_by"] == "VM suspended"
    _run(path, "vm", "suspend", "b")
    _run(path, "host", "restart")
    _run(path, "vm", "resume", "a")
    assert _run(path, "vm", "run", "a", "--ops", "500", "--verify")["errors"] == 0
    require_sound(path)


def test_sigterm_ends_a_guest_in_order(path: Path) -> None:
    with _guest(path, "a", "--seconds", "60", "--verify") as a:
        time.sleep(0.3)
        a.terminate()
        found = _end(a)
    assert (found["ended_by"], found["errors"]) == ("SIGTERM", 0)
    require_sound(path)


def test_one_guest_at_a_time_works_on_a_vm(path: Path) -> None:
    with _guest(path, "a", "--seconds", "60") as a:
        done = subprocess.run(_command(path, "vm", "run", "a", "--ops", "1"), capture_output=True, text=True, timeout=_SECONDS, check=False)
        assert done.returncode == 6
        assert f"process {a.pid}" in done.stderr


def test_a_killed_guest_leaves_its_memory_and_nothing_that_is_nobodys(path: Path) -> None:
    rng = random.Random(7)
    calm = ("--seconds", "60", "--rate", "2000")
    for _ in range(3):
        with _guest(path, "a", "--seconds", "60", "--workload", "churn") as a, _guest(path, "b", *calm) as b:
            time.sleep(rng.uniform(0.05, 0.6))
            victims = [a, b] if rng.random() < 0.5 else [a]
            for victim in victims:
                os.kill(victim.pid, signal.SIGKILL)
                victim.wait(_SECONDS)
            found = _run(path, "host", "account")
            assert found["difference_pages"] == 0
            if len(victims) == 1:
                b.terminate()
                assert _end(b)["errors"] == 0
        require_sound(path, may_leak=True)
        assert [_run(path, "vm", "run", name, "--ops", "0", "--verify")["errors"] for name in "ab"] == [0, 0]
    require_sound(path)


def test_killed_suspensions_beside_a_guest_are_finished_by_the_same_command(path: Path) -> None:
    rng = random.Random(3)
    _run(path, "vm", "run", "a", "--ops", "2000")
    with Host.open(path, writable=True) as host:
        share(host)
        before = memory_of(host, "a")
    with _guest(path, "b", "--seconds", "60", "--verify") as b:
        for verb in ("suspend", "resume") * 3:
            process = subprocess.Popen(_command(path, "vm", verb, "a"), stdout=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.15, 0.4))
            process.kill()
            process.wait(_SECONDS)
            with Host.open(path) as host:
                found = account(host)
                assert (found.difference_pages, found.refs_difference) == (0, 0)
            with Host.open(path, writable=True) as host:
                if host.vm("a").state_name != ("suspended" if verb == "suspend" else "on"):
                    (suspend if verb == "suspend" else resume)(host, "a")
        b.terminate()
        assert _end(b)["errors"] == 0
    with Host.open(path, writable=True) as host:
        assert memory_of(host, "a") == before
    require_sound(path)


def test_writing_to_loaded_pages_that_are_shared_breaks_the_sharing_and_spares_the_others(path: Path) -> None:
    raw = path.parent / "raw"
    raw.write_bytes(random.Random(1).randbytes(2 * MIB) + bytes(2 * MIB))
    with Host.open(path, writable=True) as host:
        for name in "ab":
            load(host, name, raw)
        assert share(host).frames_saved >= 200
        before = memory_of(host, "b")
    found = _run(path, "vm", "run", "a", "--workload", "sweep", "--ops", "1024", "--write-ratio", "100%", "--verify")
    assert found["shares_broken"] > 200
    assert found["errors"] == 0
    with Host.open(path, writable=True) as host:
        assert memory_of(host, "b") == before == raw.read_bytes()
    require_sound(path)


def test_a_guest_finds_a_page_that_is_another_ones(path: Path) -> None:
    _run(path, "vm", "run", "a", "--workload", "sweep", "--ops", "64", "--write-ratio", "100%")
    with Host.open(path, writable=True) as host:
        vm_map = host.map_of(host.vm("a"))
        host.memory.page(vm_map.words[10] - 1)[:] = bytes(host.memory.page(vm_map.words[11] - 1))
        vm_map.close()
    done = subprocess.run(_command(path, "vm", "run", "a", "--ops", "0", "--verify"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "frame 10 in memory: doubled" in done.stderr
