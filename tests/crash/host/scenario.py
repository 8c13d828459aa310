"""One walk through what a host does to memory, which insists on each promise at each step: what a planted bug must stumble over."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nvmtool.host.admission import guarantees
from nvmtool.host.create import create_vm
from nvmtool.host.host import Host
from nvmtool.host.lending import give_back, lend
from nvmtool.host.power import power_on, settle
from nvmtool.host.reclaim import reclaim
from nvmtool.host.sharing import share
from nvmtool.host.space import Space
from nvmtool.host.suspend import restart, resume, suspend
from tests.host.ground import (
    MIB,
    PAGE,
    expected,
    killed_at,
    lines_of,
    make_host,
    memory_of,
    mpns_of,
    page_of,
    require_sound,
    table_of,
    write,
)

PAGES = 24


def walk(folder: Path) -> None:
    """Share, suspend, write, restart, resume, lend, return, swap, be killed; raises AssertionError or NvmtoolError."""
    path = make_host(folder, ram=44, nvm_bytes=4 * MIB)
    with Host.open(path, writable=True) as host:
        for name in "abc":
            create_vm(host, name, memory_bytes=PAGES * PAGE, reservation_bytes=4 * PAGE)
            power_on(host, name)
    hold: dict[str, dict[int, object]] = {name: {0: "x", 1: "x", 2: "two" if name != "c" else "c", 3: name, 20: 0} for name in "abc"}
    for name, pages in hold.items():
        pages |= {17: f"{name} twice", 18: f"{name} twice"}
    _suspend_and_write(path, hold)
    _restart(path, hold)
    _lend(path, hold)
    _swap(path, hold)
    _kill(path, hold)


def _require(path: Path, hold: dict[str, dict[int, object]], *, may_leak: bool = False) -> None:
    require_sound(path, may_leak=may_leak)
    with Host.open(path, writable=True) as host:
        for name, pages in hold.items():
            assert memory_of(host, name) == expected(pages, PAGES), f"VM {name} does not hold what it held"


def _suspend_and_write(path: Path, hold: dict[str, dict[int, object]]) -> None:
    with Host.open(path, writable=True) as host:
        for name in "abc":
            write(host, name, hold[name])
        share(host)
        vm = host.vm("a")
        with host.vm_turns([vm.number]), Space(host, vm) as space:
            # Whoever writes a part of a shared page must find the rest of it.
            space.own(17)
            assert bytes(space.page(17)) == page_of("a twice")
        counts = table_of(host)
        suspend(host, "b", batch=2)
        granted = sum(vm.granted_pages for vm in host.all_vms())
        kept = sum(min(vm.saved_pages, vm.granted_pages) if vm.name == "b" else vm.granted_pages for vm in host.all_vms())
        assert guarantees(host).total == kept <= granted
    _require(path, hold)
    with Host.open(path, writable=True) as host:
        resume(host, "b", batch=2)
        assert table_of(host) == counts
        suspend(host, "b")
        # Both names of a frame go while b may name it; then what b shares alone is written over by nobody.
        for name, pages in (("a", {2: "new", 0: "other"}), ("c", {0: "third"})):
            write(host, name, pages)
            hold[name] |= pages
        write(host, "a", {ppn: f"fill{ppn}" for ppn in range(4, 16)})
        hold["a"] |= {ppn: f"fill{ppn}" for ppn in range(4, 16)}
    _require(path, hold)


def _restart(path: Path, hold: dict[str, dict[int, object]]) -> None:
    with Host.open(path, writable=True) as host:
        for name in "ac":
            suspend(host, name, batch=5)
        mpns = {name: mpns_of(host, name) for name in "abc"}
        life = host.life
        restart(host)
        assert host.life == life + 1
    _require(path, hold)
    with Host.open(path, writable=True) as host:
        for name in "bac":
            resume(host, name, batch=3)
        assert {name: mpns_of(host, name) for name in "abc"} == mpns
    _require(path, hold)


def _lend(path: Path, hold: dict[str, dict[int, object]]) -> None:
    with Host.open(path, writable=True) as host:
        lend(host, 32)
        # The last ones find RAM full.
        for name in "abc":
            pages: dict[int, object] = {ppn: f"{name}{ppn}" if ppn % 2 else "alike" for ppn in range(PAGES)}
            write(host, name, pages, pressed=True)
            hold[name] = pages
        write(host, "a", {1: "last"})
        hold["a"][1] = "last"
        suspend(host, "b")
        assert any(mpn >= host.nram for mpn in mpns_of(host, "c"))
        assert any(mpn >= host.nram for mpn in mpns_of(host, "b"))
        share(host)
        assert give_back(host, 32).pages == 32
    _require(path, hold)
    with Host.open(path, writable=True) as host:
        resume(host, "b")
    _require(path, hold)


def _swap(path: Path, hold: dict[str, dict[int, object]]) -> None:
    with Host.open(path, writable=True) as host:
        for name in "abc":
            settle(host, name, step_pages=10)
        reclaim(host, 20)
    _require(path, hold)


def _kill(path: Path, hold: dict[str, dict[int, object]]) -> None:
    """Kill a writer, and a sharing that changes the table, in their middles."""

    def writer() -> None:
        with Host.open(path, writable=True) as host:
            write(host, "c", {ppn: f"killed{ppn}" for ppn in range(0, PAGES, 3)}, pressed=True)

    def sharer() -> None:
        with Host.open(path, writable=True) as host:
            write(host, "a", dict.fromkeys(range(8), "same"), pressed=True)
            share(host)

    with Host.open(path, writable=True) as host:
        with host.frames_turn() as frames:
            frames.take(2, 99)
        host.frames.put("working", 1)
        with host.frames_turn():
            pass
    require_sound(path, may_leak=True)
    for work in (writer, sharer):
        nlines = lines_of(work)
        for line in np.linspace(nlines // 4, nlines, 12).astype(int).tolist():
            killed_at(work, line)
            require_sound(path, may_leak=True)
            with Host.open(path, writable=True) as host, host.frames_turn():
                pass
            work()
            require_sound(path, may_leak=True)
    hold["c"] |= {ppn: f"killed{ppn}" for ppn in range(0, PAGES, 3)}
    hold["a"] |= dict.fromkeys(range(8), "same")
    _require(path, hold, may_leak=True)
