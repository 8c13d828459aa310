"""Every page is counted once: at every page of a suspension and of a resumption, and wherever a process is killed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nvmtool.host import layout as lay
from nvmtool.host.accounting import Account, account
from nvmtool.host.admission import guarantees
from nvmtool.host.create import create_pool, create_vm
from nvmtool.host.host import Host
from nvmtool.host.lending import give_back, lend
from nvmtool.host.power import power_off, power_on, settle
from nvmtool.host.sharing import share
from nvmtool.host.suspend import restart, resume, suspend

from .ground import MIB, PAGE, expected, killed_at, lines_of, make_host, memory_of, mpns_of, require_sound, write

PAGES = 12
HOLD: dict[str, dict[int, object]] = {name: {**{ppn: f"all{ppn}" for ppn in range(4)}, 5: f"own {name}", 11: 0} for name in "abc"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A host on which a, b and c share four pages, and b is suspended."""
    path = make_host(tmp_path, vms=dict.fromkeys("abc", PAGES))
    with Host.open(path, writable=True) as host:
        for name, pages in HOLD.items():
            write(host, name, pages)
        share(host)
        suspend(host, "b")
    return path


def _require_balanced(found: Account) -> None:
    assert (found.difference_pages, found.refs_difference) == (0, 0), found
    in_use = found.private_pages + found.shared_pages + found.suspended_pages + found.parked_pages + found.lent_pages
    assert in_use + found.free_pages == found.capacity_pages
    assert sum(node.consumed_pages for node in found.nodes) == found.capacity_pages


def _consumed(found: Account, name: str) -> int:
    (pages,) = [node.consumed_pages for node in found.nodes if node.name == name]
    return pages


def test_each_step_of_a_suspension_moves_one_page_from_the_vm_to_its_client_node(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        before = account(host)
        own = _consumed(before, "a")
        seen = []
        while host.vm("a").state != lay.SUSPENDED:
            moved = suspend(host, "a", batch=1, most_batches=1)
            assert moved.pages <= 1
            found = account(host)
            _require_balanced(found)
            seen.append((_consumed(found, "a"), _consumed(found, "a (client)")))
            assert sum(seen[-1]) == own
            assert found.free_pages == before.free_pages
            assert {node.reserved_pages for node in found.nodes if node.kind in ("group", "client")} == {0}
        assert len(seen) == PAGES
        assert [mine for mine, _ in seen] == sorted((mine for mine, _ in seen), reverse=True)
        assert seen[-1] == (0, own)


def test_each_step_of_a_resumption_moves_it_back(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        suspend(host, "a")
        before = account(host)
        own = _consumed(before, "a (client)")
        steps = 0
        while host.vm("a").state != lay.ON:
            resume(host, "a", batch=1, most_batches=1)
            found = account(host)
            _require_balanced(found)
            assert found.free_pages == before.free_pages
            steps += 1
        assert steps == PAGES
        assert _consumed(found, "a") == own
        assert "a (client)" not in [node.name for node in found.nodes]


def test_the_tree_has_host_pools_vms_and_client_nodes_below_each_other(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        create_pool(host, "web", reservation_bytes=16 * PAGE)
        create_pool(host, "inner", parent="web")
        create_vm(host, "w", memory_bytes=8 * PAGE, pool="inner")
        power_on(host, "w")
        nodes = {node.name: node for node in account(host).nodes}
    chain = []
    name = "b (client)"
    while name:
        chain.append(name)
        name = nodes[name].parent
    assert chain == ["b (client)", "b (suspended)", "root", "host"]
    assert (nodes["w"].parent, nodes["inner"].parent, nodes["web"].parent, nodes["root"].parent) == ("inner", "web", "root", "host")
    assert (nodes["web"].reserved_pages, nodes["inner"].reserved_pages, nodes["w"].reserved_pages) == (16, 8, 8)


def _prepare(name: str) -> Callable[[Host], object]:
    def nothing(host: Host) -> None:
        return

    return {
        "resume": lambda host: suspend(host, "a"),
        "restart": lambda host: [suspend(host, each) for each in "ac"],
        "power_off suspended": lambda host: suspend(host, "a"),
        "return": lambda host: lend(host, 8),
        "power_on": lambda host: power_off(host, "c"),
    }.get(name, nothing)


WORK: dict[str, Callable[[Host], object]] = {
    "suspend": lambda host: suspend(host, "a", batch=2),
    "resume": lambda host: resume(host, "a", batch=2),
    "restart": restart,
    "share": share,
    "power_off": lambda host: power_off(host, "a"),
    "power_off suspended": lambda host: power_off(host, "a"),
    "power_on": lambda host: power_on(host, "c"),
    "settle": lambda host: settle(host, "a"),
    "lend": lambda host: lend(host, 8),
    "return": lambda host: give_back(host, 8),
    "write": lambda host: write(host, "a", {0: "other", 4: "fresh", 5: "again"}),
}
# What these do cannot be done a second time once it is done; everything else ends the same however often it is done.
ONCE = {"suspend": "suspended", "resume": "on", "power_off": "off", "power_off suspended": "off", "power_on": "on"}
SUBJECT = {"power_on": "c"}


@pytest.mark.parametrize("name", list(WORK))
def test_whoever_is_killed_wherever_every_page_is_counted_once_and_the_same_command_finishes(name: str, tmp_path: Path) -> None:
    path = make_host(tmp_path, vms=dict.fromkeys("abc", PAGES), nvm_bytes=4 * MIB)
    with Host.open(path, writable=True) as host:
        for each, pages in HOLD.items():
            write(host, each, pages)
        share(host)
        if name == "share":
            write(host, "a", {0: "all1", 1: "all0"})
        suspend(host, "b")
        _prepare(name)(host)

    def work() -> None:
        with Host.open(path, writable=True) as host:
            WORK[name](host)

    shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-whole", symlinks=True)
    whole = tmp_path.parent / f"{tmp_path.name}-whole"
    nlines = lines_of(work)
    rng = random.Random(name)
    for line in sorted(rng.sample(range(1, nlines), 6)):
        shutil.rmtree(tmp_path)
        shutil.copytree(whole, tmp_path, symlinks=True)
        killed_at(work, line)
        _require_whole(path, name)
        with Host.open(path, writable=True) as host:
            if host.vm(SUBJECT.get(name, "a")).state_name != ONCE.get(name):
                WORK[name](host)
        _require_whole(path, name)
    shutil.rmtree(whole)


def _require_whole(path: Path, name: str) -> None:
    """Insist on a sound host, in which every VM that is not off has what it had, or what the work wrote."""
    require_sound(path)
    wrote: dict[str, dict[int, object]] = {"share": {0: "all1", 1: "all0"}, "write": {0: "other", 4: "fresh", 5: "again"}}
    with Host.open(path, writable=True) as host:
        for vm in host.all_vms():
            if vm.state not in (lay.ON, lay.SUSPENDED) or vm.name == SUBJECT.get(name):
                continue
            memory = memory_of(host, vm.name)
            old = expected(HOLD[vm.name], PAGES)
            new = expected({**HOLD[vm.name], **(wrote.get(name, {}) if vm.name == "a" else {})}, PAGES)
            for at in range(0, PAGES * PAGE, PAGE):
                # Killed between taking a frame for an untouched page and writing it, the page reads as zeros still.
                may_be = {old[at : at + PAGE], new[at : at + PAGE], *([bytes(PAGE)] if name == "write" else [])}
                assert memory[at : at + PAGE] in may_be


def test_a_host_that_its_vms_fill_exactly_suspends_restarts_and_resumes_all(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=4 * 16, vms=dict.fromkeys("abcd", 16), reservation_bytes=16 * PAGE)
    hold = {name: {ppn: f"{name}{ppn}" for ppn in range(16)} for name in "abcd"}
    with Host.open(path, writable=True) as host:
        for name, pages in hold.items():
            write(host, name, pages)
        assert account(host).free_pages == 0
        assert guarantees(host).total == host.nram
        mpns = {name: mpns_of(host, name) for name in "abcd"}
        for name in "abcd":
            suspend(host, name)
            assert guarantees(host).total == host.nram
    with Host.open(path, writable=True) as host:
        restart(host)
    with Host.open(path, writable=True) as host:
        for name in "cabd":
            while host.vm(name).state != lay.ON:
                resume(host, name, batch=4, most_batches=1)
                # Neither twice while it is between two states, nor not at all.
                assert guarantees(host).total == host.nram
                _require_balanced(account(host))
        assert {name: mpns_of(host, name) for name in "abcd"} == mpns
        assert [memory_of(host, name) == expected(hold[name], 16) for name in "abcd"] == [True] * 4
    require_sound(path)
