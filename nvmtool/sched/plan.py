"""The plan: what a host's state is, what each VM is to hold, by which means, and why. The same object is printed and applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .columns import PAGE_BYTES, columns_of
from .doubts import Doubt, sound_facts
from .reasons import reasons_of, technique_of
from .reclaim import balance_of, decide
from .settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .columns import Columns
    from .facts import Estimate, Facts, HostFacts, State, VmFacts
    from .reclaim import Balance, Moves


@dataclass(frozen=True, slots=True)
class HostPlan:
    """The host. `goal_bytes` is what should be free, `wanted_bytes` what is missing to it now, balloons under way counted as arrived.

    `taken_bytes` and `given_bytes` are what the plan moves; `short_bytes` is what the host wants and no VM can give.
    """

    state: State
    total_bytes: int
    free_bytes: int
    own_bytes: int
    goal_bytes: int
    wanted_bytes: int
    taken_bytes: int
    given_bytes: int
    short_bytes: int

    def as_json(self) -> dict[str, Any]:
        """Return the host's facts; sizes in bytes."""
        sizes = ("total_bytes", "free_bytes", "own_bytes", "goal_bytes", "wanted_bytes", "taken_bytes", "given_bytes", "short_bytes")
        return {"state": self.state.label, **{name: getattr(self, name) for name in sizes}}


class VmPlan(NamedTuple):
    """One VM.

    `target_bytes` is what it is to hold: memory - `balloon_bytes` - `swap_bytes` - `share_bytes`. `balloon_bytes` and `swap_bytes` are what
    its balloon is to hold and what of it is to be swapped out in all, not changes; the changes are `balloon_change_bytes` (from where the
    balloon is going now) and `swap_change_bytes`. `share_bytes` are pages to share instead of swapping them. `command_bytes` is what its
    balloon is to be told; None where it need not be told anything.

    A tuple, for there may be a thousand: these take a quarter of a frozen dataclass's time to make.
    """

    name: str
    estimate: Estimate | None
    held_bytes: int
    entitlement_bytes: int
    target_bytes: int
    balloon_bytes: int
    balloon_change_bytes: int
    swap_bytes: int
    swap_change_bytes: int
    share_bytes: int
    command_bytes: int | None
    technique: str
    reasons: tuple[str, ...]

    @property
    def change_bytes(self) -> int:
        """Return what is taken from it; negative: given."""
        return self.balloon_change_bytes + self.swap_change_bytes + self.share_bytes

    @property
    def reason(self) -> str:
        """Return the first reason, the one that decided."""
        return self.reasons[0]

    def as_json(self) -> dict[str, Any]:
        """Return the VM as `sched plan --json` has it; classes are null where they are not known."""
        facts = {name: value for name, value in self._asdict().items() if name not in ("estimate", "command_bytes", "reasons")}
        estimate = self.estimate
        classes = None if estimate is None else estimate.classes.as_dict()
        intervals = None
        if estimate is not None and estimate.source == "sample":
            low, high = estimate.low.as_dict(), estimate.high.as_dict()
            intervals = {name: [low[name], high[name]] for name in low}
        source = "unknown" if estimate is None else estimate.source
        return {**facts, "classes": classes, "source": source, "intervals": intervals, "reason": self.reason, "reasons": list(self.reasons)}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done in one interval; `doubts` are facts that were not believed. VMs are in the facts' order."""

    host: HostPlan
    vms: tuple[VmPlan, ...]
    doubts: tuple[Doubt, ...] = ()

    @property
    def changes_anything(self) -> bool:
        """Return whether there is anything to apply."""
        return any(vm.command_bytes is not None or vm.change_bytes for vm in self.vms)

    def as_json(self) -> dict[str, Any]:
        """Return the plan as `sched plan --json` prints it."""
        doubts = [{"vm": doubt.vm, "code": doubt.code, "what": doubt.what} for doubt in self.doubts]
        return {"host": self.host.as_json(), "vms": [vm.as_json() for vm in self.vms], "doubts": doubts}


def make_plan(facts: Facts, settings: Settings | None = None) -> Plan:
    """Return what to do about some facts: a pure function of them and the settings.

    Raises UsageError where nothing can be decided (doubts.py).
    """
    settings = settings or Settings()
    sound, doubts = sound_facts(facts)
    columns = columns_of(sound, settings)
    balance = balance_of(sound.host, int(columns.pending.sum()), settings)
    moves = decide(columns, sound.host, balance, settings)
    vms = _vm_plans(sound.vms, columns, moves, reasons_of(columns, balance, moves, settings))
    return Plan(_host_plan(sound.host, balance, moves), vms, doubts)


def _host_plan(host: HostFacts, balance: Balance, moves: Moves) -> HostPlan:
    return HostPlan(
        state=balance.state,
        total_bytes=host.total_bytes,
        free_bytes=host.free_bytes,
        own_bytes=host.own_bytes,
        goal_bytes=balance.goal * PAGE_BYTES,
        wanted_bytes=balance.wanted * PAGE_BYTES,
        taken_bytes=int(moves.taken.sum()) * PAGE_BYTES,
        given_bytes=int(moves.given.sum()) * PAGE_BYTES,
        short_bytes=moves.short * PAGE_BYTES,
    )


def _vm_plans(vms: Sequence[VmFacts], c: Columns, moves: Moves, reasons: list[tuple[str, ...]]) -> tuple[VmPlan, ...]:
    balloon_change = (moves.by_balloon - moves.deflated) * PAGE_BYTES
    swap_change = (moves.by_swap - moves.swapped_in) * PAGE_BYTES
    balloon, shared = c.balloon * PAGE_BYTES + balloon_change, moves.by_sharing * PAGE_BYTES
    columns = (c.held * PAGE_BYTES, moves.entitled * PAGE_BYTES, balloon, balloon_change, swap_change, shared)
    plans = []
    for vm, why, usable, held, entitled, size, change, swapped, sharing in zip(
        vms, reasons, c.driver.tolist(), *(column.tolist() for column in columns), strict=True
    ):
        told = vm.balloon.size_bytes if vm.balloon.target_bytes is None else vm.balloon.target_bytes
        # A balloon of no whole number of pages that need not change is left alone.
        size = size if change or size != -(-told // PAGE_BYTES) * PAGE_BYTES else told
        swap = max(0, vm.swapped_bytes + swapped)
        plans.append(
            VmPlan(
                vm.name,
                vm.estimate,
                held,
                entitled,
                vm.memory_bytes - size - swap - sharing,
                size,
                change,
                swap,
                swapped,
                sharing,
                size if usable and size != told else None,
                technique_of(change, swapped, sharing),
                why,
            )
        )
    return tuple(plans)
