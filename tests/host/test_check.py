"""check finds what is wrong with a host, changes nothing unless told to, and mends what is volatile."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nvmtool.host import layout as lay
from nvmtool.host.check import check_host
from nvmtool.host.create import create_vm
from nvmtool.host.frames import frame_word
from nvmtool.host.host import Host
from nvmtool.host.power import power_off, settle
from nvmtool.host.reclaim import reclaim
from nvmtool.host.sharing import share
from nvmtool.host.suspend import suspend
from nvmtool.swap.create import create_swap
from nvmtool.swap.reservation import join

from .ground import PAGE, expected, killed_at, lines_of, make_host, memory_of, mpns_of, require_sound, write

HOLD: dict[int, object] = {0: "x", 1: "x", 2: "mine", 3: 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A host with a shared page in a (on) and b (suspended), and swapped pages in c."""
    path = make_host(tmp_path, vms=dict.fromkeys("abc", 32))
    with Host.open(path, writable=True) as host:
        for name in "abc":
            write(host, name, HOLD)
        share(host)
        settle(host, "c")
        reclaim(host, 2)
        suspend(host, "b")
    return path


def _store(host: Host, mpn: int, word: int) -> None:
    """Store one frame's word behind everybody's back."""
    with (host.path / "volatile/frames").open("r+b") as file:
        file.seek((lay.first_frame_word(host.nram) + mpn) * 8)
        file.write(word.to_bytes(8, "little"))


SPOILED: dict[str, tuple[Callable[[Host], None], str, str]] = {
    "a frame is nobody's": (lambda host: _store(host, 200, frame_word(lay.PRIVATE, 0)), "leak", "1 frames are lost"),
    "a frame is used and free": (lambda host: _store(host, mpns_of(host, "a")[2], 0), "error", "counted twice"),
    "a count is too high": (lambda host: _store(host, mpns_of(host, "a")[0], frame_word(lay.SHARED, 9)), "leak", "too high"),
    "a count is too low": (lambda host: _store(host, mpns_of(host, "a")[0], frame_word(lay.SHARED, 1)), "error", "too low"),
    "a suspended VM's frame is free": (lambda host: _store(host, mpns_of(host, "b")[0], 0), "error", "frame"),
}


@pytest.mark.parametrize("name", list(SPOILED))
def test_a_spoiled_frame_table_is_found_and_made_anew_from_the_maps(name: str, path: Path) -> None:
    spoil, severity, what = SPOILED[name]
    with Host.open(path) as host:
        spoil(host)
    raw = (path / "volatile/frames").read_bytes()
    with Host.open(path) as host:
        result = check_host(host)
        assert any(each.severity == severity and what in each.what for each in result.findings), result.findings
    assert (path / "volatile/frames").read_bytes() == raw
    with Host.open(path, writable=True) as host:
        result = check_host(host, repair=True)
        assert result.clean, result.findings
        assert result.repaired > 0
        assert memory_of(host, "b") == expected(HOLD, 32)
    require_sound(path)


def test_a_damaged_saved_map_is_an_error(path: Path) -> None:
    with (path / "vms/b.map").open("r+b") as file:
        file.seek(lay.MAP_START * PAGE + 8)
        file.write(b"\xff")
    with Host.open(path) as host:
        result = check_host(host)
    assert any(each.structure == "map" and "b.map: map word at 0x" in each.what for each in result.findings), result.findings


def test_a_missing_saved_map_is_an_error(path: Path) -> None:
    (path / "vms/b.map").unlink()
    with Host.open(path) as host:
        assert any(each.severity == "error" and "b.map" in each.what for each in check_host(host).findings)


def test_a_map_that_names_what_is_no_frame_is_an_error(path: Path) -> None:
    with Host.open(path) as host:
        number = host.vm("a").number
    with (path / f"volatile/{number}.map").open("r+b") as file:
        file.seek((lay.VM_MAP_START + 9) * 8)
        file.write((1 << 40).to_bytes(8, "little"))
    with Host.open(path) as host:
        findings = check_host(host).findings
        assert any(each.severity == "error" and "past the end" in each.what for each in findings), findings


def test_a_swap_file_that_a_killed_power_on_left_is_a_leak_that_power_off_takes_away(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        create_vm(host, "d", memory_bytes=32 * PAGE)
        create_swap(
            host.swap_path(host.vm("d")), memory_bytes=32 * PAGE, reservation=host.reservation_path(host.pool("root")), promise_bytes=0
        )
        findings = check_host(host).findings
        assert [(each.severity, each.structure) for each in findings] == [("leak", "swap file")]
        power_off(host, "d")
    require_sound(path)


def test_a_promise_to_a_swap_file_that_never_came_to_be_is_a_leak_that_repair_takes_back(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        join(host.reservation_path(host.pool("root")), uuid.uuid4().bytes, path / "pools/root/never.vswp", 0)
        assert [(each.severity, each.structure) for each in check_host(host).findings] == [("leak", "reservation: swap file")]
        assert check_host(host, repair=True).clean
    require_sound(path)


def test_a_broken_promise_is_an_error(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        with host.turn():
            host.put_vm(host.vm("c"), granted_pages=0)
            host.put_vm(host.vm("a"), granted_pages=3)
        findings = check_host(host).findings
    assert any(each.structure == "promise" and "VM a" in each.where for each in findings), findings


def test_more_guarantees_than_memory_are_an_error(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=64, vms=dict.fromkeys("abc", 32))
    with Host.open(path, writable=True) as host:
        with host.turn():
            host.put_vm(host.vm("c"), granted_pages=32)
        findings = check_host(host).findings
    assert [(each.structure, each.what) for each in findings] == [("guarantees", "96 pages are guaranteed, the host has 64")]


def test_a_damaged_record_is_an_error(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        with host.turn():
            host.put_vm(host.vm("a"), granted_pages=33)
        (finding,) = check_host(host).findings
    assert (finding.severity, finding.structure) == ("error", "record")
    assert "granted_pages is 33, out of range" in finding.what


def test_every_frame_that_a_suspended_vm_names_is_kept(path: Path) -> None:
    with Host.open(path) as host:
        frames = [mpn for mpn in mpns_of(host, "b") if mpn >= 0]
        assert not (host.frames.kinds(np.array(frames)) == lay.FREE).any()


def test_what_a_killed_power_off_left_of_swap_is_a_leak_that_power_off_takes_away(path: Path) -> None:
    """The VM is off, so that its swap file counts for nothing, however far its blocks have gone home."""

    def work() -> None:
        with Host.open(path, writable=True) as host:
            power_off(host, "c")

    whole = path.parent.with_name(f"{path.parent.name}-whole")
    shutil.copytree(path.parent, whole)
    nlines = lines_of(work)
    for line in range(nlines // 3, nlines, max(nlines // 12, 1)):
        shutil.rmtree(path.parent)
        shutil.copytree(whole, path.parent)
        killed_at(work, line)
        with Host.open(path) as host:
            assert not [each for each in check_host(host).findings if each.severity != "leak"], line
        work()
        require_sound(path)
    shutil.rmtree(whole)
