"""Any sequence of what a host does leaves each VM's memory as a plain dict says, every page counted once, and a clean check."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from nvmtool.errors import NoSpaceError, RefusedError
from nvmtool.host import layout as lay
from nvmtool.host.accounting import account
from nvmtool.host.balance import balance
from nvmtool.host.check import check_host
from nvmtool.host.create import create_vm
from nvmtool.host.host import Host
from nvmtool.host.lending import give_back, lend
from nvmtool.host.power import power_off, power_on, promised_pages, settle
from nvmtool.host.reclaim import reclaim
from nvmtool.host.sharing import share
from nvmtool.host.suspend import restart, resume, suspend
from nvmtool.host.transfer import load
from nvmtool.region.check import check_device

from .ground import MIB, PAGE, expected, make_host, memory_of, page_of, write

NAMES = ("a", "b", "c")
PAGES = 48
names = st.sampled_from(NAMES)
# Few contents, so that many pages are alike.
contents = st.dictionaries(st.integers(0, PAGES - 1), st.sampled_from([0, "x", "y", "z", 1, 2, 3]), min_size=1, max_size=24)


class Machine(RuleBasedStateMachine):
    """A host of 64 pages with three VMs of 48; `held` is the model, `state` what each VM is."""

    @initialize()
    def set_up(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nvmtool-host-"))
        self.path = make_host(self.folder, ram=64, nvm_bytes=4 * MIB)
        self.host = Host.open(self.path, writable=True)
        self.held: dict[str, dict[int, object]] = {}
        self.state = dict.fromkeys(NAMES, "off")
        for name in NAMES:
            create_vm(self.host, name, memory_bytes=PAGES * PAGE, reservation_bytes=8 * PAGE)

    def teardown(self) -> None:
        if hasattr(self, "host"):
            self.host.close()
            shutil.rmtree(self.folder)

    def running(self, name: str) -> bool:
        return self.state[name] == "on"

    @rule(name=names, thick=st.booleans())
    def power_on(self, name: str, thick: bool) -> None:
        if self.state[name] == "off":
            try:
                power_on(self.host, name, thick=thick)
            except RefusedError:
                return
            self.state[name], self.held[name] = "on", {}

    @rule(name=names)
    def power_off(self, name: str) -> None:
        power_off(self.host, name)
        self.state[name] = "off"
        self.held.pop(name, None)

    @rule(name=names, pages=contents)
    def write(self, name: str, pages: dict[int, object]) -> None:
        if not self.running(name):
            return
        for ppn, seed in pages.items():
            # All or nothing per page, so that the model knows how far it came.
            try:
                write(self.host, name, {ppn: seed}, pressed=True)
            except (NoSpaceError, RefusedError):
                # Everybody else is suspended with all of theirs guaranteed, or has no swap yet.
                return
            self.held[name][ppn] = seed

    @rule(name=names, seed=st.integers(0, 3))
    def load(self, name: str, seed: int) -> None:
        if not self.running(name) or promised_pages(self.host, self.host.vm(name)) < PAGES - 8:
            return
        rng = random.Random(seed)
        pages: dict[int, object] = {ppn: rng.choice([0, 0, "x", "y", ppn + 10]) for ppn in range(PAGES)}
        raw = self.folder / "raw"
        raw.write_bytes(b"".join(page_of(pages[ppn]) for ppn in range(PAGES)))
        load(self.host, name, raw)
        self.held[name] = pages

    @rule(name=names, step=st.integers(1, 20))
    def settle(self, name: str, step: int) -> None:
        if self.running(name):
            settle(self.host, name, step_pages=step, most_steps=2)

    @rule()
    def share(self) -> None:
        share(self.host)

    @rule(name=names, batch=st.integers(1, 30), most=st.sampled_from([None, 1, 2]))
    def suspend(self, name: str, batch: int, most: int | None) -> None:
        if self.state[name] in ("on", "between"):
            suspend(self.host, name, batch=batch, most_batches=most)
            self.state[name] = "suspended" if self.host.vm(name).state == lay.SUSPENDED else "between"

    @rule(name=names, batch=st.integers(1, 30), most=st.sampled_from([None, 1, 2]))
    def resume(self, name: str, batch: int, most: int | None) -> None:
        if self.state[name] in ("suspended", "between"):
            try:
                resume(self.host, name, batch=batch, most_batches=most)
            except RefusedError:
                return
            self.state[name] = "on" if self.host.vm(name).state == lay.ON else "between"

    @precondition(lambda self: hasattr(self, "state") and all(state in ("off", "suspended") for state in self.state.values()))
    @rule()
    def restart(self) -> None:
        restart(self.host)

    @rule(pages=st.integers(1, 40))
    def lend(self, pages: int) -> None:
        lend(self.host, pages)

    @rule(pages=st.integers(1, 100))
    def give_back(self, pages: int) -> None:
        before = self.host.frames.get("lent")
        try:
            assert give_back(self.host, pages).pages == min(pages, before)
        except NoSpaceError:
            # Only where VMs have more than they are granted, and no swap for it yet because they are between two states.
            assert "between" in self.state.values()

    @rule()
    def balance(self) -> None:
        balance(self.host, chunk_pages=8)

    @rule(pages=st.integers(1, 40))
    def reclaim(self, pages: int) -> None:
        reclaim(self.host, pages)

    @rule()
    def reopen(self) -> None:
        self.host.close()
        self.host = Host.open(self.path, writable=True)

    @invariant()
    def every_page_is_counted_once(self) -> None:
        if hasattr(self, "host"):
            found = account(self.host)
            assert (found.difference_pages, found.refs_difference) == (0, 0), found

    @invariant()
    def every_vm_holds_what_it_must(self) -> None:
        if hasattr(self, "host"):
            for name, pages in self.held.items():
                if self.state[name] != "between":
                    assert memory_of(self.host, name) == expected(pages, PAGES), name

    @invariant()
    def everything_is_in_order(self) -> None:
        if hasattr(self, "host"):
            result = check_host(self.host)
            assert result.clean, result.findings
            assert check_device(self.folder / "disk.nvm").clean


def test_any_sequence_of_operations() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)),
    )
