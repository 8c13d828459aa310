"""Suspend, restart, resume: nothing moves, nothing is copied, no count is saved, parked frames are swept at the right moment."""

from __future__ import annotations

import itertools
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from nvmtool.errors import DamagedError, NotFoundError, RefusedError
from nvmtool.host import layout as lay
from nvmtool.host.accounting import account
from nvmtool.host.host import Host
from nvmtool.host.power import power_off, power_on, settle
from nvmtool.host.reclaim import reclaim
from nvmtool.host.sharing import share
from nvmtool.host.suspend import restart, resume, suspend

from .ground import expected, make_host, memory_of, mpns_of, page_of, require_sound, table_of, words_of, write

NAMES = ("a", "b", "c")
PAGES = 16
# Page frames 0 to 3 are alike in all three, 4 and 5 in two of them; 6 is zeros in all; 7 is each one's own.
HOLD: dict[str, dict[int, object]] = {
    name: {**{ppn: f"all{ppn}" for ppn in range(4)}, **({} if name == "c" else {4: "two4", 5: "two5"}), 6: 0, 7: f"own {name}", 15: name}
    for name in NAMES
}


def _restart(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        restart(host)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A host with three VMs that hold HOLD, shared."""
    path = make_host(tmp_path, vms=dict.fromkeys(NAMES, PAGES))
    with Host.open(path, writable=True) as host:
        for name in NAMES:
            write(host, name, HOLD[name])
        share(host)
    return path


@pytest.mark.parametrize("order", list(itertools.permutations(NAMES)), ids="".join)
def test_every_mpn_and_count_is_the_same_after_a_restart_in_whatever_order_vms_resume(order: Sequence[str], path: Path) -> None:
    with Host.open(path, writable=True) as host:
        mpns = {name: mpns_of(host, name) for name in NAMES}
        words = {name: words_of(host, name).tolist() for name in NAMES}
        counts = table_of(host)
        assert sum(mpn >= 0 for each in mpns.values() for mpn in each) == 3 * 7 + 2 * 2
        assert (lay.SHARED, 3) in counts
        bytes_before = host.memory.ram.rows.copy()
        for name in NAMES:
            moved = suspend(host, name)
            assert (moved.pages, moved.shared_pages) == (
                sum(mpn >= 0 for mpn in mpns[name]),
                sum(w >= lay.SHARED_FLAG for w in words[name]),
            )
            assert mpns_of(host, name) == mpns[name]
        assert np.array_equal(host.memory.ram.rows, bytes_before)
    _restart(path)
    with Host.open(path, writable=True) as host:
        assert [mpns_of(host, name) for name in NAMES] == [mpns[name] for name in NAMES]
        for name in order:
            resume(host, name)
            assert memory_of(host, name) == expected(HOLD[name], PAGES)
        assert {name: words_of(host, name).tolist() for name in NAMES} == words
        assert table_of(host) == counts
        assert np.array_equal(host.memory.ram.rows, bytes_before)
    require_sound(path)


def _suspended_with(folder: Path, sharers: int) -> dict[str, bytes]:
    """Return the persistent files of a host whose VMs, five of them, hold one page each, which so many of them share."""
    folder.mkdir()
    path = make_host(folder, vms={f"vm{n}": PAGES for n in range(5)})
    with Host.open(path, writable=True) as host:
        for n in range(5):
            write(host, f"vm{n}", {3: "common" if n < sharers else f"vm{n}"})
        share(host)
        assert table_of(host)[mpns_of(host, "vm0")[3]] == (lay.SHARED, sharers)
        for n in range(5):
            suspend(host, f"vm{n}")
    return {str(file.relative_to(path)): file.read_bytes() for file in (path / "host.nvh", *sorted((path / "vms").iterdir()))}


def test_no_reference_count_is_saved_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fixed(sharers: int) -> dict[str, bytes]:
        numbers = itertools.count(1)
        with monkeypatch.context() as patch:
            patch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=next(numbers)))
            patch.setattr(time, "time_ns", lambda: 10**18)
            return _suspended_with(tmp_path / str(sharers), sharers)

    two, five = fixed(2), fixed(5)
    # The two VMs that share in both hosts left the same bytes: whether two or five name the frame is nowhere.
    assert two["host.nvh"] == five["host.nvh"]
    assert [two[f"vms/vm{n}.map"] == five[f"vms/vm{n}.map"] for n in range(5)] == [True, True, False, False, False]
    assert not any(
        "count" in field or "ref" in field for dtype in (lay.VM_RECORD, lay.MAP_HEADER) for field in dtype.names or () if field != "recount"
    )


def test_a_parked_frame_is_swept_with_the_last_suspended_vm_and_not_earlier(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        frame = mpns_of(host, "a")[4]
        assert table_of(host)[frame] == (lay.SHARED, 2)
        suspend(host, "c")  # names it not, but nobody looks
        write(host, "a", {4: "a's"})
        assert table_of(host)[frame] == (lay.SHARED, 1)
        write(host, "b", {4: "b's"})
        assert table_of(host)[frame] == (lay.PARKED, 0)
        assert account(host).parked_pages == 1
    _restart_needs_all_suspended(path)
    with Host.open(path, writable=True) as host:
        suspend(host, "a")
        suspend(host, "b")
        assert resume(host, "a").frames_swept == 0
        assert resume(host, "c").frames_swept == 0
        assert table_of(host)[frame] == (lay.PARKED, 0)
        free = host.frames.free_pages
        assert resume(host, "b").frames_swept == 1
        assert host.frames.free_pages == free + 1
        assert table_of(host)[frame] == (lay.FREE, 0)
    require_sound(path)


def _restart_needs_all_suspended(path: Path) -> None:
    with Host.open(path, writable=True) as host, pytest.raises(RefusedError, match="a is on, b is on"):
        restart(host)


def test_a_frame_that_only_suspended_vms_name_is_kept_for_them(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        frame = mpns_of(host, "a")[4]
        suspend(host, "a")
        write(host, "b", {4: "b's"})
        assert table_of(host)[frame] == (lay.PARKED, 0)
        assert resume(host, "a").frames_swept == 0
        assert table_of(host)[frame] == (lay.SHARED, 1)
        assert memory_of(host, "a") == expected(HOLD["a"], PAGES)
    require_sound(path)


def test_sharing_broken_while_others_are_suspended_leaves_theirs_alone(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        suspend(host, "b")
        suspend(host, "c")
        write(host, "a", {0: "new", 1: "new too"})
        assert memory_of(host, "a") == expected({**HOLD["a"], 0: "new", 1: "new too"}, PAGES)
        assert memory_of(host, "b") == expected(HOLD["b"], PAGES)
        suspend(host, "a")
    _restart(path)
    with Host.open(path, writable=True) as host:
        for name in ("c", "a", "b"):
            resume(host, name)
        assert memory_of(host, "a") == expected({**HOLD["a"], 0: "new", 1: "new too"}, PAGES)
        assert [memory_of(host, name) == expected(HOLD[name], PAGES) for name in ("b", "c")] == [True, True]
        assert table_of(host)[mpns_of(host, "b")[0]] == (lay.SHARED, 2)
    require_sound(path)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_vm_powered_off_while_suspended_leaves_what_others_name(restarted: bool, path: Path) -> None:
    with Host.open(path, writable=True) as host:
        for name in NAMES:
            suspend(host, name)
    if restarted:
        _restart(path)
    with Host.open(path, writable=True) as host:
        power_off(host, "a")
        assert not host.saved_map_path(host.vm("a")).exists()
        for name in ("b", "c"):
            resume(host, name)
            assert memory_of(host, name) == expected(HOLD[name], PAGES)
        assert account(host).parked_pages == 0
        power_off(host, "b")
        power_off(host, "c")
        assert account(host).free_pages == host.nram
    require_sound(path)


def test_all_powered_off_while_suspended_free_everything(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        for name in NAMES:
            suspend(host, name)
        for name in NAMES:
            power_off(host, name)
        assert account(host).free_pages == host.nram
    require_sound(path)


def test_what_was_swapped_out_comes_back_too(tmp_path: Path) -> None:
    path = make_host(tmp_path, vms={"a": 64})
    hold: dict[int, object] = {ppn: f"page {ppn}" for ppn in range(64)}
    with Host.open(path, writable=True) as host:
        write(host, "a", hold)
        settle(host, "a")
        assert reclaim(host, 32).pages == 32
        assert sum(mpn < 0 for mpn in mpns_of(host, "a")) == 32
        assert suspend(host, "a").pages == 32
    _restart(path)
    with Host.open(path, writable=True) as host:
        resume(host, "a")
        assert memory_of(host, "a") == expected(hold, 64)
    require_sound(path)


def test_only_what_runs_can_be_suspended_and_only_what_is_suspended_resumed(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        with pytest.raises(RefusedError, match="a: is on, not suspended"):
            resume(host, "a")
        suspend(host, "a")
        with pytest.raises(RefusedError, match="a: is suspended, only a running VM"):
            suspend(host, "a")
        power_off(host, "b")
        with pytest.raises(RefusedError, match="b: is off"):
            suspend(host, "b")
        with pytest.raises(NotFoundError):
            suspend(host, "never")
    require_sound(path)


def test_a_restart_by_force_loses_what_runs_and_keeps_what_is_suspended(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        suspend(host, "b")
        assert restart(host, force=True) == 2
    with Host.open(path, writable=True) as host:
        assert [host.vm(name).state_name for name in NAMES] == ["off", "suspended", "off"]
        resume(host, "b")
        assert memory_of(host, "b") == expected(HOLD["b"], PAGES)
        power_on(host, "a")
        assert memory_of(host, "a") == bytes(PAGES * lay.PAGE)
    require_sound(path)


def test_a_damaged_saved_map_is_named_and_nothing_is_lost(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        suspend(host, "a")
        file = host.saved_map_path(host.vm("a"))
    shutil.copy(file, path.parent / "whole")
    with file.open("r+b") as opened:
        opened.seek(lay.MAP_START * lay.PAGE + 3 * 8)
        opened.write(b"\x01")
    with Host.open(path, writable=True) as host, pytest.raises(DamagedError, match=r"a\.map: map word at 0x"):
        resume(host, "a")
    shutil.copy(path.parent / "whole", file)
    with Host.open(path, writable=True) as host:
        resume(host, "a")
        assert memory_of(host, "a") == expected(HOLD["a"], PAGES)
    require_sound(path)


def test_a_resume_and_a_suspension_can_be_turned_around_half_way(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        words = words_of(host, "a").tolist()
        suspend(host, "a", batch=1, most_batches=5)
        resume(host, "a", batch=2, most_batches=1)
        suspend(host, "a", batch=3)
        resume(host, "a", batch=1, most_batches=4)
        suspend(host, "a")
        resume(host, "a")
        assert words_of(host, "a").tolist() == words
        assert memory_of(host, "a")[7 * lay.PAGE :][: lay.PAGE] == page_of("own a")
    require_sound(path)
