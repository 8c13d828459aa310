"""Making hosts, pools and VMs: durable or not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvmtool.errors import ExistsError, NoSpaceError, NotFoundError, RefusedError, UsageError
from nvmtool.host.create import create_pool, create_vm, delete_pool, delete_vm, init_host
from nvmtool.host.host import Host

from .ground import MIB, PAGE, killed_at, lines_of, make_host, require_sound


def test_a_host_for_which_there_is_no_space_leaves_nothing(small_tmpfs: Path) -> None:
    for ram in (64 * MIB, 5 * MIB):  # the memory does not fit, or what comes after it
        with pytest.raises(NoSpaceError):
            init_host(small_tmpfs / "host", ram_bytes=ram)
        assert list(small_tmpfs.iterdir()) == []


def test_memory_on_a_folder_of_its_own_leaves_nothing_there_either(tmp_path: Path, small_tmpfs: Path) -> None:
    with pytest.raises(NoSpaceError):
        init_host(tmp_path / "host", ram_bytes=64 * MIB, memory=small_tmpfs)
    assert list(small_tmpfs.iterdir()) == []
    assert not (tmp_path / "host").exists()
    init_host(tmp_path / "host", ram_bytes=4 * MIB, memory=small_tmpfs)
    assert (tmp_path / "host/memory").resolve().is_relative_to(small_tmpfs)
    require_sound(tmp_path / "host")


def test_an_init_killed_anywhere_can_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "host"

    def work() -> None:
        init_host(path, ram_bytes=MIB)

    nlines = lines_of(lambda: init_host(tmp_path / "other", ram_bytes=MIB))
    for line in range(1, nlines, max(nlines // 10, 1)):
        if killed_at(work, line) and not (path / "host.nvh").exists():
            work()
        require_sound(path)
        for file in sorted(path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        path.rmdir()


def test_pools_nest_promise_and_are_deleted_empty(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=256)
    with Host.open(path, writable=True) as host:
        create_pool(host, "web", reservation_bytes=128 * PAGE, limit_bytes=192 * PAGE)
        create_pool(host, "front", parent="web", reservation_bytes=96 * PAGE)
        with pytest.raises(RefusedError, match="pool back: cannot reserve 400 KiB: pool web has 384 KiB to promise"):
            create_pool(host, "back", parent="web", reservation_bytes=100 * PAGE)
        with pytest.raises(RefusedError, match="pool other: cannot reserve"):
            create_pool(host, "other", reservation_bytes=129 * PAGE)
        with pytest.raises(UsageError, match=r"limit .* is below its reservation"):
            create_pool(host, "odd", reservation_bytes=2 * PAGE, limit_bytes=PAGE)
        with pytest.raises(ExistsError):
            create_pool(host, "web")
        create_vm(host, "vm", memory_bytes=64 * PAGE, pool="front")
        for name, users in (("web", "front"), ("front", "vm"), ("root", "stays")):
            with pytest.raises(RefusedError, match=users):
                delete_pool(host, name)
        delete_vm(host, "vm")
        delete_pool(host, "front")
        delete_pool(host, "web")
        with pytest.raises(NotFoundError):
            host.pool("web")
        assert not (path / "pools/web").exists()
    require_sound(path)


def test_a_vm_is_deleted_when_it_is_off(tmp_path: Path) -> None:
    path = make_host(tmp_path, vms={"a": 16})
    with Host.open(path, writable=True) as host:
        with pytest.raises(RefusedError, match="a: is on"):
            delete_vm(host, "a")
        for bad in ("", "a/b", ".", "..", "x" * 64, "-", "größer 雪"):
            with pytest.raises(UsageError):
                create_vm(host, bad, memory_bytes=16 * PAGE)
    require_sound(path)
