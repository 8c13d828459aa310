"""Facts as columns: one array a fact, in pages, and what follows from them before anything is decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from .facts import Facts, VmFacts
    from .settings import Settings

    Pages = NDArray[np.int64]
    Flags = NDArray[np.bool_]

PAGE_BYTES = 4096
# More than any VM has, and a thousand of them still add up in 63 bits.
_UNBOUNDED = 1 << 50


@dataclass(frozen=True, slots=True)
class Columns:
    """All VMs, in the facts' order; pages (i8).

    A balloon that is on its way counts as there. What the host swapped out is counted as inactive anonymous, then inactive file, then free
    pages, whatever they were: what stays swapped is not being touched. `free`, `inactive_file` and `inactive_anon` are what is left of each
    that holds machine memory and is known to be idle (the low ends of the intervals); `active` is all else that the VM holds.
    """

    memory: Pages
    shares: Pages
    guaranteed: Pages
    most: Pages
    headroom: Pages
    step_down: Pages
    step_up: Pages
    balloon: Pages
    pending: Pages
    swapped: Pages
    granted: Pages
    held: Pages
    free: Pages
    inactive_file: Pages
    inactive_anon: Pages
    active: Pages
    working_set: Pages
    lists: Pages
    balloon_room: Pages
    swap_room: Pages
    sharable: Pages
    known: Flags
    driver: Flags
    stuck: Flags
    since_shrink: NDArray[np.float64]
    since_grow: NDArray[np.float64]

    @property
    def usable(self) -> Flags:
        """Return whose balloon can be asked for anything."""
        return self.driver & ~self.stuck


def columns_of(facts: Facts, settings: Settings) -> Columns:
    """Return sound facts as columns."""
    vms = facts.vms
    memory = _pages(vm.memory_bytes for vm in vms)
    minimum = _pages_up(0 if settings.below_minimum else vm.minimum_bytes for vm in vms)
    guaranteed = np.minimum(np.maximum(minimum, _pages_up(vm.reservation_bytes for vm in vms)), memory)
    limit = _pages(vm.memory_bytes if vm.limit_bytes is None else vm.limit_bytes for vm in vms)
    most = np.clip(limit, guaranteed, memory)
    driver = np.array([vm.balloon.driver for vm in vms], bool)
    stuck = driver & np.array([vm.balloon.stalled_s >= settings.stuck_after_s for vm in vms], bool)
    size = np.minimum(_pages_up(vm.balloon.size_bytes for vm in vms), memory)
    swapped = np.minimum(_pages_up(vm.swapped_bytes for vm in vms), memory - size)
    target = _pages_up(vm.balloon.size_bytes if vm.balloon.target_bytes is None else vm.balloon.target_bytes for vm in vms)
    balloon = np.where(driver & ~stuck, np.minimum(target, memory - swapped), size)
    pending = balloon - size
    granted = memory - balloon - swapped
    resident = _pages(vm.memory_bytes if vm.resident_bytes is None else vm.resident_bytes for vm in vms)
    held_now = np.minimum(memory - size - swapped, resident)
    held = np.clip(held_now - pending, 0, granted)
    free, inactive_file, inactive_anon = _idle(facts, pending, swapped, granted - held, held)
    most_balloon = _pages(vm.memory_bytes if vm.balloon.max_bytes is None else vm.balloon.max_bytes for vm in vms)
    known = np.array([vm.estimate is not None for vm in vms], bool)
    working_set = _pages(vm.memory_bytes if vm.estimate is None else vm.estimate.classes.working_set_bytes for vm in vms)
    return Columns(
        memory=memory,
        shares=np.array([vm.shares for vm in vms], np.int64),
        guaranteed=guaranteed,
        most=most,
        headroom=np.ceil(memory * settings.headroom).astype(np.int64),
        step_down=np.ceil(held_now * settings.largest_step).astype(np.int64),
        step_up=np.ceil(memory * settings.largest_step).astype(np.int64),
        balloon=balloon,
        pending=held_now - held,
        swapped=swapped,
        granted=granted,
        held=held,
        free=free,
        inactive_file=inactive_file,
        inactive_anon=inactive_anon,
        active=held - free - inactive_file - inactive_anon,
        working_set=working_set,
        lists=np.maximum(_on_lists(vms) - pending, 0),
        balloon_room=np.maximum(np.minimum(most_balloon, memory - guaranteed) - balloon, 0),
        swap_room=_swap_room(vms, settings),
        sharable=_pages(vm.sharable_bytes for vm in vms),
        known=known,
        driver=driver,
        stuck=stuck,
        since_shrink=np.array([np.inf if vm.since_shrink_s is None else vm.since_shrink_s for vm in vms], float),
        since_grow=np.array([np.inf if vm.since_grow_s is None else vm.since_grow_s for vm in vms], float),
    )


def _pages(sizes: Iterable[int]) -> Pages:
    return np.fromiter(sizes, np.int64) // PAGE_BYTES


def _pages_up(sizes: Iterable[int]) -> Pages:
    """Return pages that hold the sizes: neither a promise nor what is gone already is rounded down."""
    return -(-np.fromiter(sizes, np.int64) // PAGE_BYTES)


def _swap_room(vms: tuple[VmFacts, ...], settings: Settings) -> Pages:
    if not settings.may_swap:
        return np.zeros(len(vms), np.int64)
    return np.fromiter((_UNBOUNDED if vm.swap_room_bytes is None else vm.swap_room_bytes // PAGE_BYTES for vm in vms), np.int64)


def _on_lists(vms: tuple[VmFacts, ...]) -> Pages:
    found = (None if vm.estimate is None else vm.estimate.classes for vm in vms)
    return _pages(0 if classes is None else classes.free + classes.inactive_file for classes in found)


def _idle(facts: Facts, pending: Pages, swapped: Pages, untouched: Pages, held: Pages) -> tuple[Pages, Pages, Pages]:
    """Return the free, inactive file and inactive anonymous pages that cost machine memory and are known to be idle."""
    lows = [None if vm.estimate is None else vm.estimate.low for vm in facts.vms]
    free = _pages(0 if low is None else low.free for low in lows)
    inactive_file = _pages(0 if low is None else low.inactive_file for low in lows)
    inactive_anon = _pages(0 if low is None else low.inactive_anon for low in lows)
    free = free + np.maximum(-pending, 0) * np.array([low is not None for low in lows], bool)
    free, inactive_file, inactive_anon = _less(np.maximum(pending, 0), free, inactive_file, inactive_anon)
    inactive_anon, inactive_file, free = _less(swapped, inactive_anon, inactive_file, free)
    (free,) = _less(untouched, free)
    # A report that claims more than the host sees the VM hold is cut short at its end: free pages are the cheapest mistake.
    inactive_anon, inactive_file, free = _at_most(held, inactive_anon, inactive_file, free)
    return free, inactive_file, inactive_anon


def _less(wanted: Pages, *columns: Pages) -> list[Pages]:
    """Return the columns after `wanted` was taken off, from the first one on."""
    left = []
    for column in columns:
        taken = np.minimum(wanted, column)
        left.append(column - taken)
        wanted = wanted - taken
    return left


def _at_most(room: Pages, *columns: Pages) -> list[Pages]:
    """Return the columns cut so that together they fit into `room`, the last ones first."""
    fitting = []
    for column in columns:
        kept = np.minimum(column, room)
        fitting.append(kept)
        room = room - kept
    return fitting
