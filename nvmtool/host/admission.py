"""Who is guaranteed how much memory, and whether one more guarantee can be kept (T3, T7).

Guaranteed is, each once, the granted memory of VMs that run (also those that are being suspended or resumed), and of suspended ones what
they have of theirs. A resuming VM counts with what it is granted, and no more with what its client node still has. Memory lent by NVM is
not guaranteed to anybody: it can be called back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import RefusedError
from ..text import human
from . import layout as lay

if TYPE_CHECKING:
    from .host import Host
    from .records import Pool, Vm


@dataclass(frozen=True, slots=True)
class Guarantees:
    """What is guaranteed, in pages: in all, and inside each pool (by number). A pool keeps the larger of that and its own reservation."""

    capacity: int
    total: int
    inside: dict[int, int]

    @property
    def free(self) -> int:
        """What may still be guaranteed outside of all pools' reservations."""
        return max(self.capacity - self.total, 0)


def guaranteed_to(vm: Vm) -> int:
    """Return the pages that a VM keeps from others.

    Of what a suspended VM has beyond its grant others may have the frames: swap is promised for it (reclaim.py).
    """
    if vm.is_off:
        return 0
    return min(vm.saved_pages, vm.granted_pages) if vm.state == lay.SUSPENDED else vm.granted_pages


def reserved_by(vm: Vm) -> int:
    """Return the pages that a VM reserves: nothing while it is suspended."""
    return 0 if vm.state == lay.SUSPENDED else guaranteed_to(vm)


def guarantees(host: Host, *, without: int = -1, pages_of: Callable[[Vm], int] = guaranteed_to) -> Guarantees:
    """Add up what VMs and pools are guaranteed (or `reserved_by` them), leaving out VM number `without`."""
    pools = host.all_pools()
    inside = {pool.number: 0 for pool in pools}
    children: dict[int, list[Pool]] = {}
    for pool in pools:
        children.setdefault(pool.parent, []).append(pool)
    for vm in host.all_vms():
        if vm.number != without:
            inside[vm.pool] = inside.get(vm.pool, 0) + pages_of(vm)

    def add_up(pool: Pool) -> int:
        inside[pool.number] += sum(add_up(child) for child in children.get(pool.number, []))
        return max(inside[pool.number], pool.reservation_pages)

    return Guarantees(host.nram, sum(add_up(pool) for pool in children.get(-1, [])), inside)


def most_in(host: Host, pool_number: int, found: Guarantees) -> int:
    """Return the most pages that a pool can still guarantee to somebody in it.

    What a pool has reserved and not given away needs nothing from its parent; each limit on the way to the root bounds what is left.
    """
    pools = {pool.number: pool for pool in host.all_pools()}
    slack, bounds = 0, []
    number = pool_number
    while number >= 0:
        pool, inside = pools[number], found.inside[number]
        if pool.limit_pages:
            bounds.append(max(pool.limit_pages - inside, 0) + slack)
        slack += max(pool.reservation_pages - inside, 0)
        number = pool.parent
    return min([found.free + slack, *bounds])


def most_for(host: Host, vm: Vm) -> int:
    """Return the most pages that can be guaranteed to a VM now, what it has included."""
    return most_in(host, vm.pool, guarantees(host, without=vm.number))


def require_pool(host: Host, parent: Pool, name: str, reservation_pages: int) -> None:
    """Raise RefusedError unless a parent can promise a new pool its reservation; in a turn."""
    room = most_in(host, parent.number, guarantees(host))
    if reservation_pages > room:
        asked, free = human(reservation_pages * lay.PAGE), human(room * lay.PAGE)
        raise RefusedError(f"pool {name}: cannot reserve {asked}: pool {parent.name} has {free} to promise")


def swap_needed(vm_pages: list[tuple[int, int]], available_pages: int) -> int:
    """Return the most pages that VMs, given as (memory, reservation), can ever have swapped together (T8).

    `available_pages` of the host's memory are theirs for sure.
    """
    memory = sum(each for each, _ in vm_pages)
    unreserved = sum(each - reserved for each, reserved in vm_pages)
    return min(max(memory - available_pages, 0), unreserved)


def swap_needed_by_file_system(needed_pages: int, memory_pages: dict[str, int]) -> dict[str, int]:
    """Return the same per file system: the smaller of the need and of the memory of the VMs whose swap files are there."""
    return {where: min(needed_pages, pages) for where, pages in memory_pages.items()}
