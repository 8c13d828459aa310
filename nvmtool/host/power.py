"""Power VMs on and off: memory first, swap afterwards (T7), out of the pool's reservation (T8).

A VM that runs is guaranteed its memory: granted + promised swap >= memory, in every state between two steps. `power_on` grants what the
host has free, and needs swap for the rest only; `settle` then lets swap grow and granted memory shrink, until its reservation is what is
granted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ExistsError, NoSpaceError, NvmtoolError, RefusedError
from ..swap.create import create_swap
from ..swap.reservation import promise_of, reservation_info, set_promise
from ..swap.reservation_resize import grow_reservation
from ..swap.swapfile import SwapFile
from ..text import human
from . import layout as lay
from .admission import most_for
from .create import SWAP_BLOCK_BYTES, drop_swap
from .maps import VmMap, remove_map
from .rebuild import has_running_part, iter_running

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .frames import FrameTable
    from .host import Host
    from .records import Vm

    Progress = Callable[[int, int, str], None] | None

BLOCK_PAGES = SWAP_BLOCK_BYTES // lay.PAGE
STEP_PAGES = 64 * BLOCK_PAGES


@dataclass(frozen=True, slots=True)
class Settled:
    """How far settling came: pages granted before and after, swap promised, steps that were done, and why it stopped early, if it did."""

    granted_before: int
    granted_pages: int
    promised_pages: int
    steps: int
    complete: bool
    failure: NvmtoolError | None


def power_on(host: Host, name: str, *, thick: bool = False, progress: Progress = None) -> Vm:
    """Power a VM on; durable on return. Its time does not depend on the VM's memory, unless swap must be made first.

    Granted is what is free, at most the VM's limit and at least its reservation; swap is promised for the rest before. Where its
    reservation does not fit, VMs that are granted more than theirs settle first. `thick` grants the reservation alone and writes all of
    the swap first. Raises RefusedError, before anything starts, when memory or swap cannot be promised.
    """
    number = host.vm(name).number
    with host.vm_turns([number]):
        while True:
            vm = host.vm_numbered(number)
            _make_way(host, vm)
            with host.turn():
                granted = _grantable(host, vm, thick=thick)
            try:
                _promise(host, vm, vm.memory_pages - granted, progress)
            except NvmtoolError:
                drop_swap(host, vm)
                raise
            with host.turn():
                # Making swap may have taken long; what was free then may be gone.
                if _grantable(host, vm, thick=thick) >= granted:
                    return _start(host, vm, granted)


def _make_way(host: Host, vm: Vm) -> None:
    """Where a VM's reservation does not fit, let others that are granted more than theirs settle for less, as far as swap can be had."""
    for other in host.all_vms():
        with host.turn():
            missing = vm.reservation_pages - most_for(host, vm)
        if missing <= 0:
            return
        if other.state == lay.ON and other.granted_pages > other.reservation_pages:
            settle(host, other.name, step_pages=missing, most_steps=1)


def _grantable(host: Host, vm: Vm, *, thick: bool) -> int:
    if not vm.is_off:
        raise ExistsError(f"VM {vm.name}: is {vm.state_name} already")
    most = most_for(host, vm)
    if most < vm.reservation_pages:
        need, free = human(vm.reservation_pages * lay.PAGE), human(most * lay.PAGE)
        pool = host.pool_numbered(vm.pool).name
        raise RefusedError(f"VM {vm.name}: its reservation of {need} cannot be promised: {free} of memory are free for pool {pool}")
    return vm.reservation_pages if thick else max(min(most, vm.most_pages), vm.reservation_pages)


def _start(host: Host, vm: Vm, granted: int) -> Vm:
    VmMap.create(host.volatile_map_path(vm.number), vm.memory_pages, host.life)
    host.put_vm(vm, state=lay.ON, granted_pages=granted, cursor=0, saved_pages=0)
    return host.vm_numbered(vm.number)


def settle(host: Host, name: str, *, step_pages: int = STEP_PAGES, most_steps: int | None = None, progress: Progress = None) -> Settled:
    """Let a running VM's swap grow and its granted memory shrink by as much, step by step, to its reservation (T7).

    A step that fails for want of storage ends it, leaves the VM with what it has, and is in `failure`; the same call tries it again. Killed
    anywhere, granted memory and promised swap cover the VM's memory.
    """
    before = vm = host.vm(name)
    if vm.is_off:
        raise RefusedError(f"VM {name}: is off")
    steps, failure = 0, None
    while vm.granted_pages > vm.reservation_pages and (most_steps is None or steps < most_steps):
        granted = max(vm.granted_pages - step_pages, vm.reservation_pages)
        try:
            _promise(host, vm, vm.memory_pages - granted, None)
        except (NoSpaceError, RefusedError) as error:
            failure = error
            break
        with host.turn():
            now = host.vm_numbered(vm.number)
            if now.granted_pages == vm.granted_pages and not now.is_off:
                # The swap is promised durably: less memory is enough from now on.
                host.put_vm(vm, granted_pages=granted)
            vm = host.vm_numbered(vm.number)
        if vm.is_off:
            break
        steps += 1
        if progress is not None:
            progress(before.granted_pages - vm.granted_pages, before.granted_pages - vm.reservation_pages, "pages")
    complete = vm.granted_pages <= vm.reservation_pages
    return Settled(before.granted_pages, vm.granted_pages, promised_pages(host, vm), steps, complete, failure)


def promised_pages(host: Host, vm: Vm) -> int:
    """Return how much swap a VM was promised, as its pool's reservation says; raises DamagedError."""
    path = host.swap_path(vm)
    if not path.exists():
        return 0
    with SwapFile.open(path) as swap:
        swap_uuid = swap.fields["uuid"]
    return promise_of(host.reservation_path(host.pool_numbered(vm.pool)), swap_uuid) * BLOCK_PAGES


def _promise(host: Host, vm: Vm, pages: int, progress: Progress) -> None:
    """Have at least so many pages of swap promised, durably; makes the swap file and grows the reservation where that is needed."""
    if pages <= 0:
        return
    reservation, path = host.reservation_path(host.pool_numbered(vm.pool)), host.swap_path(vm)
    if not path.exists():
        create_swap(path, memory_bytes=vm.memory_pages * lay.PAGE, reservation=reservation, promise_bytes=0)
    with SwapFile.open(path) as swap:
        swap_uuid = swap.fields["uuid"]
    blocks = -(-pages // BLOCK_PAGES)
    have = promise_of(reservation, swap_uuid)
    if have >= blocks:
        return
    while not _try_promise(reservation, swap_uuid, blocks):
        try:
            grow_reservation(reservation, (blocks - have) * SWAP_BLOCK_BYTES, progress)
        except NoSpaceError as error:
            facts = reservation_info(reservation)
            free = human(facts["size_bytes"] - facts["promised_bytes"])
            raise RefusedError(
                f"VM {vm.name}: {human((blocks - have) * SWAP_BLOCK_BYTES)} of swap cannot be promised: {reservation} has {free} free, "
                f"and cannot grow ({error})"
            ) from error


def _try_promise(reservation: Path, swap_uuid: bytes, blocks: int) -> bool:
    """Promise so many blocks; False where others were promised too many."""
    try:
        set_promise(reservation, swap_uuid, blocks)
    except RefusedError:
        return False
    return True


def power_off(host: Host, name: str) -> int:
    """Power a VM off, running or suspended: its memory is free, its swap goes home; return how many frames came free.

    Killed anywhere, the same call finishes. Raises NotFoundError.
    """
    number = host.vm(name).number
    with host.vm_turns([number]):
        vm = host.vm_numbered(number)
        freed = 0
        if not vm.is_off:
            with host.turn(), host.frames_turn() as frames:
                before = frames.free_pages
                _release(host, vm, frames)
                freed = frames.free_pages - before
        # From here on nobody looks at these any more.
        remove_map(host.volatile_map_path(number))
        remove_map(host.saved_map_path(vm))
        drop_swap(host, vm)
    return freed


def _release(host: Host, vm: Vm, frames: FrameTable) -> None:
    """Free a VM's frames; shared ones that a suspended VM may name are parked, and swept when this was the last of them."""
    shared = _shared_frames(host, vm)
    # First: from here on its maps count for nothing, and a kill lets the table be made anew without them.
    host.put_vm(vm, state=lay.OFF, granted_pages=0, cursor=0, saved_pages=0)
    if vm.cursor:
        frames.put("suspended", frames.get("suspended") - 1)
        frames.set_all(frames.of_kind(lay.HELD_BY_SUSPENDED, vm.number), lay.FREE)
    frames.set_all(frames.of_kind(lay.PRIVATE, vm.number), lay.FREE)
    for mpns in shared:
        frames.drop_shares(mpns, park=frames.get("suspended") > 0)
    sweep_parked(frames)


def _shared_frames(host: Host, vm: Vm) -> list[NDArray[np.int64]]:
    return [mpns[shared] for mpns, shared in iter_running(host, vm)] if has_running_part(vm) else []


def sweep_parked(frames: FrameTable) -> int:
    """Free parked frames once no suspended VM is left that may name them (T3); return how many."""
    if frames.get("suspended"):
        return 0
    parked = frames.of_kind(lay.PARKED)
    frames.set_all(parked, lay.FREE)
    return len(parked)
