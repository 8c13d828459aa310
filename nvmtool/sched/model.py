"""Modelled guests: a world for replays, in which each page that is taken is known by its class.

A guest wants the classes that the scenario says. Its balloon takes free pages, then inactive file, then inactive anonymous ones (the
guest swaps these itself), then active ones. The host swaps inactive anonymous pages first, then inactive file, free, and active ones.
Active pages that were swapped out are touched, so they are back one interval later.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import NotFoundError
from .doubts import take_in_order
from .facts import CLASS_NAMES, Balloon, Classes, Estimate, Facts, HostFacts, VmFacts
from .scenario import vm_facts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .scenario import Moment

_SWAP_ORDER = ("inactive_anon", "inactive_file", "free", "active_file", "active_anon", "unreclaimable")
_HOT = ("active_file", "active_anon", "unreclaimable")


@dataclass(slots=True)
class Toll:
    """What was taken so far, by how it hurts; bytes, each page as often as it was taken.

    `hot_bytes`: pages in use, by whichever means. `guest_swap_bytes`: inactive anonymous pages that a balloon took. `host_swap_bytes`: all
    that the host swapped out, `swapped_in_bytes` what of it came back.
    """

    hot_bytes: int = 0
    guest_swap_bytes: int = 0
    host_swap_bytes: int = 0
    swapped_in_bytes: int = 0


@dataclass(slots=True)
class Guest:
    """One modelled guest; `wants` are its classes when nothing is taken from it."""

    name: str
    values: Mapping[str, Any]
    wants: Classes | None
    balloon: int
    target: int
    swapped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CLASS_NAMES, 0))
    toll: Toll = field(default_factory=Toll)

    @property
    def memory(self) -> int:
        """Return its memory in bytes."""
        return int(self.values["memory"])

    @property
    def actual(self) -> Classes:
        """Return the classes it has, whether it reports them or not; without any, all is in use."""
        return self.visible(self.balloon) or Classes(active_anon=self.memory - self.balloon)

    def visible(self, balloon: int) -> Classes | None:
        """Return the classes it has, and reports, with a balloon of some size."""
        if self.wants is None:
            return None
        return take_in_order(self.wants, max(0, self.wants.total_bytes - (self.memory - balloon)))

    @property
    def swapped_bytes(self) -> int:
        """Return what the host has swapped out of it."""
        return sum(self.swapped.values())

    @property
    def held_bytes(self) -> int:
        """Return the machine memory it holds."""
        return self.memory - self.balloon - self.swapped_bytes

    def change(self, values: Mapping[str, Any]) -> None:
        """Become what a later moment says; what it lacks then because of its balloon counts as taken now."""
        before = self._lost()
        self.values, self.wants = values, wants_of(values)
        self._count(before)
        self._fit_swapped()

    def inflate(self, seconds: float) -> None:
        """Let the balloon move towards its target for so long."""
        rate = self.values.get("balloon_rate")
        reach = self.memory if rate is None else math.floor(rate * seconds)
        size = max(min(self.target, self.balloon + reach), self.balloon - reach)
        if not self.values.get("balloon_driver", True) or size == self.balloon:
            return
        before = self._lost()
        self.balloon = size
        self._count(before)
        self._fit_swapped()

    def _lost(self) -> dict[str, int]:
        """Return what the balloon takes of each class that the guest wants."""
        wants, actual = self.wants or Classes(active_anon=self.memory), self.actual
        return {name: getattr(wants, name) - getattr(actual, name) for name in CLASS_NAMES}

    def _count(self, before: Mapping[str, int]) -> None:
        for name, lost in self._lost().items():
            taken = max(0, lost - before[name])
            if name in _HOT:
                self.toll.hot_bytes += taken
            elif name == "inactive_anon":
                self.toll.guest_swap_bytes += taken

    def _fit_swapped(self) -> None:
        """Bring back what the guest no longer has in that class: it touched it, or gave it up."""
        actual = self.actual
        for name in CLASS_NAMES:
            back = max(0, self.swapped[name] - getattr(actual, name))
            self.swapped[name] -= back
            self.toll.swapped_in_bytes += back

    def touch(self) -> None:
        """Bring back what is swapped and in use."""
        for name in _HOT:
            self.toll.swapped_in_bytes += self.swapped[name]
            self.swapped[name] = 0

    def swap_out(self, size_bytes: int) -> int:
        """Swap out idle pages first and return how much it was."""
        left = size_bytes
        actual = self.actual
        for name in _SWAP_ORDER:
            taken = min(left, getattr(actual, name) - self.swapped[name])
            self.swapped[name] += taken
            left -= taken
            if name in _HOT:
                self.toll.hot_bytes += taken
        self.toll.host_swap_bytes += size_bytes - left
        return size_bytes - left

    def swap_in(self, size_bytes: int) -> int:
        """Bring pages back, those in use first, and return how much it was."""
        left = size_bytes
        for name in reversed(_SWAP_ORDER):
            back = min(left, self.swapped[name])
            self.swapped[name] -= back
            left -= back
        self.toll.swapped_in_bytes += size_bytes - left
        return size_bytes - left

    def facts(self) -> VmFacts:
        """Return what the policy may know of it."""
        driver = self.values.get("balloon_driver", True)
        classes = self.visible(self.balloon)
        room = self.values.get("swap_room")
        return VmFacts(
            name=self.name,
            memory_bytes=self.memory,
            minimum_bytes=self.values.get("min", 0),
            reservation_bytes=self.values.get("reservation", 0),
            limit_bytes=self.values.get("limit"),
            shares=self.values.get("shares", 1000),
            balloon=Balloon(driver, self.balloon, self.target if driver else None, self.values.get("balloon_max")),
            swapped_bytes=self.swapped_bytes,
            swap_room_bytes=None if room is None else max(0, room - self.swapped_bytes),
            sharable_bytes=self.values.get("sharable", 0),
            estimate=None if classes is None else Estimate.reported(classes),
        )


def wants_of(values: Mapping[str, Any]) -> Classes | None:
    """Return what a guest would have without a balloon.

    Recorded classes are those of a guest with a balloon: what that held is added as free. What no class has is unreclaimable.
    """
    if values.get("classes") is None:
        return None
    wants = Classes(**values["classes"])
    room = max(0, values["memory"] - wants.total_bytes)
    balloon = min(values.get("balloon", 0), room)
    return dataclasses.replace(wants, free=wants.free + balloon, unreclaimable=wants.unreclaimable + room - balloon)


class ModelWorld:
    """Modelled guests on a modelled host; time passes when `pass_time` says so."""

    def __init__(self, moment: Moment) -> None:
        """Begin as a moment says, balloons and swapped pages included."""
        self.guests: dict[str, Guest] = {}
        self.gone: dict[str, Guest] = {}
        self._host: Mapping[str, Any] = {}
        self._own = 0
        self.enter(moment)

    def enter(self, moment: Moment) -> None:
        """Become what a moment says: VMs come, change and go."""
        for name in self.guests.keys() - moment.vms.keys():
            self.gone[name] = self.guests.pop(name)
        for name, values in moment.vms.items():
            if name in self.guests:
                self.guests[name].change(values)
            else:
                self.guests[name] = _new_guest(name, values)
        self._host, self._own = moment.host, moment.own_bytes

    def pass_time(self, seconds: float) -> None:
        """Let balloons move and guests touch what they use."""
        for guest in self.guests.values():
            guest.inflate(seconds)
            guest.touch()

    @property
    def free_bytes(self) -> int:
        """Return the host's free memory; less than 0 where guests hold more than it has."""
        return int(self._host["total"]) - self._own - sum(guest.held_bytes for guest in self.guests.values())

    def facts(self) -> Facts:
        """Return what the policy may know."""
        host = self._host
        room = host.get("swap_room")
        swapped = sum(guest.swapped_bytes for guest in self.guests.values())
        return Facts(
            HostFacts(
                total_bytes=host["total"],
                free_bytes=max(0, self.free_bytes),
                own_bytes=self._own,
                swap_room_bytes=None if room is None else max(0, room - swapped),
                free_target=host.get("free_target"),
            ),
            tuple(guest.facts() for guest in self.guests.values()),
        )

    def set_balloon(self, name: str, size_bytes: int) -> None:
        """Set where a balloon is to go."""
        self._guest(name).target = size_bytes

    def swap_out(self, name: str, size_bytes: int) -> int:
        """Swap out pages of a guest."""
        return self._guest(name).swap_out(size_bytes)

    def swap_in(self, name: str, size_bytes: int) -> int:
        """Bring pages of a guest back."""
        return self._guest(name).swap_in(size_bytes)

    def share(self, name: str, size_bytes: int) -> int:
        """Share nothing: the model knows no contents."""
        self._guest(name)
        return 0

    def close(self) -> None:
        """Have nothing to let go of."""

    def _guest(self, name: str) -> Guest:
        if name not in self.guests:
            raise NotFoundError(f"{name}: it has exited")
        return self.guests[name]


def _new_guest(name: str, values: Mapping[str, Any]) -> Guest:
    """Return a guest as a moment has it, with what was taken from it before."""
    facts = vm_facts(name, values)
    size, target = facts.balloon.size_bytes, facts.balloon.target_bytes
    guest = Guest(name, values, wants_of(values), size, size if target is None else target)
    guest.swap_out(facts.swapped_bytes)
    guest.toll = Toll()
    return guest
