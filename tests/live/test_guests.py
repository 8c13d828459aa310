"""Real QEMU guests governed by the real command: memory comes from whoever does not use it, and nothing in a guest goes wrong."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nvmtool.errors import BusyError, NotFoundError, StorageError
from nvmtool.live import qmp
from nvmtool.live.world import QemuWorld
from tests.guest.guest import MIB, Guest, make_disk

real = pytest.mark.usefixtures("guests")


def _sched(*args: str, code: int = 0, within: tuple[str, ...] = ()) -> dict[str, Any]:
    command = [*within, sys.executable, "-m", "nvmtool", "sched", *args, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == code, (done.returncode, done.stderr)
    facts: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"stderr": done.stderr}
    return facts


def _by_name(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {vm["name"]: vm for vm in plan["vms"]}


def _rss(pid: int) -> int:
    """Return the machine memory that a process has."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Rss:"))


@contextmanager
def _settled(guest: Guest, balloon_bytes: int) -> Iterator[None]:
    """Wait until a balloon holds so much."""
    deadline = time.monotonic() + 60
    with guest.control() as ask:
        while guest.memory_bytes - ask("query-balloon")["actual"] != balloon_bytes:
            assert time.monotonic() < deadline, ask("query-balloon")
            time.sleep(0.1)
    yield


def _still_host(folder: Path) -> tuple[str, ...]:
    """Return what runs a command on a host whose free memory stays as it is now, as root; other programs' comes and goes."""
    told = folder / "meminfo"
    told.write_text(Path("/proc/meminfo").read_text())
    within = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /proc/meminfo && exec "$@"', str(told))
    return within if subprocess.run([*within, "true"], capture_output=True, check=False).returncode == 0 else ()


@real
def test_apply_takes_cache_of_one_guest_first_and_leaves_the_hot_memory_of_the_other(tmp_path: Path) -> None:
    hot = Guest(work="hot:64M", memory_mib=192)
    cached = Guest(work="cache:100M", memory_mib=192, disk=make_disk(tmp_path / "disk", 110))
    try:
        hot.start()
        cached.start()
        hot.wait_ready()
        cached.wait_ready()
        before = {"hot": hot.read_meminfo(), "cached": cached.read_meminfo()}
        sockets = ("--qmp", f"hot={hot.qmp}", "--qmp", f"cached={cached.qmp}")
        host = _still_host(tmp_path)
        memory = {
            name: int(rest.split()[0]) << 10 for name, rest in (line.split(":") for line in (tmp_path / "meminfo").read_text().splitlines())
        }
        # 80 MiB more free than now, which is less than the cache, and no swapping: balloons alone.
        target = (memory["MemAvailable"] + 80 * MIB) / memory["MemTotal"] * 100
        options = (*sockets, "--free-target", f"{target:.4f}%", "--deadband", "0.01%", "--no-swap", "--largest-step", "80%")
        rss = _rss(cached.pid) + _rss(hot.pid)
        planned = _by_name(_sched("plan", *options, within=host))
        assert planned["cached"]["balloon_bytes"] > planned["hot"]["balloon_bytes"]
        applied = _sched("apply", *options, within=host)
        told = {name: vm["balloon_bytes"] for name, vm in _by_name(applied.get("plan", applied)).items()}
        assert told["cached"] > 40 * MIB
        with _settled(cached, told["cached"]), _settled(hot, told["hot"]):
            after = {"hot": hot.read_meminfo(), "cached": cached.read_meminfo()}
        # The host's use is down by what balloons took, but for what QEMU itself does meanwhile.
        assert _rss(cached.pid) + _rss(hot.pid) < rss - (told["cached"] + told["hot"]) * 0.6
        # The hot guest keeps its working set, and the other gave up cache, not anonymous memory.
        assert after["hot"]["AnonPages"] >= 64 * MIB
        assert after["cached"]["Cached"] < before["cached"]["Cached"] - 20 * MIB
        assert after["cached"]["AnonPages"] > before["cached"]["AnonPages"] - 2 * MIB
        assert hot.verify().errors == 0
        assert cached.verify().errors == 0
    finally:
        hot.end()
        cached.end()


@pytest.fixture
def swap_area(disk_path: Path) -> Generator[Path, None, None]:
    """A swap file of 256 MiB in use, as root."""
    path = disk_path / "swap"
    with path.open("wb") as file:
        for _ in range(256):
            file.write(bytes(MIB))
    path.chmod(0o600)
    tools = {name: shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") for name in ("mkswap", "swapon", "swapoff")}
    if None in tools.values():
        pytest.skip("mkswap and swapon are not installed")
    subprocess.run([str(tools["mkswap"]), path], check=True, capture_output=True)
    if subprocess.run([str(tools["swapon"]), path], capture_output=True, check=False).returncode:
        pytest.skip("swapon needs root, and a file system that has swap files")
    try:
        yield path
    finally:
        subprocess.run([str(tools["swapoff"]), path], check=True)


@real
def test_what_is_cold_is_paged_out_to_a_real_swap_file_and_the_guest_is_right_afterwards(swap_area: Path) -> None:
    with Guest(work="hot:16M,cold:64M", memory_mib=160) as guest:
        cold = guest.verify().cold
        world = QemuWorld({"vm": str(guest.qmp)})
        try:
            world.facts()
            time.sleep(2)
            before = world.facts().vms[0]
            done = sum(world.swap_out("vm", 24 * MIB) for _ in range(2))
            after = world.facts().vms[0]
        finally:
            world.close()
        assert done >= 16 * MIB
        assert after.swapped_bytes >= 12 * MIB
        assert before.resident_bytes is not None
        assert after.resident_bytes is not None
        assert after.resident_bytes < before.resident_bytes - 8 * MIB
        verified = guest.verify()
        assert (verified.errors, verified.cold) == (0, cold)


@real
def test_a_guest_without_a_driver_is_sampled_and_one_that_exits_is_left_out() -> None:
    with Guest(work="hot:16M", without="virtio_balloon") as bare:
        world = QemuWorld({"bare": str(bare.qmp)})
        try:
            world.facts()
            time.sleep(1)
            (vm,) = world.facts().vms
            assert not vm.balloon.driver
            assert vm.estimate is not None
            assert vm.estimate.source == "sample"
            assert vm.estimate.nsampled == 385
            assert vm.estimate.classes.total_bytes == vm.memory_bytes == bare.memory_bytes
            bare.kill()
            assert world.facts().vms == ()
            with pytest.raises(NotFoundError):
                world.set_balloon("bare", MIB)
        finally:
            world.close()


@real
def test_two_schedulers_do_not_govern_one_guest() -> None:
    with Guest() as guest:
        first = QemuWorld({"vm": str(guest.qmp)})
        try:
            with pytest.raises(BusyError, match=f"vm: another scheduler governs QEMU process {guest.pid}"):
                QemuWorld({"vm": str(guest.qmp)})
            assert _sched("plan", "--qmp", f"vm={guest.qmp}", code=6)
        finally:
            first.close()
        second = QemuWorld({"vm": str(guest.qmp)})
        second.close()


@real
def test_the_daemon_puts_balloons_back_when_told_to() -> None:
    with Guest(work="idle", memory_mib=192) as guest:
        options = ["--qmp", f"vm={guest.qmp}", "--free-target", "99%", "--no-swap", "--every", "1", "--restore"]
        process = subprocess.Popen(
            [sys.executable, "-m", "nvmtool", "sched", "apply", *options, "--json"], stdout=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        with guest.control() as ask:
            try:
                while ask("query-balloon")["actual"] == guest.memory_bytes:
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
                process.terminate()
                process.communicate(timeout=30)
            finally:
                process.kill()
                process.wait()
            assert process.returncode == 0
            while ask("query-balloon")["actual"] != guest.memory_bytes:
                assert time.monotonic() < deadline
                time.sleep(0.2)


@contextmanager
def _stand_in(path: Path, stats: dict[str, int] | None) -> Iterator[None]:
    """Listen like a QEMU: with statistics, as a guest that reports them; without, as one that never says a word."""
    command = [sys.executable, "-m", "tests.live.qmp_standin", str(path), *([json.dumps(stats)] if stats is not None else [])]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()


ALL_ONES = dict.fromkeys(("stat-total-memory", "stat-free-memory", "stat-available-memory", "stat-disk-caches"), (1 << 64) - 1)
NONSENSE = {"stat-total-memory": 32 * MIB, "stat-free-memory": 40 * MIB, "stat-available-memory": MIB, "stat-disk-caches": 0}


@pytest.mark.parametrize("stats", [ALL_ONES, NONSENSE], ids=["all ones", "more free than total"])
def test_statistics_that_cannot_be_are_not_believed(stats: dict[str, int], tmp_path: Path) -> None:
    with _stand_in(tmp_path / "qmp", stats):
        world = QemuWorld({"vm": str(tmp_path / "qmp")})
        try:
            world.facts()
            (vm,) = world.facts().vms
            assert vm.balloon.driver  # the statistics have come
            assert vm.memory_bytes == 64 * MIB
            assert vm.estimate is not None
            assert vm.estimate.source == "sample"
        finally:
            world.close()


def test_a_socket_that_hangs_is_a_guest_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "ANSWER_SECONDS", 0.5)
    with _stand_in(tmp_path / "qmp", None):
        world = QemuWorld({"vm": str(tmp_path / "qmp")})
        try:
            (vm,) = world.facts().vms
            assert not vm.balloon.driver
            with pytest.raises(StorageError, match="no greeting"):
                world.set_balloon("vm", MIB)
        finally:
            world.close()


def test_a_socket_without_anybody_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no QEMU listens here"):
        QemuWorld({"vm": str(tmp_path / "none")})
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "dead"))
    listener.close()
    with pytest.raises(NotFoundError, match="no QEMU listens here"):
        QemuWorld({"vm": str(tmp_path / "dead")})
