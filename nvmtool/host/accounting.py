"""The memory resource tree, and the proof that every page is counted once (T3).

Capacity are the frames of RAM and those that NVM lends. In RAM each frame is private, shared (once), held by a suspended VM, parked, or
free; lent ones are a kind of their own, in use or free. What VMs have is counted by their maps, what is free and parked by the frame
table: two sources, whose sum must be the capacity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import layout as lay
from .admission import guarantees
from .rebuild import has_running_part, iter_running, iter_saved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .frames import FrameTable
    from .host import Host
    from .records import Pool, Vm

    Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Node:
    """A memory resource: `kind` is host, pool, vm, group (of a suspended VM: it reserves nothing), client, shared, parked or free.

    `consumed_pages` are its own, not those of nodes below it.
    """

    name: str
    kind: str
    parent: str
    reserved_pages: int
    consumed_pages: int


@dataclass(frozen=True, slots=True)
class Account:
    """Where every page is. `difference_pages` is 0 when each is counted once; `refs_difference` when the counts of shared frames are right."""

    capacity_pages: int
    private_pages: int
    shared_pages: int
    suspended_pages: int
    parked_pages: int
    lent_pages: int
    lent_in_use_pages: int
    free_pages: int
    difference_pages: int
    refs_difference: int
    reserved_pages: int
    saved_by_sharing_pages: int
    nodes: tuple[Node, ...]


@dataclass(slots=True)
class _Tally:
    """What maps say, in pages: of RAM and lent, by kind; and per VM (number: pages)."""

    private: list[int]
    suspended: list[int]
    running_refs: int
    by_vm: dict[int, int]
    by_client: dict[int, int]


def account(host: Host) -> Account:
    """Count every page while nothing moves; running VMs pause. Works on a host opened for reading."""
    with host.quiet():
        return account_quietly(host)


def account_quietly(host: Host) -> Account:
    """The same, where the caller sees to it that nothing moves. Raises DamagedError."""
    frames = host.frames
    vms = host.all_vms()
    shared_seen = np.zeros(frames.nmpn, bool)
    tally = _tally(host, vms, shared_seen)
    counts, refs = _table_counts(frames)
    shared = [int(np.count_nonzero(shared_seen[: host.nram])), int(np.count_nonzero(shared_seen[host.nram :]))]
    parked = counts[lay.PARKED]
    lent_in_use = tally.private[1] + tally.suspended[1] + shared[1] + parked[1]
    lent_free = frames.get("lent_free")
    lent = lent_in_use + lent_free
    capacity = host.nram + frames.get("lent")
    free = host.nram - sum(counts[kind][0] for kind in counts)
    total = tally.private[0] + shared[0] + tally.suspended[0] + parked[0] + lent + free
    return Account(
        capacity_pages=capacity,
        private_pages=tally.private[0],
        shared_pages=shared[0],
        suspended_pages=tally.suspended[0],
        parked_pages=parked[0],
        lent_pages=lent,
        lent_in_use_pages=lent_in_use,
        free_pages=free,
        difference_pages=capacity - total,
        refs_difference=refs - tally.running_refs,
        reserved_pages=guarantees(host).total,
        saved_by_sharing_pages=tally.running_refs - sum(shared),
        nodes=tuple(_nodes(host, vms, tally, sum(shared), sum(parked), free + lent_free)),
    )


def _tally(host: Host, vms: list[Vm], shared_seen: NDArray[np.bool_]) -> _Tally:
    tally = _Tally([0, 0], [0, 0], 0, {}, {})
    for vm in vms:
        if has_running_part(vm):
            tally.by_vm[vm.number] = 0
            for mpns, shared in iter_running(host, vm):
                host.frames.require(mpns)
                own = mpns[~shared]
                _add(tally.private, own, host.nram)
                shared_seen[mpns[shared]] = True
                tally.running_refs += int(shared.sum())
                tally.by_vm[vm.number] += len(own)
        if vm.state != lay.ON and not vm.is_off:
            tally.by_client[vm.number] = 0
            for mpns, shared in iter_saved(host, vm) if vm.cursor else ():
                host.frames.require(mpns)
                own = mpns[~shared]
                _add(tally.suspended, own, host.nram)
                tally.by_client[vm.number] += len(own)
    return tally


def _add(counts: list[int], mpns: Ints, nram: int) -> None:
    in_ram = int(np.count_nonzero(mpns < nram))
    counts[0] += in_ram
    counts[1] += len(mpns) - in_ram


def _table_counts(frames: FrameTable) -> tuple[dict[int, list[int]], int]:
    """Return, by the table, how many frames of each kind that is in use there are in RAM and lent, and the sum of all shared counts."""
    counts = {kind: [0, 0] for kind in (lay.PRIVATE, lay.SHARED, lay.PARKED, lay.HELD_BY_SUSPENDED)}
    refs = 0
    for first, words in frames.iter_words():
        kinds = words >> np.uint64(lay.KIND_SHIFT)
        in_ram = max(min(frames.nram - first, len(words)), 0)
        for kind, pair in counts.items():
            pair[0] += int(np.count_nonzero(kinds[:in_ram] == kind))
            pair[1] += int(np.count_nonzero(kinds[in_ram:] == kind))
        refs += int((words[kinds == lay.SHARED] & np.uint64(lay.COUNT_MASK)).sum())
    return counts, refs


def _nodes(host: Host, vms: list[Vm], tally: _Tally, shared: int, parked: int, free: int) -> Iterator[Node]:
    found = guarantees(host)
    pools = {pool.number: pool for pool in host.all_pools()}
    yield Node("host", "host", "", found.total, 0)
    for pool in _in_order(pools):
        parent = pools[pool.parent].name if pool.parent >= 0 else "host"
        yield Node(pool.name, "pool", parent, max(found.inside[pool.number], pool.reservation_pages), 0)
        for vm in vms:
            if vm.pool == pool.number:
                # A suspended VM reserves nothing; its frames are its client node's.
                reserved = vm.granted_pages if has_running_part(vm) else 0
                yield Node(vm.name, "vm", pool.name, reserved, tally.by_vm.get(vm.number, 0))
                if vm.number in tally.by_client:
                    yield Node(f"{vm.name} (suspended)", "group", pool.name, 0, 0)
                    yield Node(f"{vm.name} (client)", "client", f"{vm.name} (suspended)", 0, tally.by_client[vm.number])
    yield Node("shared", "shared", "host", 0, shared)
    yield Node("parked", "parked", "host", 0, parked)
    yield Node("free", "free", "host", 0, free)


def _in_order(pools: dict[int, Pool]) -> Iterator[Pool]:
    """Yield pools, each behind its parent."""

    def below(parent: int) -> Iterator[Pool]:
        for pool in pools.values():
            if pool.parent == parent:
                yield pool
                yield from below(pool.number)

    yield from below(-1)
