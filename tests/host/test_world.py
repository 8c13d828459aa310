"""The scheduler over a host's own VMs, with the real commands and real guest processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nvmtool.errors import BusyError
from nvmtool.host.create import create_vm
from nvmtool.host.host import Host
from nvmtool.host.power import power_on, settle
from nvmtool.host.world import HostWorld

from .ground import PAGE, make_host, require_sound, write

PAGES = 8192


def _command(path: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "nvmtool", *args, "--host", str(path), "--json"]


def _json(path: Path, *args: str, code: int = 0) -> dict[str, Any]:
    done = subprocess.run(_command(path, *args), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, (args, done.returncode, done.stderr)
    facts: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    return facts


@contextmanager
def _guest(path: Path, name: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Start a guest, and wait until it has reported twice."""
    process = subprocess.Popen(_command(path, "vm", "run", name, *args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        with Host.open(path) as host:
            vm_map = host.map_of(host.vm(name))
            while vm_map.get("reported") < 3:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            vm_map.close()
        yield process
    finally:
        process.kill()
        process.communicate()


def _end(process: subprocess.Popen[str]) -> dict[str, Any]:
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    facts: dict[str, Any] = json.loads(out)
    return facts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A host of 17,600 pages with VMs a and b of 8,192, settled."""
    path = make_host(tmp_path, ram=17600)
    with Host.open(path, writable=True) as host:
        for name in "ab":
            create_vm(host, name, memory_bytes=PAGES * PAGE)
            power_on(host, name)
            settle(host, name)
    return path


def test_a_balloon_takes_idle_cache_and_leaves_what_a_busy_guest_uses(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        write(host, "b", {ppn: ppn + 1 for ppn in range(64)})
    # Half of a's memory is cache, of which its window touches little at a time.
    _json(path, "vm", "run", "a", "--workload", "sweep", "--ops", "8192", "--cache", "50%")
    with _guest(path, "a", "--workload", "zipf", "--rate", "2000", "--cache", "50%", "--seconds", "60", "--verify") as a:
        for _ in range(40):
            facts = HostWorld(path)
            try:
                (vm,) = [each for each in facts.facts().vms if each.name == "a"]
                assert vm.balloon.driver
                assert vm.estimate is not None
                assert vm.estimate.classes.total_bytes == PAGES * PAGE - vm.balloon.size_bytes
                before = vm.resident_bytes
            finally:
                facts.close()
            if vm.estimate.classes.active_anon:
                break
            time.sleep(0.1)
        plan = _json(path, "sched", "plan", "--free-target", "60%", "--deadband", "0.1%", "--no-swap")
        assert {each["name"] for each in plan["vms"]} == {"a", "b"}
        deadline = time.monotonic() + 45
        while True:
            # As often as it takes: how much of the cache is idle just then is up to the machine.
            _json(path, "sched", "apply", "--free-target", "60%", "--deadband", "0.1%", "--no-swap")
            world = HostWorld(path)
            try:
                (vm,) = [each for each in world.facts().vms if each.name == "a"]
            finally:
                world.close()
            if vm.balloon.size_bytes:
                break
            assert time.monotonic() < deadline, plan
            time.sleep(0.2)
        assert before is not None
        report = _end(a)
    assert report["errors"] == 0
    require_sound(path)


def test_swapping_takes_what_the_guest_used_least_and_loses_nothing(path: Path) -> None:
    _json(path, "vm", "run", "a", "--workload", "sweep", "--ops", "8192", "--write-ratio", "100%")
    with _guest(path, "a", "--workload", "zipf", "--seconds", "60", "--verify") as a:
        world = HostWorld(path)
        try:
            freed = world.swap_out("a", 256 * PAGE)
            assert freed >= 128 * PAGE
            (vm,) = [each for each in world.facts().vms if each.name == "a"]
            assert vm.swapped_bytes > 0
            world.swap_in("a", PAGES * PAGE)
        finally:
            world.close()
        assert _end(a)["errors"] == 0
    require_sound(path)


def test_a_vm_without_a_guest_is_sampled_and_swapped_from_outside(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        write(host, "b", {ppn: ppn + 1 for ppn in range(512)})
    world = HostWorld(path)
    try:
        (b,) = [each for each in world.facts().vms if each.name == "b"]
        assert not b.balloon.driver
        assert b.estimate is not None
        assert (b.estimate.source, b.estimate.nsampled) == ("sample", 385)
        assert abs(b.estimate.classes.inactive_anon - 512 * PAGE) < 0.1 * PAGES * PAGE
        assert world.swap_out("b", 100 * PAGE) == 100 * PAGE
    finally:
        world.close()
    require_sound(path)


def test_two_schedulers_do_not_govern_one_host(path: Path) -> None:
    world = HostWorld(path)
    try:
        with pytest.raises(BusyError, match=r"host\.nvh: in use by"):
            HostWorld(path)
        _json(path, "sched", "plan", code=6)
    finally:
        world.close()
    assert _json(path, "sched", "plan")["host"]["state"] == "high"


def test_a_guest_that_stands_still_is_a_stuck_balloon_and_the_others_go_on(path: Path) -> None:
    _json(path, "vm", "run", "a", "--workload", "sweep", "--ops", "8192", "--cache", "50%")
    with _guest(path, "a", "--workload", "zipf", "--rate", "2000", "--cache", "50%", "--seconds", "60") as a:
        a.send_signal(19)  # SIGSTOP
        try:
            words = _command(path, "sched", "apply", "--free-target", "90%", "--deadband", "0.1%", "--every", "1", "--no-swap")
            process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            try:
                assert process.stdout is not None
                assert any("driver-stuck" in line for line in process.stdout)
                process.terminate()
                process.communicate(timeout=30)
            finally:
                process.kill()
                process.wait()
        finally:
            a.send_signal(18)
        assert _end(a)["errors"] == 0
    require_sound(path)
