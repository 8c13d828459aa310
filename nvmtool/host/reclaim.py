"""Free machine frames by swapping: from VMs that have more than they are granted, the largest excess first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BusyError, NoSpaceError, NotFoundError, RefusedError
from ..swap.swapfile import SwapFile
from . import layout as lay
from .rebuild import has_running_part, iter_running, iter_saved
from .space import Space

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .host import Host
    from .maps import SavedMap
    from .records import Vm

    Ints = NDArray[np.int64]
    Progress = Callable[[int, int, str], None] | None

_BATCH_PAGES = 4096


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """How many pages were swapped out, and of which VMs (name and pages)."""

    pages: int
    from_vms: tuple[tuple[str, int], ...]


def sweep_unnamed(host: Host) -> int:
    """Free parked frames that no saved map names: their last names were those of running VMs, and are gone. Returns how many."""
    if not host.frames.get("parked"):
        return 0
    with host.turn(), host.frames_turn() as frames:
        parked = frames.of_kind(lay.PARKED)
        is_named = np.zeros(frames.nmpn, bool)
        for vm in host.all_vms():
            if vm.cursor:
                for mpns, shared in iter_saved(host, vm):
                    is_named[mpns[shared]] = True
        unnamed = parked[~is_named[parked]]
        frames.set_all(unnamed, lay.FREE)
        return len(unnamed)


def resident_pages(host: Host, vm: Vm) -> int:
    """Return how many page frames of a VM are in memory, its client node's included; a glance when it runs meanwhile."""
    running = sum(len(mpns) for mpns, _ in iter_running(host, vm)) if has_running_part(vm) else 0
    return running + vm.saved_pages


def reclaim(host: Host, npages: int, *, without: int = -1, progress: Progress = None) -> Reclaimed:
    """Swap out page frames of VMs that have more than they are granted, until so many frames are free that were not.

    Running VMs pause for a batch each. Frees less where there is no more to take, or no swap; VM number `without` is left alone. Each
    page is durable in its swap file before its frame is free.
    """
    taken: dict[str, int] = {}
    left, refused = npages, {without}
    while left > 0:
        victims = [(vm, resident_pages(host, vm) - vm.granted_pages) for vm in host.all_vms() if not vm.is_off and vm.number not in refused]
        victims = [(vm, excess) for vm, excess in victims if excess > 0]
        if not victims:
            break
        vm, excess = max(victims, key=lambda each: each[1])
        count = 0
        with suppress(RefusedError, NoSpaceError, BusyError, NotFoundError):
            count = take_from(host, vm, min(excess, left, _BATCH_PAGES))
        if count == 0:
            refused.add(vm.number)
            continue
        taken[vm.name] = taken.get(vm.name, 0) + count
        left -= count
        if progress is not None:
            progress(npages - left, npages, "pages")
    return Reclaimed(npages - max(left, 0), tuple(taken.items()))


def take_from(host: Host, vm: Vm, npages: int) -> int:
    """Swap out so many page frames of one VM, running or suspended; return how many frames came free. Raises as `Space.swap_out` does."""
    with host.vm_turns([vm.number]):
        vm = host.vm_numbered(vm.number)
        before = host.frames.free_pages
        if vm.state == lay.ON:
            with Space(host, vm) as space:
                space.swap_out(space.choose(npages))
        elif vm.cursor == vm.memory_pages:
            swap_out_saved(host, vm, npages=npages)
            sweep_unnamed(host)
        return max(host.frames.free_pages - before, 0)


def swap_out_saved(host: Host, vm: Vm, *, npages: int, only: NDArray[np.bool_] | None = None) -> int:
    """Swap out page frames of a suspended VM, those that share nothing first; its map then says that they are not in memory.

    Returns how many; frames that were shared come free by `sweep_unnamed`, once nobody names them. `only` tells per MPN which may be
    taken. The caller has the VM's turn.
    """
    vm = settle_count(host, vm)
    path = host.swap_path(vm)
    saved = host.saved_map_of(vm, writable=True)
    try:
        ppns, mpns, shared = _choose_saved(saved, vm, npages, only)
        if not len(ppns):
            return 0
        if not path.exists():
            raise RefusedError(f"VM {vm.name}: has no swap yet, all of its memory is granted")
        with SwapFile.open(path, writable=True, reservation=host.reservation_path(host.pool_numbered(vm.pool))) as swap:
            for start in range(0, len(ppns), swap.max_batch):
                batch = ppns[start : start + swap.max_batch]
                stale = batch[swap.states(batch) >= 0]
                if len(stale):  # of a call that was killed
                    swap.forget(stale)
                    swap.commit()
                swap.swap_out(batch, [host.memory.page(mpn) for mpn in mpns[start : start + swap.max_batch].tolist()])
        with host.turn(), host.frames_turn() as frames:
            # Map and record cannot change at once: cut off in between, the words are counted anew.
            host.put_vm(vm, recount=1)
            saved.replace(ppns, np.zeros(len(ppns), np.uint64))
            host.put_vm(vm, recount=0, saved_pages=vm.saved_pages - len(ppns))
            frames.set_all(mpns[~shared], lay.FREE)
        return len(ppns)
    finally:
        saved.close()


def settle_count(host: Host, vm: Vm) -> Vm:
    """Count a VM's saved pages anew where a killed process left that undone; the caller has its turn."""
    if not vm.recount:
        return vm
    count = sum(len(mpns) for mpns, _ in iter_saved(host, vm))
    with host.turn():
        host.put_vm(vm, recount=0, saved_pages=count)
    return host.vm_numbered(vm.number)


def _choose_saved(saved: SavedMap, vm: Vm, npages: int, only: NDArray[np.bool_] | None) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Return up to so many page frames of a suspended VM, ascending, with their MPNs and shared flags."""
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool))]
    left = npages
    for want_shared in (False, True):
        for ppns, mpns, shared in saved.iter_present(0, vm.cursor):
            fit = shared == want_shared if only is None else (shared == want_shared) & only[mpns]
            parts.append((ppns[fit][:left], mpns[fit][:left], shared[fit][:left]))
            left -= len(parts[-1][0])
    found = [np.concatenate(each) for each in zip(*parts, strict=True)]
    order = np.argsort(found[0])
    return found[0][order], found[1][order], found[2][order]
