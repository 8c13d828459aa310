"""Governing a world over time: what the policy must remember between two snapshots, and carrying a plan out."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import NotFoundError, NvmtoolError
from .facts import Facts, State
from .plan import Plan, make_plan
from .settings import with_terms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..stopping import Stop
    from .facts import Balloon, VmFacts
    from .plan import VmPlan
    from .settings import Settings, Terms
    from .world import World

# A balloon this near to its target has arrived: guests round.
_ARRIVED_BYTES = 1 << 20


@dataclass(slots=True)
class _Memory:
    """What is remembered of one VM; times are the clock's."""

    told_bytes: int | None = None
    size_bytes: int | None = None
    waiting_since: float | None = None
    stuck_until: float | None = None
    shrunk_at: float | None = None
    grown_at: float | None = None


class History:
    """What the policy must know of the past: the host's state, when each VM changed last, whether its balloon moves."""

    def __init__(self, settings: Settings) -> None:
        """Nothing was seen yet."""
        self.settings = settings
        self._state: State | None = None
        self._vms: dict[str, _Memory] = {}

    def informed(self, facts: Facts, now: float) -> Facts:
        """Return the facts with what only the past tells."""
        self._vms = {vm.name: self._vms.get(vm.name) or _Memory() for vm in facts.vms}
        host = facts.host if facts.host.state_before is not None else dataclasses.replace(facts.host, state_before=self._state)
        return Facts(host, tuple(self._informed_vm(vm, self._vms[vm.name], now) for vm in facts.vms))

    def _informed_vm(self, vm: VmFacts, memory: _Memory, now: float) -> VmFacts:
        target = memory.told_bytes if vm.balloon.target_bytes is None else vm.balloon.target_bytes
        balloon = dataclasses.replace(vm.balloon, target_bytes=target)
        return dataclasses.replace(
            vm,
            balloon=dataclasses.replace(balloon, stalled_s=self._stalled_s(balloon, memory, now)),
            since_shrink_s=None if memory.shrunk_at is None else now - memory.shrunk_at,
            since_grow_s=None if memory.grown_at is None else now - memory.grown_at,
        )

    def _stalled_s(self, balloon: Balloon, memory: _Memory, now: float) -> float:
        """Return for how long a balloon has been waited for; one that was found stuck stays so until it moves, or is tried again."""
        if balloon.size_bytes != memory.size_bytes:
            memory.size_bytes, memory.waiting_since, memory.stuck_until = balloon.size_bytes, now, None
        if memory.stuck_until is not None and now < memory.stuck_until:
            return max(balloon.stalled_s, self.settings.stuck_after_s)
        if balloon.target_bytes is None or abs(balloon.target_bytes - balloon.size_bytes) < _ARRIVED_BYTES:
            memory.waiting_since = None
            return balloon.stalled_s
        memory.waiting_since = now if memory.waiting_since is None else memory.waiting_since
        stalled = max(balloon.stalled_s, now - memory.waiting_since)
        if stalled >= self.settings.stuck_after_s:
            memory.stuck_until = now + self.settings.stuck_retry_s
        return stalled

    def note(self, plan: Plan, now: float) -> None:
        """Remember what a plan that is being applied does."""
        self._state = plan.host.state
        for vm in plan.vms:
            memory = self._vms[vm.name]
            if vm.command_bytes is not None:
                memory.told_bytes, memory.waiting_since = vm.command_bytes, now
            if vm.change_bytes > 0:
                memory.shrunk_at = now
            elif vm.change_bytes < 0:
                memory.grown_at = now


@dataclass(frozen=True, slots=True)
class Outcome:
    """What applying a plan did; balloons are only told, and arrive later.

    `deferred` names VMs whose growth must wait for memory that others are still giving up; `failures` are (VM, what went wrong). A VM that
    has exited is no failure.
    """

    balloons_told: int = 0
    swapped_out_bytes: int = 0
    swapped_in_bytes: int = 0
    shared_bytes: int = 0
    deferred: tuple[str, ...] = ()
    failures: tuple[tuple[str, str], ...] = ()


def apply_plan(world: World, plan: Plan, settings: Settings) -> Outcome:
    """Carry a plan out: first all that takes memory, balloons ahead of swapping because guests work meanwhile, then what gives it.

    Nothing is given that would bring the host below hard, as far as it has memory now. Errors of single VMs are collected.
    """
    run = _Application(world)
    taking = [vm for vm in plan.vms if vm.change_bytes >= 0]
    for vm in taking:
        run.tell(vm)
    for vm in taking:
        run.swap(vm)
    spare = plan.host.free_bytes + run.freed_bytes - int(plan.host.total_bytes * settings.threshold(State.HARD))
    for vm in plan.vms:
        if vm.change_bytes >= 0:
            continue
        if -vm.change_bytes > spare:
            run.deferred.append(vm.name)
            continue
        spare += vm.change_bytes
        run.swap(vm)
        run.tell(vm)
    return run.outcome()


class _Application:
    """One plan being carried out."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.told = self.swapped_out = self.swapped_in = self.shared = 0
        self.deferred: list[str] = []
        self.failures: list[tuple[str, str]] = []

    @property
    def freed_bytes(self) -> int:
        """Return what swapping and sharing freed so far."""
        return self.swapped_out + self.shared

    def tell(self, vm: VmPlan) -> None:
        """Tell a balloon what to hold, where it must be told."""
        size = vm.command_bytes
        if size is not None and self.attempt(vm.name, lambda: self.world.set_balloon(vm.name, size)):
            self.told += 1

    def swap(self, vm: VmPlan) -> None:
        """Share, swap out or swap in what is planned."""
        if vm.share_bytes:
            self.attempt(vm.name, lambda: self._add_shared(vm))
        if vm.swap_change_bytes:
            self.attempt(vm.name, lambda: self._add_swapped(vm))

    def _add_shared(self, vm: VmPlan) -> None:
        self.shared += self.world.share(vm.name, vm.share_bytes)

    def _add_swapped(self, vm: VmPlan) -> None:
        if vm.swap_change_bytes > 0:
            self.swapped_out += self.world.swap_out(vm.name, vm.swap_change_bytes)
        else:
            self.swapped_in += self.world.swap_in(vm.name, -vm.swap_change_bytes)

    def attempt(self, name: str, step: Callable[[], None]) -> bool:
        """Take one step for a VM and return whether it was taken."""
        try:
            step()
        except NotFoundError:
            return False
        except NvmtoolError as error:
            self.failures.append((name, str(error)))
            return False
        return True

    def outcome(self) -> Outcome:
        """Return what was done."""
        return Outcome(self.told, self.swapped_out, self.swapped_in, self.shared, tuple(self.deferred), tuple(self.failures))


class Governor:
    """Governs a world: looks, plans, applies, remembers."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        *,
        terms: Mapping[str, Terms] | None = None,
        record: Callable[[Facts, float], None] | None = None,
    ) -> None:
        """Nothing is looked at yet; `record` gets the facts of each plan, with the time."""
        self.world = world
        self.settings = settings
        self.history = History(settings)
        self._terms = terms or {}
        self._record = record
        self._held_first: dict[str, int] = {}
        self._told: set[str] = set()

    def look(self, now: float) -> Facts:
        """Return what the policy may know, the past and the operator's terms included; nothing changes.

        Raises UsageError at terms for a VM that never was there.
        """
        facts = self.world.facts()
        for vm in facts.vms:
            self._held_first.setdefault(vm.name, vm.balloon.size_bytes)
        names = {vm.name for vm in facts.vms}
        # Terms outlive their VM, and misspelled ones are noticed.
        facts = with_terms(facts, {name: each for name, each in self._terms.items() if name in names or name not in self._held_first})
        facts = self.history.informed(facts, now)
        if self._record is not None:
            self._record(facts, now)
        return facts

    def plan(self, now: float) -> Plan:
        """Look and plan; nothing changes."""
        return make_plan(self.look(now), self.settings)

    def once(self, now: float) -> tuple[Plan, Outcome]:
        """Look, plan and apply; `now` is any clock's seconds that never go back."""
        plan = self.plan(now)
        self.history.note(plan, now)
        self._told |= {vm.name for vm in plan.vms if vm.command_bytes is not None}
        return plan, apply_plan(self.world, plan, self.settings)

    def restore(self) -> Outcome:
        """Tell each balloon that was told anything to hold what it held when it was first seen."""
        run = _Application(self.world)
        for name in sorted(self._told):
            if run.attempt(name, lambda name=name: self.world.set_balloon(name, self._held_first[name])):  # type: ignore[misc]
                run.told += 1
        return run.outcome()


def govern(
    governor: Governor,
    *,
    every_s: float,
    stop: Stop,
    restore: bool = False,
    tell: Callable[[Plan, Outcome], None],
) -> None:
    """Look, plan and apply every so many seconds until `stop` is asked; `tell` hears of each time.

    With `restore` the balloons are put back at the end, whatever ends it.
    """
    try:
        while not stop.reason:
            now = time.monotonic()
            tell(*governor.once(now))
            stop.wait(now + every_s - time.monotonic())
    finally:
        if restore:
            governor.restore()
