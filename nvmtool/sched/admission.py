"""Whether one more VM fits: its guarantee beside the others', and its working set without touching theirs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .columns import PAGE_BYTES, columns_of
from .doubts import sound_facts
from .facts import State
from .reclaim import balance_of, means_of, take
from .settings import Settings

if TYPE_CHECKING:
    from .columns import Columns, Pages
    from .facts import Classes, Facts
    from .reclaim import Means


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A VM that is to be started. `classes` is what it is expected to do with its memory; None: use all of it."""

    memory_bytes: int
    reservation_bytes: int = 0
    classes: Classes | None = None

    def __post_init__(self) -> None:
        """Raise UsageError on a VM that could not be."""
        if not self.memory_bytes:
            raise UsageError("a VM needs memory")
        if self.reservation_bytes > self.memory_bytes:
            raise UsageError(f"a reservation of {self.reservation_bytes} bytes is more than the memory, {self.memory_bytes}")
        if self.classes is not None and self.classes.total_bytes > self.memory_bytes:
            raise UsageError(f"classes of {self.classes.total_bytes} bytes are more than the memory, {self.memory_bytes}")


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer, with its numbers in bytes.

    - `need_bytes`: what the new VM will hold soon: its working set and headroom, at least its reservation.
    - `free_bytes`: what is free now; `goal_bytes`: what must stay so.
    - `reclaim`: from whom how much idle memory would be taken, all of it together `reclaim_bytes`.
    - `short_bytes`: what is still missing then; `suffering`: from whose working sets it would have to come, as far as they could give it.
    - `guaranteed_bytes`: all reservations and minimums with the new one; `capacity_bytes`: what there is for them.
    """

    admitted: bool
    reason: str
    need_bytes: int
    free_bytes: int
    goal_bytes: int
    reclaim_bytes: int
    short_bytes: int
    guaranteed_bytes: int
    capacity_bytes: int
    reclaim: tuple[tuple[str, int], ...]
    suffering: tuple[tuple[str, int], ...]

    def as_json(self) -> dict[str, Any]:
        """Return the answer as `sched admit --json` prints it."""
        sizes = ("need_bytes", "free_bytes", "goal_bytes", "reclaim_bytes", "short_bytes", "guaranteed_bytes", "capacity_bytes")
        lists = {name: [{"name": vm, "bytes": size} for vm, size in getattr(self, name)] for name in ("reclaim", "suffering")}
        return {"admitted": self.admitted, "reason": self.reason, **{name: getattr(self, name) for name in sizes}, **lists}


# reason: what it means
ADMISSION_REASONS = {
    "fits": "free memory is enough",
    "fits-with-idle-memory": "it fits when idle memory of others is taken",
    "working-sets": "it would be at the cost of others' working sets",
    "guarantees": "the host cannot guarantee that much",
}


def admit(facts: Facts, newcomer: Newcomer, settings: Settings | None = None) -> Admission:
    """Return whether one more VM fits, and at whose cost; a pure function.

    Guarantees are compared with all that is free or held by VMs, less the threshold of hard. Raises UsageError as `make_plan` does.
    """
    # A VM runs for longer than an interval, so that the largest step bounds nothing here.
    settings = dataclasses.replace(settings or Settings(), largest_step=1.0)
    sound, _ = sound_facts(facts)
    c = columns_of(sound, settings)
    balance = balance_of(sound.host, int(c.pending.sum()), settings)
    means = means_of(c, settings, held_back=np.zeros(len(c.held), bool))
    need = _need_pages(newcomer, settings)
    missing = max(0, balance.goal - (balance.free - need))
    idle = take(c, np.zeros_like(c.held), means.tiers[:2], missing, settings.idle_cost)
    short = missing - int(idle.sum())
    guaranteed = int(c.guaranteed.sum()) - (-newcomer.reservation_bytes // PAGE_BYTES)
    capacity = int(c.held.sum()) + balance.free - balance.threshold(State.HARD, settings)
    reason = "guarantees" if guaranteed > capacity else "working-sets" if short else "fits-with-idle-memory" if missing else "fits"
    names = [vm.name for vm in sound.vms]
    return Admission(
        admitted=reason.startswith("fits"),
        reason=reason,
        need_bytes=need * PAGE_BYTES,
        free_bytes=sound.host.free_bytes,
        goal_bytes=balance.goal * PAGE_BYTES,
        reclaim_bytes=int(idle.sum()) * PAGE_BYTES,
        short_bytes=short * PAGE_BYTES,
        guaranteed_bytes=guaranteed * PAGE_BYTES,
        capacity_bytes=max(0, capacity) * PAGE_BYTES,
        reclaim=_named(names, idle),
        suffering=_named(names, _squeezed(c, means, idle, missing, settings)),
    )


def _need_pages(newcomer: Newcomer, settings: Settings) -> int:
    expected = newcomer.memory_bytes
    if newcomer.classes is not None:
        expected = newcomer.classes.working_set_bytes + int(newcomer.memory_bytes * settings.headroom)
    return -(-min(newcomer.memory_bytes, max(expected, newcomer.reservation_bytes)) // PAGE_BYTES)


def _squeezed(c: Columns, means: Means, idle: Pages, missing: int, settings: Settings) -> Pages:
    """Return what would be missing of whose working set."""
    return take(c, idle, means.tiers[2:], missing, settings.idle_cost) - idle


def _named(names: list[str], pages: Pages) -> tuple[tuple[str, int], ...]:
    return tuple((name, size * PAGE_BYTES) for name, size in zip(names, pages.tolist(), strict=True) if size)
