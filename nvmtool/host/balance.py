"""Keep enough machine memory free: borrow from NVM first, else swap; and give back what the device image needs itself (T6)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import BusyError, NoSpaceError, NvmtoolError, RefusedError
from ..region.device import Device
from . import layout as lay
from . import lending
from .reclaim import reclaim
from .space import Space

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from .host import Host

    Progress = Callable[[int, int, str], None] | None

CHUNK_PAGES = 1 << 14
# Shares of free memory at which the indicator changes; balancing brings it back to the first.
THRESHOLDS = (("high", 0.06), ("soft", 0.04), ("hard", 0.02))
LOW = "low"
# The device image has fewer free blocks than this share: lent pages go back.
DEVICE_LOW_WATER = 0.05


@dataclass(frozen=True, slots=True)
class Balanced:
    """What a round did, in pages; `state` before and after, and what kept it from doing more."""

    state_before: str
    state: str
    lent_pages: int
    returned_pages: int
    swapped_pages: int
    from_vms: tuple[tuple[str, int], ...]
    failure: NvmtoolError | None


def free_state(free_pages: int, capacity: int) -> str:
    """Return the free-state indicator: high, soft, hard or low."""
    return next((name for name, share in THRESHOLDS if free_pages >= share * capacity), LOW)


def state_of(host: Host) -> str:
    """Return the host's free-state indicator."""
    return free_state(host.frames.free_pages, host.frames.capacity)


def balance(host: Host, *, chunk_pages: int = CHUNK_PAGES, progress: Progress = None) -> Balanced:
    """Bring free memory back to the high mark, and the device image above its low-water mark; one round.

    What cannot be had (no NVM, no swap, busy) is in `failure`, and what was done stays so.
    """
    with host.frames_turn():
        pass  # brings in order what a killed process left
    before = state_of(host)
    returned = lent = swapped = 0
    from_vms: tuple[tuple[str, int], ...] = ()
    failure: NvmtoolError | None = None
    try:
        if _device_is_low(host):
            # How many go back does not depend on how many came at a time.
            returned = lending.give_back(host, min(host.frames.get("lent"), chunk_pages), progress=progress).pages
    except (NoSpaceError, BusyError, RefusedError) as error:
        failure = error
    if before != "high":
        missing = int(THRESHOLDS[0][1] * host.frames.capacity) + 1 - host.frames.free_pages
        while missing > 0 and not returned and (got := lend_chunk(host, chunk_pages)):
            lent += got
            missing = int(THRESHOLDS[0][1] * host.frames.capacity) + 1 - host.frames.free_pages
        if missing > 0:
            found = reclaim(host, missing, progress=progress)
            swapped, from_vms = found.pages, found.from_vms
            if swapped < missing and failure is None:
                failure = RefusedError(
                    f"{host.path}: {missing - swapped} pages short of the high mark: no VM has more than it is granted, or swap for it"
                )
    return Balanced(before, state_of(host), lent, returned, swapped, from_vms, failure)


def find_frames(space: Space, npages: int, referenced: NDArray[np.uint8] | None = None) -> Space:
    """Let machine frames come free for a VM that has found none, and return the space to go on with.

    Lent by NVM; else the VM's own, where it has more than it is granted; else those of VMs that have more than they are granted, for which
    this one's turn pauses. Raises NoSpaceError or RefusedError when none can be had, or the VM does not run any more.
    """
    host, vm = space.host, space.vm
    if lend_chunk(host):
        return space
    if space.resident <= vm.granted_pages:
        before = space
        space.close()
        with host.pause_turn(vm.number):
            found = reclaim(host, npages, without=vm.number).pages
        space = return_to(before)
        if found:
            return space
    space.swap_out(space.choose(min(npages, max(space.resident // 8, 1)), referenced))
    return space


def return_to(before: Space) -> Space:
    """Open a VM's space again after others had its turn; raises RefusedError when it does not run any more."""
    vm = before.host.vm_numbered(before.vm.number)
    if vm.state != lay.ON:
        raise RefusedError(f"VM {vm.name}: is {vm.state_name} now")
    space = Space(before.host, vm)
    space.swap_ins, space.swap_outs = before.swap_ins, before.swap_outs
    return space


def lend_chunk(host: Host, chunk_pages: int = CHUNK_PAGES) -> int:
    """Borrow a chunk when the device image has as much beyond its own low-water mark; return how many pages that was."""
    if not host.nnvm:
        return 0
    with suppress(NoSpaceError, BusyError, RefusedError):
        if lending.lendable_pages(host) >= chunk_pages:
            return lending.lend(host, chunk_pages)
    return 0


def _device_is_low(host: Host) -> bool:
    if not host.nnvm or not host.frames.get("lent"):
        return False
    with Device.open(host.nvm_path) as device:
        return device.blocks.free_blocks < DEVICE_LOW_WATER * device.blocks.nblocks
