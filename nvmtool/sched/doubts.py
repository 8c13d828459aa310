"""Facts that cannot be: what a guest reports wrongly is replaced by what is safe to assume, and said; a host's are errors.

Safe means: nothing is taken from a guest as idle that it may be using. One VM's nonsense never keeps the others from being governed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..text import human
from .facts import CLASS_NAMES, Facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .facts import Classes, Estimate, HostFacts, VmFacts

# No VM has as much; all ones in 64 bits, which is how a balloon without statistics answers, are more.
_MOST = 1 << 62


@dataclass(frozen=True, slots=True)
class Doubt:
    """A fact that was not believed: `code` is its stable name, `what` explains it and says what is assumed."""

    vm: str
    code: str
    what: str


def sound_facts(facts: Facts) -> tuple[Facts, tuple[Doubt, ...]]:
    """Return facts that the policy can follow, and what was not believed.

    Raises UsageError where nothing could be decided: a host with less than nothing, or more free than it has, two VMs of one name, sizes
    of a VM that are negative or beyond all machines.
    """
    _check_host(facts.host)
    names: set[str] = set()
    vms, doubts = [], []
    for vm in facts.vms:
        if vm.name in names:
            raise UsageError(f"two VMs are called {vm.name}")
        names.add(vm.name)
        _check_sizes(vm)
        sound = vm
        for change, doubt in _iter_doubts(vm):
            sound = dataclasses.replace(sound, **change)
            doubts.append(doubt)
        if sound.estimate is not None:
            estimate, more = _sound_estimate(sound, sound.estimate)
            doubts += more
            if estimate is not sound.estimate:
                sound = dataclasses.replace(sound, estimate=estimate)
        vms.append(sound)
    return Facts(facts.host, tuple(vms)), tuple(doubts)


def _check_host(host: HostFacts) -> None:
    sizes = (("total", host.total_bytes), ("free", host.free_bytes), ("own", host.own_bytes), ("swap room", host.swap_room_bytes or 0))
    for name, size in sizes:
        if not 0 <= size < _MOST:
            raise UsageError(f"host: {name} {size} is no size")
    if not host.total_bytes:
        raise UsageError("host: it has no memory")
    if host.free_bytes > host.total_bytes:
        raise UsageError(f"host: {human(host.free_bytes)} free is more than its {human(host.total_bytes)}")
    if host.free_target is not None and not 0 <= host.free_target < 1:
        raise UsageError(f"host: free_target {host.free_target} is not a share from 0 to less than 1")


def _check_sizes(vm: VmFacts) -> None:
    sizes = {
        "memory": vm.memory_bytes,
        "minimum": vm.minimum_bytes,
        "reservation": vm.reservation_bytes,
        "limit": vm.limit_bytes or 0,
        "swapped": vm.swapped_bytes,
        "swap room": vm.swap_room_bytes or 0,
        "sharable": vm.sharable_bytes,
        "resident": vm.resident_bytes or 0,
    }
    for name, size in sizes.items():
        if not 0 <= size < _MOST:
            raise UsageError(f"{vm.name}: {name} {size} is no size")
    if not vm.memory_bytes:
        raise UsageError(f"{vm.name}: it has no memory")


def _iter_doubts(vm: VmFacts) -> Iterator[tuple[dict[str, Any], Doubt]]:
    """Yield what to replace, and why, in an order in which later ones may rely on earlier ones."""
    memory, balloon = vm.memory_bytes, vm.balloon
    for name, size in (("reservation", vm.reservation_bytes), ("minimum", vm.minimum_bytes)):
        if size > memory:
            what = f"a {name} of {human(size)} is more than its memory: {human(memory)} assumed"
            yield {f"{name}_bytes": memory}, Doubt(vm.name, f"{name}-above-memory", what)
    reservation = min(vm.reservation_bytes, memory)
    if vm.limit_bytes is not None and vm.limit_bytes < reservation:
        what = f"a limit of {human(vm.limit_bytes)} is less than the reservation, which is a promise: {human(reservation)} assumed"
        yield {"limit_bytes": reservation}, Doubt(vm.name, "limit-below-reservation", what)
    if vm.shares < 1:
        yield {"shares": 1}, Doubt(vm.name, "no-shares", f"{vm.shares} shares are no weight: 1 assumed")
    if not 0 <= balloon.size_bytes <= memory:
        without = dataclasses.replace(balloon, driver=False, size_bytes=0, target_bytes=None)
        what = f"a balloon of {balloon.size_bytes} bytes is more than its memory: no driver assumed"
        yield {"balloon": without}, Doubt(vm.name, "balloon-nonsense", what)
        balloon = without
    elif balloon.target_bytes is not None and not 0 <= balloon.target_bytes <= memory:
        without = dataclasses.replace(balloon, target_bytes=None)
        what = f"a balloon's target of {balloon.target_bytes} bytes is more than its memory: none assumed"
        yield {"balloon": without}, Doubt(vm.name, "balloon-target-nonsense", what)
    if vm.swapped_bytes > memory - balloon.size_bytes:
        what = f"{human(vm.swapped_bytes)} swapped is more than it has: {human(memory - balloon.size_bytes)} assumed"
        yield {"swapped_bytes": memory - balloon.size_bytes}, Doubt(vm.name, "swapped-nonsense", what)


def _sound_estimate(vm: VmFacts, estimate: Estimate) -> tuple[Estimate | None, tuple[Doubt, ...]]:
    """Return an estimate that fits into what the guest has; None where it cannot be believed at all."""
    visible = vm.memory_bytes - vm.balloon.size_bytes
    total = estimate.classes.total_bytes
    if total == visible and _is_plain(estimate):
        return estimate, ()
    for classes in (estimate.classes, estimate.low, estimate.high):
        for name in CLASS_NAMES:
            if not 0 <= getattr(classes, name) < _MOST:
                what = f"{name} {getattr(classes, name)} is no size: all its memory counts as working set"
                return None, (Doubt(vm.name, "statistics-missing", what),)
    if total > vm.memory_bytes:
        what = f"its classes add up to {human(total)} of {human(vm.memory_bytes)}: all its memory counts as working set"
        return None, (Doubt(vm.name, "statistics-nonsense", what),)
    if not total:
        return None, (Doubt(vm.name, "statistics-missing", "its classes are all zero: all its memory counts as working set"),)
    if total > visible:
        # The report is older than the balloon's last move, which took what guests give first.
        cut = tuple(take_in_order(classes, total - visible) for classes in (estimate.classes, estimate.low, estimate.high))
        what = f"its classes are {human(total - visible)} more than it has now: taken off what is idle"
        return dataclasses.replace(estimate, classes=cut[0], low=cut[1], high=cut[2]), (Doubt(vm.name, "statistics-late", what),)
    # What the firmware and the kernel's own image hide from a report is not to be had.
    hidden = visible - total
    parts = (estimate.classes, estimate.low, estimate.high)
    classes, low, high = (dataclasses.replace(each, unreclaimable=each.unreclaimable + hidden) for each in parts)
    return dataclasses.replace(estimate, classes=classes, low=low, high=high), ()


def _is_plain(estimate: Estimate) -> bool:
    """Tell whether a report's sizes are all from 0 on, quickly: there may be a thousand."""
    if estimate.low is not estimate.classes or estimate.high is not estimate.classes:
        return False
    each = estimate.classes
    return min(each.unreclaimable, each.active_anon, each.active_file, each.inactive_anon, each.inactive_file, each.free) >= 0


def take_in_order(classes: Classes, wanted: int) -> Classes:
    """Return the classes after a balloon took so much: free, inactive file, inactive anonymous, active file, active anonymous pages."""
    left = {name: getattr(classes, name) for name in CLASS_NAMES}
    for name in ("free", "inactive_file", "inactive_anon", "active_file", "active_anon", "unreclaimable"):
        taken = min(wanted, left[name])
        left[name] -= taken
        wanted -= taken
    return type(classes)(**left)
