"""Power-on at once, and settling: granted memory and promised swap cover a VM's memory at every step; what cannot be kept is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from nvmtool.errors import ExistsError, RefusedError
from nvmtool.host import layout as lay
from nvmtool.host.accounting import account
from nvmtool.host.create import create_pool, create_vm
from nvmtool.host.daemon import run_host
from nvmtool.host.host import Host
from nvmtool.host.power import power_off, power_on, promised_pages, settle
from nvmtool.host.suspend import suspend
from nvmtool.stopping import Stop
from nvmtool.swap.reservation import reservation_info

from .ground import MIB, PAGE, expected, killed_at, lines_of, make_host, memory_of, require_sound, write

BLOCK_PAGES = MIB // PAGE


def _covered(host: Host, name: str) -> bool:
    vm = host.vm(name)
    return vm.granted_pages + promised_pages(host, vm) >= vm.memory_pages


def test_power_on_grants_what_is_free_and_promises_the_rest(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=1024)
    with Host.open(path, writable=True) as host:
        for name in "ab":
            create_vm(host, name, memory_bytes=768 * PAGE)
        assert power_on(host, "a").granted_pages == 768
        assert promised_pages(host, host.vm("a")) == 0
        assert not host.swap_path(host.vm("a")).exists()
        assert power_on(host, "b").granted_pages == 256
        assert promised_pages(host, host.vm("b")) == 512
        with pytest.raises(ExistsError, match="VM a: is on already"):
            power_on(host, "a")
    require_sound(path)


def test_settling_moves_grant_to_swap_step_by_step_down_to_the_reservation(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=2048, vms={"a": 2048}, reservation_bytes=300 * PAGE)
    with Host.open(path, writable=True) as host:
        grants = [host.vm("a").granted_pages]
        while not settle(host, "a", step_pages=BLOCK_PAGES, most_steps=1).complete:
            assert _covered(host, "a")
            grants.append(host.vm("a").granted_pages)
        assert grants == [2048 - BLOCK_PAGES * n for n in range(len(grants))]
        assert host.vm("a").granted_pages == 300
        assert _covered(host, "a")
        done = settle(host, "a")
        assert (done.steps, done.complete, done.granted_pages) == (0, True, 300)
    require_sound(path)


def test_thick_grants_the_reservation_alone_and_has_its_swap_first(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=1024)
    with Host.open(path, writable=True) as host:
        create_vm(host, "a", memory_bytes=1024 * PAGE, reservation_bytes=256 * PAGE)
        assert power_on(host, "a", thick=True).granted_pages == 256
        assert promised_pages(host, host.vm("a")) == 768
        reservation = host.reservation_path(host.pool("root"))
        assert reservation.stat().st_blocks * 512 >= 3 * MIB
    require_sound(path)


def test_a_reservation_that_does_not_fit_is_refused_with_the_amounts_before_anything_starts(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=1024, vms={"a": 600}, reservation_bytes=600 * PAGE)
    with Host.open(path, writable=True) as host:
        create_vm(host, "b", memory_bytes=1024 * PAGE, reservation_bytes=512 * PAGE)
        before = reservation_info(host.reservation_path(host.pool("root")))
        with pytest.raises(RefusedError, match=r"VM b: its reservation of 2 MiB cannot be promised: 1\.66 MiB of memory are free"):
            power_on(host, "b")
        assert host.vm("b").is_off
        assert not host.swap_path(host.vm("b")).exists()
        assert reservation_info(host.reservation_path(host.pool("root"))) == before
    require_sound(path)


def test_others_settle_for_less_so_that_a_reservation_fits(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=1024, vms={"a": 1024}, reservation_bytes=256 * PAGE)
    with Host.open(path, writable=True) as host:
        assert host.vm("a").granted_pages == 1024
        create_vm(host, "b", memory_bytes=768 * PAGE, reservation_bytes=512 * PAGE)
        assert power_on(host, "b").granted_pages == 512
        assert host.vm("a").granted_pages == 512
        assert _covered(host, "a")
        assert _covered(host, "b")
    require_sound(path)


def test_a_limit_bounds_what_is_granted(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=1024, vms={"a": 768}, limit_bytes=256 * PAGE)
    with Host.open(path, writable=True) as host:
        assert host.vm("a").granted_pages == 256
        assert _covered(host, "a")
    require_sound(path)


def test_a_pools_limit_and_reservation_bound_what_its_vms_are_granted(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=1024)
    with Host.open(path, writable=True) as host:
        create_pool(host, "kept", reservation_bytes=512 * PAGE)
        create_pool(host, "small", limit_bytes=128 * PAGE)
        for name, pool in (("in", "kept"), ("out", "root"), ("less", "small")):
            create_vm(host, name, memory_bytes=1024 * PAGE, pool=pool)
        assert power_on(host, "less").granted_pages == 128
        assert power_on(host, "out").granted_pages == 1024 - 512 - 128
        assert power_on(host, "in").granted_pages == 512
    require_sound(path)


@pytest.fixture
def full(tmp_path: Path) -> Generator[Path, None, None]:
    """A host whose pool p is on a file system of 16 MiB; VM a of 3 MiB is on in it, all granted, and b of 64 MiB is off."""
    path = make_host(tmp_path, ram=2 * BLOCK_PAGES + BLOCK_PAGES)
    folder = path / "pools/p"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", folder], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        with Host.open(path, writable=True) as host:
            create_pool(host, "p")
            create_vm(host, "a", memory_bytes=3 * MIB, pool="p")
            create_vm(host, "b", memory_bytes=64 * MIB, pool="p")
            power_on(host, "a")
            write(host, "a", {ppn: ppn + 1 for ppn in range(8)})
        yield path
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_swap_that_cannot_be_promised_refuses_the_power_on(full: Path) -> None:
    with Host.open(full, writable=True) as host:
        before = sorted((full / "pools/p").iterdir())
        with pytest.raises(RefusedError, match=r"VM b: .* of swap cannot be promised: .*reservation has .* free"):
            power_on(host, "b")
        assert host.vm("b").is_off
        assert sorted((full / "pools/p").iterdir()) == before
    require_sound(full)


def test_a_step_without_storage_leaves_the_vm_running_and_is_tried_again(full: Path) -> None:
    filler = full / "pools/p/filler"
    room = os.statvfs(filler.parent)
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize - MIB // 2))
    with Host.open(full, writable=True) as host:
        failed = settle(host, "a", step_pages=BLOCK_PAGES)
        assert failed.failure is not None
        assert not failed.complete
        assert _covered(host, "a")
        assert memory_of(host, "a") == expected({ppn: ppn + 1 for ppn in range(8)}, 3 * BLOCK_PAGES)
    lines = list(run_host(full, interval=0.01, stop=Stop(), rounds=1))
    assert any("a" in line and "space" in line for line in lines), lines
    require_sound(full)
    filler.unlink()
    with Host.open(full, writable=True) as host:
        done = settle(host, "a", step_pages=BLOCK_PAGES)
        assert (done.failure, done.steps > 0) == (None, True)
        assert _covered(host, "a")
    require_sound(full)


def test_a_kill_anywhere_in_settling_keeps_memory_and_swap_at_least_the_vms_memory(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=3 * BLOCK_PAGES, vms={"a": 3 * BLOCK_PAGES})

    def work() -> None:
        with Host.open(path, writable=True) as host:
            settle(host, "a", step_pages=BLOCK_PAGES, most_steps=1)

    nlines = lines_of(work)
    for line in range(1, nlines, max(nlines // 8, 1)):
        killed_at(work, line)
        with Host.open(path) as host:
            assert _covered(host, "a")
    require_sound(path)
    with Host.open(path, writable=True) as host:
        assert settle(host, "a").complete
    require_sound(path)


def test_off_and_on_again_is_a_new_machine(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=512, vms={"a": 256})
    with Host.open(path, writable=True) as host:
        write(host, "a", {ppn: f"p{ppn}" for ppn in range(256)})
        settle(host, "a")
        assert power_off(host, "a") == 256
        assert not host.swap_path(host.vm("a")).exists()
        reservation = reservation_info(host.reservation_path(host.pool("root")))
        assert (reservation["promised_bytes"], reservation["lent_bytes"]) == (0, 0)
        power_on(host, "a")
        assert memory_of(host, "a") == bytes(256 * PAGE)
    require_sound(path)


def test_two_power_ons_at_once_are_not_granted_the_same_memory(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=1024)
    with Host.open(path, writable=True) as host:
        for name in ("a", "b", "c"):
            create_vm(host, name, memory_bytes=700 * PAGE)
    command = [sys.executable, "-m", "nvmtool", "vm", "power-on", "--host", str(path)]
    processes = [subprocess.Popen([*command, name], stdout=subprocess.DEVNULL) for name in ("a", "b", "c")]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    with Host.open(path) as host:
        assert sum(vm.granted_pages for vm in host.all_vms()) == 1024
        assert all(_covered(host, name) for name in ("a", "b", "c"))
    require_sound(path)


def test_what_a_suspended_vm_has_is_not_granted_to_others(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=1024, vms={"a": 512}, reservation_bytes=512 * PAGE)
    with Host.open(path, writable=True) as host:
        write(host, "a", {ppn: f"p{ppn}" for ppn in range(512)})
        suspend(host, "a")
        create_vm(host, "b", memory_bytes=1024 * PAGE, reservation_bytes=768 * PAGE)
        with pytest.raises(RefusedError, match="2 MiB of memory are free"):
            power_on(host, "b")
        assert account(host).suspended_pages == 512
        assert host.vm("a").state == lay.SUSPENDED
    require_sound(path)
