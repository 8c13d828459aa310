"""Governing over time: order, memory of the past, and what goes wrong with single VMs."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest

from nvmtool.errors import NotFoundError, StorageError, UsageError
from nvmtool.sched.facts import Balloon, Facts, State
from nvmtool.sched.loop import Governor, History, Outcome, govern
from nvmtool.sched.plan import Plan
from nvmtool.sched.settings import Settings, Terms
from nvmtool.stopping import Stop

from .host import GIB, gib, host, vm

IDLE = {"hot": 1, "anon": 3, "file": 2, "free": 2}


class Ledger:
    """A world that says what it is told to say, and writes down what it is asked to do."""

    def __init__(self, *facts: Facts) -> None:
        self.left = list(facts)
        self.steps: list[tuple[Any, ...]] = []
        self.errors: dict[str, Exception] = {}

    def facts(self) -> Facts:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]

    def _step(self, what: str, name: str, size: int) -> int:
        if name in self.errors:
            raise self.errors[name]
        self.steps.append((what, name, size))
        return size

    def set_balloon(self, name: str, size_bytes: int) -> None:
        self._step("balloon", name, size_bytes)

    def swap_out(self, name: str, size_bytes: int) -> int:
        return self._step("out", name, size_bytes)

    def swap_in(self, name: str, size_bytes: int) -> int:
        return self._step("in", name, size_bytes)

    def share(self, name: str, size_bytes: int) -> int:
        return self._step("share", name, size_bytes)

    def close(self) -> None:
        self.steps.append(("close",))


def governor(*facts: Facts, **settings: Any) -> tuple[Governor, Ledger]:
    world = Ledger(*facts)
    return Governor(world, Settings(**{"headroom": 0.0, **settings})), world


def test_memory_is_taken_before_it_is_given_and_balloons_are_told_before_anything_is_swapped() -> None:
    needs = vm("needs", 4, balloon=4, reservation=6.0)
    gives = vm("gives", 1, 6, 0.5, 0.5, sharable=0.25)
    ruler, world = governor(host(64, 12.8, needs, gives, target=0.2))
    _, outcome = ruler.once(0.0)
    assert [step[:2] for step in world.steps] == [("balloon", "gives"), ("share", "gives"), ("out", "gives"), ("balloon", "needs")]
    assert sum(step[2] for step in world.steps if step[1] == "gives") == pytest.approx(gib(2), abs=8192)
    assert (outcome.balloons_told, outcome.shared_bytes, outcome.failures, outcome.deferred) == (2, gib(0.25), (), ())


def test_nothing_is_given_that_would_bring_the_host_below_hard() -> None:
    needs = vm("needs", 4, balloon=4, reservation=6.0)
    ruler, world = governor(host(64, 3, needs, vm("gives", 1, 0, 5, 2)))
    _, outcome = ruler.once(0.0)
    assert outcome.deferred == ("needs",)
    assert [step[1] for step in world.steps] == ["gives"]


def test_a_vm_that_exits_is_no_failure_and_one_that_hangs_hurts_nobody_else() -> None:
    ruler, world = governor(host(64, 3, *(vm(name, 1, 0, 5, 2) for name in "abc"), target=0.2))
    world.errors = {"a": NotFoundError("a: it has exited"), "b": StorageError("b: no answer in 5 s")}
    _, outcome = ruler.once(0.0)
    assert [step[1] for step in world.steps] == ["c"]
    assert outcome.failures == (("b", "b: no answer in 5 s"),)
    assert outcome.balloons_told == 1


def at(size: float, target: float | None, **more: Any) -> Facts:
    """Return a short host whose VM's balloon holds `size` and was told `target`, and another VM."""
    told = None if target is None else gib(target)
    first = vm("a", 1, 2, 4 - size, 1, balloon=Balloon(size_bytes=gib(size), target_bytes=told, **more))
    return host(64, 10, first, vm("b", **IDLE), target=0.2)


def test_a_balloon_that_does_not_move_for_five_seconds_is_stuck_and_tried_again_later() -> None:
    history = History(Settings())

    def stalled(now: float, size: float, target: float | None) -> float:
        return history.informed(at(size, target), now).vms[0].balloon.stalled_s

    assert stalled(0, 0, 2) == 0
    assert stalled(4, 0, 2) == 4
    assert stalled(4.5, 0.5, 2) == 0
    assert stalled(9, 0.5, 2) == 4.5
    assert stalled(9.5, 0.5, 2) == 5
    # Its order was taken back, so that it is where it should be; it is not trusted for a while all the same.
    assert stalled(20, 0.5, 0.5) == 5
    assert stalled(69.4, 0.5, 0.5) == 5
    assert stalled(69.5, 0.5, 0.5) == 0
    assert stalled(80, 0.5, 1) == 0
    assert stalled(90, 0.5, 1) == 10
    assert stalled(91, 0.75, 1) == 0


def test_the_work_of_a_stuck_balloon_goes_elsewhere() -> None:
    first = at(0, None)
    ruler, world = governor(first)
    ruler.once(0.0)
    ordered = {name: size for what, name, size in world.steps if what == "balloon"}
    assert ordered.keys() == {"a", "b"}
    # The other one's has arrived.
    b = dataclasses.replace(vm("b", 1, 3, 2, 2), balloon=Balloon(size_bytes=ordered["b"]))
    world.left = [host(64, 11, first.vms[0], b, target=0.2)]
    world.steps.clear()
    plan, _ = ruler.once(10.0)
    assert "driver-stuck" in plan.vms[0].reasons
    assert world.steps[0] == ("balloon", "a", 0), "its order is taken back"
    assert [step[:2] for step in world.steps[1:]] == [("balloon", "b"), ("out", "a")], "its anonymous pages are swapped"
    assert plan.host.short_bytes == 0


def test_an_order_counts_where_the_world_does_not_remember_it() -> None:
    ruler, world = governor(at(0, None), at(0, None))
    first, _ = ruler.once(0.0)
    world.steps.clear()
    second, _ = ruler.once(1.0)
    assert first.host.wanted_bytes > 0
    assert (second.host.wanted_bytes, world.steps) == (0, [])


def test_the_state_and_the_cool_down_are_remembered() -> None:
    idle = vm("a", 2, 0, 1, 1, balloon=Balloon(size_bytes=4 * GIB, target_bytes=4 * GIB))
    short, between, plenty = host(64, 2, vm("a", **IDLE)), host(64, 3, idle), host(64, 32, idle)
    ruler, _ = governor(short, between, plenty, plenty, plenty)
    states = [(plan.host.state, plan.vms[0].reason) for plan, _ in (ruler.once(now) for now in (0.0, 20.0, 49.0, 51.0))]
    assert states[0] == (State.SOFT, "idle-memory")
    assert states[1] == (State.SOFT, "idle-memory"), "3 of 64 GiB are more than soft, and the host is not out of it yet"
    assert states[2] == (State.HIGH, "cool-down")
    assert states[3] == (State.HIGH, "surplus")


def test_restore_puts_back_only_what_was_told_and_to_where_it_was() -> None:
    # The second VM is at its minimum and is never told anything.
    first = vm("a", 1, 0, 4, 2, balloon=Balloon(size_bytes=GIB, target_bytes=GIB))
    ruler, world = governor(host(64, 10, first, vm("b", **IDLE, minimum=8.0), target=0.2))
    ruler.once(0.0)
    world.steps.clear()
    assert ruler.restore().balloons_told == 1
    assert world.steps == [("balloon", "a", GIB)]


@pytest.mark.parametrize("restore", [False, True])
def test_the_daemon_ends_when_it_is_asked_to_and_leaves_balloons_unless_told(restore: bool) -> None:
    ruler, world = governor(host(64, 10, vm("a", 1, 0, 4, 3), target=0.2))
    stop, told = Stop(), []

    def tell(plan: Plan, outcome: Outcome) -> None:
        told.append((plan, outcome))
        threading.Timer(0.05, stop.ask, ["SIGTERM"]).start()

    # An hour between two looks: it is the wait that ends.
    govern(ruler, every_s=3600, stop=stop, restore=restore, tell=tell)
    assert len(told) == 1
    assert (world.steps[-1] == ("balloon", "a", 0)) is restore


def test_an_error_of_the_world_ends_it_and_the_balloons_are_put_back() -> None:
    ruler, world = governor(host(64, 10, vm("a", 1, 0, 4, 3), target=0.2))

    def tell(_plan: Plan, _outcome: Outcome) -> None:
        raise StorageError("gone")

    with pytest.raises(StorageError):
        govern(ruler, every_s=0, stop=Stop(), restore=True, tell=tell)
    assert world.steps[-1] == ("balloon", "a", 0)


def test_terms_outlive_their_vm_and_misspelled_ones_are_noticed() -> None:
    both, one = host(64, 30, vm("a", 1), vm("b", 1)), host(64, 30, vm("a", 1))
    ruler = Governor(Ledger(both, one), Settings(), terms={"b": Terms(shares=5)})
    ruler.once(0.0)
    ruler.once(1.0)
    with pytest.raises(UsageError, match="no VM is called c"):
        Governor(Ledger(both), Settings(), terms={"c": Terms(shares=5)}).once(0.0)
