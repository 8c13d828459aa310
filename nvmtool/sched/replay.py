"""Replaying a scenario: the policy governs modelled guests, and what it did to them is counted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UsageError
from .facts import CLASS_NAMES
from .loop import Governor
from .model import ModelWorld, Toll

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .facts import State
    from .loop import Outcome
    from .model import Guest
    from .plan import Plan
    from .scenario import Scenario
    from .settings import Settings

MOST_INTERVALS = 100_000
# Policies stop short of a goal by so much or more, and count as there.
_THERE_BYTES = 16 << 20
# After the last moment a policy that has not come to rest by then never will.
_MOST_AFTERWARDS = 100


@dataclass(frozen=True, slots=True)
class Sample:
    """What was so at a time: the host, and of each VM the bytes by what they are.

    That is the six classes as far as they hold machine memory, `ballooned`, and `swapped`.
    """

    t: float
    free_bytes: int
    goal_bytes: int
    state: State
    vms: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Interval:
    """One interval: the host before and after it, and what was done; bytes."""

    t: float
    state: State
    free_before: int
    free_after: int
    wanted: int
    taken: int
    given: int
    swapped_out: int
    hot: int


@dataclass(slots=True)
class VmTotals:
    """What happened to one VM; bytes. `reclaimed_bytes` sums up what it gave, also what it was given back later."""

    reclaimed_bytes: int = 0
    hot_bytes: int = 0
    guest_swap_bytes: int = 0
    host_swap_bytes: int = 0
    swapped_in_bytes: int = 0
    balloon_bytes: int = 0
    swapped_bytes: int = 0


@dataclass
class Replay:
    """What a replay found.

    - `intervals`, `seconds`: how long it went on: through all moments, and until the policy came to rest after the last.
    - `goal_intervals`, `goal_seconds`: until the host first had what it wanted, to 16 MiB; None: it never did, or never wanted anything.
    - `wanted_bytes`: what the host lacked to its goal, each lack counted once however long it lasted. `reclaimed_bytes`: what it got.
    - `hot_bytes`, `guest_swap_bytes`, `host_swap_bytes`: see model.Toll.
    - `overshoot`: the most that was taken beyond the goal, as a share of what was wanted.
    """

    intervals: list[Interval] = field(default_factory=list)
    seconds: float = 0.0
    goal_intervals: int | None = None
    goal_seconds: float | None = None
    wanted_bytes: int = 0
    reclaimed_bytes: int = 0
    overshoot: float = 0.0
    vms: dict[str, VmTotals] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    doubts: dict[tuple[str, str], str] = field(default_factory=dict)

    def total(self, name: str) -> int:
        """Return the sum of a value over the VMs."""
        return sum(getattr(vm, name) for vm in self.vms.values())

    def as_json(self) -> dict[str, Any]:
        """Return the figures as `sched replay --json` prints them."""
        return {
            "intervals": len(self.intervals),
            "seconds": self.seconds,
            "goal_intervals": self.goal_intervals,
            "goal_seconds": self.goal_seconds,
            "wanted_bytes": self.wanted_bytes,
            "reclaimed_bytes": self.reclaimed_bytes,
            **{name: self.total(name) for name in ("hot_bytes", "guest_swap_bytes", "host_swap_bytes", "swapped_in_bytes")},
            "overshoot": self.overshoot,
            "vms": [{"name": name, **dataclasses.asdict(vm)} for name, vm in self.vms.items()],
            "steps": [{**dataclasses.asdict(each), "state": each.state.label} for each in self.intervals],
            "doubts": [{"vm": vm, "code": code, "what": what} for (vm, code), what in self.doubts.items()],
        }


class Policy(Protocol):
    """What governs the modelled guests: the Governor, or a model of another program's policy in the benchmark."""

    def once(self, now: float) -> tuple[Plan, Outcome]:
        """Look, plan and apply; the plan's host tells what is wanted."""


def replay(scenario: Scenario, settings: Settings | None = None) -> Replay:
    """Replay a scenario under the policy; `settings` stand in for the scenario's own."""
    world = ModelWorld(scenario.moments[0])
    return replay_policy(scenario, world, Governor(world, settings or scenario.settings))


def replay_policy(scenario: Scenario, world: ModelWorld, policy: Policy) -> Replay:
    """Replay a scenario under any policy that governs `world`, which has entered the first moment."""
    moments = scenario.moments
    if (moments[-1].t - moments[0].t) / scenario.interval_s > MOST_INTERVALS:
        raise UsageError(f"more than {MOST_INTERVALS:,} intervals of {scenario.interval_s} s: choose a longer interval_s")
    run = _Run(world, policy, scenario.interval_s)
    t, entered, afterwards = moments[0].t, 1, 0
    while True:
        while entered < len(moments) and moments[entered].t <= t:
            world.enter(moments[entered])
            entered += 1
        if entered == len(moments):
            afterwards += 1
        rested = run.interval(t, may_end=entered == len(moments))
        t += scenario.interval_s
        if rested or afterwards >= _MOST_AFTERWARDS:
            return run.result(len(run.replay.intervals) * scenario.interval_s)


class _Run:
    """One replay under way."""

    def __init__(self, world: ModelWorld, policy: Policy, interval_s: float) -> None:
        self.world = world
        self.policy = policy
        self.interval_s = interval_s
        self.replay = Replay()
        self._lack = self._left = 0

    def interval(self, t: float, *, may_end: bool) -> bool:
        """Govern once and let time pass; return whether nothing changed, which is then not counted as an interval."""
        free, hot = self.world.free_bytes, self._hot()
        held = {name: guest.held_bytes for name, guest in self.world.guests.items()}
        parts = self._parts()
        plan, outcome = self.policy.once(t)
        if not self.replay.samples:
            self._sample(t, plan, free, parts)
        self._count_wanted(plan, free)
        if may_end and not plan.changes_anything and not self._under_way() and not any("cool-down" in vm.reasons for vm in plan.vms):
            return True
        self.world.pass_time(self.interval_s)
        taken = self._count_held(held)
        after = self.world.free_bytes
        self._count_host(plan, after)
        swapped, hot = outcome.swapped_out_bytes, self._hot() - hot
        given = max(0, taken - (after - free))
        found = Interval(t, plan.host.state, free, after, plan.host.wanted_bytes, taken, given, swapped, hot)
        self.replay.intervals.append(found)
        self.replay.doubts |= {(doubt.vm, doubt.code): doubt.what for doubt in plan.doubts}
        self._sample(t + self.interval_s, plan, after, self._parts())
        return False

    def _under_way(self) -> bool:
        return any(guest.balloon != guest.target for guest in self.world.guests.values())

    def _hot(self) -> int:
        return sum(guest.toll.hot_bytes for guest in (*self.world.guests.values(), *self.world.gone.values()))

    def _count_held(self, held: Mapping[str, int]) -> int:
        """Count what each VM gave, and return the sum."""
        total = 0
        for name, guest in self.world.guests.items():
            taken = max(0, held[name] - guest.held_bytes)
            self.replay.vms.setdefault(name, VmTotals()).reclaimed_bytes += taken
            total += taken
        return total

    def _count_wanted(self, plan: Plan, free: int) -> None:
        """Count what the host lacks, as far as it did not lack it an interval ago."""
        self._lack = max(0, plan.host.goal_bytes - free) if plan.host.wanted_bytes or self._left else 0
        self.replay.wanted_bytes += max(0, self._lack - self._left)

    def _count_host(self, plan: Plan, after: int) -> None:
        self._left = max(0, plan.host.goal_bytes - after) if self._lack else 0
        self.replay.reclaimed_bytes += max(0, self._lack - self._left)
        if self._lack:
            self.replay.overshoot = max(self.replay.overshoot, (after - plan.host.goal_bytes) / self._lack)
        if self.replay.goal_intervals is None and self.replay.wanted_bytes and self._left < _THERE_BYTES:
            self.replay.goal_intervals = len(self.replay.intervals) + 1
            self.replay.goal_seconds = self.replay.goal_intervals * self.interval_s

    def _parts(self) -> dict[str, dict[str, int]]:
        return {name: _parts(guest) for name, guest in self.world.guests.items()}

    def _sample(self, t: float, plan: Plan, free: int, parts: Mapping[str, Mapping[str, int]]) -> None:
        self.replay.samples.append(Sample(t, free, plan.host.goal_bytes, plan.host.state, parts))

    def result(self, seconds: float) -> Replay:
        """Return what was found."""
        self.replay.seconds = seconds
        for name, guest in (*self.world.gone.items(), *self.world.guests.items()):
            totals = self.replay.vms.setdefault(name, VmTotals())
            for each in dataclasses.fields(Toll):
                setattr(totals, each.name, getattr(totals, each.name) + getattr(guest.toll, each.name))
            totals.balloon_bytes, totals.swapped_bytes = guest.balloon, guest.swapped_bytes
        return self.replay


def _parts(guest: Guest) -> dict[str, int]:
    actual = guest.actual
    parts = {name: getattr(actual, name) - guest.swapped[name] for name in CLASS_NAMES}
    return {**parts, "ballooned": guest.balloon, "swapped": guest.swapped_bytes}
