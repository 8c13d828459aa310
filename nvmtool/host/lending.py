"""NVM pages as volatile RAM: borrowed from the device image when the host is short, returned when the image is (T6).

The image's own words say what is lent, durably, before a frame of the host may be used, and until no frame is used any more. So a page is
never both stored data and lent. Image and table change in one turn at the table: killed in between, it is made anew from the image's words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NoSpaceError
from ..region.device import Device
from ..region.lending import forget_lent, lend_blocks, lendable_blocks, take_back
from . import layout as lay
from .lent import is_over, lender_tag
from .rebuild import has_running_part
from .reclaim import reclaim, swap_out_saved
from .space import Space

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .frames import FrameTable
    from .host import Host
    from .records import Vm

    Ints = NDArray[np.int64]
    Progress = Callable[[int, int, str], None] | None

_BATCH_PAGES = 1 << 16


@dataclass(frozen=True, slots=True)
class Returned:
    """How lent pages went back: free ones, ones whose contents were moved into RAM, and pages that were swapped out to make room."""

    pages: int
    free_pages: int
    moved_pages: int
    swapped_pages: int


def lendable_pages(host: Host) -> int:
    """Return how many pages the device image has free beyond its own low-water mark; 0 without a device image."""
    if not host.nnvm:
        return 0
    with Device.open(host.nvm_path) as device:
        return lendable_blocks(device)


def lend(host: Host, npages: int) -> int:
    """Add pages of the device image to the host's memory, and return how many; durable in the image on return.

    Raises NotFoundError without a device image, NoSpaceError when it has not so many free, BusyError, or RefusedError when it lends to
    another host.
    """
    with Device.open(host.nvm_path, writable=True) as device, host.frames_turn() as frames:
        if device.lent_blocks and is_over(device.lender_tag):
            forget_lent(device)
        blocks = lend_blocks(device, npages, tag=lender_tag(host))
        frames.lend(blocks + host.nram)
    return len(blocks)


def give_back(host: Host, npages: int, *, progress: Progress = None) -> Returned:
    """Return lent pages to the device image, whoever uses them; durable on return.

    Contents move into RAM and maps are changed, of suspended VMs too; where RAM has no room, pages are swapped out first. Raises
    NoSpaceError when neither RAM nor swap has room; what went back until then stays so. Killed anywhere, no page is lost, and the same
    call finishes.
    """
    found = Returned(0, 0, 0, 0)
    while found.pages < npages:
        before = found
        found = _give_back_some(host, min(npages - found.pages, _BATCH_PAGES), found)
        if found.pages == before.pages:
            break
        if progress is not None:
            progress(found.pages, npages, "pages")
    return found


def _give_back_some(host: Host, npages: int, so_far: Returned) -> Returned:
    """Return up to so many pages more: free ones, else used ones that are emptied first."""
    with Device.open(host.nvm_path, writable=True) as device, host.frames_turn() as frames:
        free = frames.lent_frames(only_free=True)[:npages]
        _take_back(device, frames, free)
        used = frames.lent_frames()[: npages - len(free)]
        room = frames.free_ram
    moved = swapped = 0
    if len(used):
        swapped = _make_room(host, used, len(used) - room) if room < len(used) else 0
        moved = _move_to_ram(host, used)
    return Returned(
        so_far.pages + len(free) + len(used), so_far.free_pages + len(free), so_far.moved_pages + moved, so_far.swapped_pages + swapped
    )


def _take_back(device: Device, frames: FrameTable, mpns: Ints) -> None:
    """Let free lent frames be frames no more, then blocks of the image again; killed in between, they are lent and free."""
    if len(mpns):
        frames.unlend(mpns)
        take_back(device, mpns - frames.nram)


def _make_room(host: Host, used: Ints, npages: int) -> int:
    """Swap out pages, those in the frames themselves first; return how many."""
    chosen = np.zeros(host.frames.nmpn, bool)
    chosen[used] = True
    swapped = 0
    for vm in _users(host, chosen):
        if swapped >= npages:
            return swapped
        with host.vm_turns([vm.number]):
            vm = host.vm_numbered(vm.number)
            try:
                swapped += _swap_out_of(host, vm, chosen, npages - swapped)
            except NoSpaceError:
                continue
    if swapped < npages:
        swapped += reclaim(host, npages - swapped).pages
    return swapped


def _swap_out_of(host: Host, vm: Vm, chosen: NDArray[np.bool_], npages: int) -> int:
    if not host.swap_path(vm).exists():
        return 0
    if vm.state == lay.ON:
        with Space(host, vm) as space:
            found = [ppns[~shared & chosen[mpns]] for ppns, mpns, shared in space.map.iter_present()]
            ppns = np.concatenate([np.empty(0, np.int64), *found])[:npages]
            return space.swap_out(ppns) if len(ppns) else 0
    return swap_out_saved(host, vm, npages=npages, only=chosen) if vm.state == lay.SUSPENDED else 0


def _users(host: Host, chosen: NDArray[np.bool_]) -> list[Vm]:
    """Return the VMs that have chosen frames; a glance."""
    return [vm for vm in host.all_vms() if not vm.is_off and any(chosen[mpns].any() for _, mpns, _ in _iter_all(host, vm))]


def _iter_all(host: Host, vm: Vm) -> Iterator[tuple[Ints, Ints, NDArray[np.bool_]]]:
    """Yield (PPNs, MPNs, shared flags) of both of a VM's maps."""
    if vm.cursor:
        saved = host.saved_map_of(vm)
        try:
            yield from saved.iter_present(0, vm.cursor)
        finally:
            saved.close()
    if has_running_part(vm):
        vm_map = host.map_of(vm)
        try:
            yield from vm_map.iter_present(vm.cursor)
        finally:
            vm_map.close()


def _move_to_ram(host: Host, used: Ints) -> int:
    """Move what is in lent frames into RAM, change all maps that name them, and take them back; return how many moved.

    Frames that came free meanwhile need no move.
    """
    while True:
        # All VMs pause: a running one may have frames at hand that no map names yet.
        numbers = [vm.number for vm in host.all_vms() if not vm.is_off]
        with host.vm_turns(numbers), Device.open(host.nvm_path, writable=True) as device, host.turn(), host.frames_turn() as frames:
            if numbers == [vm.number for vm in host.all_vms() if not vm.is_off]:
                return _move_quietly(host, device, frames, used)


def _move_quietly(host: Host, device: Device, frames: FrameTable, used: Ints) -> int:
    kinds = frames.kinds(used)
    free, busy = used[kinds == lay.LENT_FREE], used[(kinds != lay.LENT_FREE) & (kinds != lay.FREE)]
    targets = _take_ram(frames, len(busy))
    if len(targets) < len(busy):
        frames.set_all(targets, lay.FREE)
        raise NoSpaceError(f"{host.path}: {len(busy) - len(targets)} lent pages are in use, and neither RAM nor swap has room for them")
    host.memory.copy(busy, targets)
    place = np.full(frames.nmpn, -1, np.int64)
    place[busy] = targets
    frames.copy_words(busy, targets)
    for vm in host.all_vms():
        if not vm.is_off:
            _rename(host, vm, place)
    frames.set_all(busy, lay.FREE)
    _take_back(device, frames, np.concatenate([free, busy]))
    return len(busy)


def _take_ram(frames: FrameTable, count: int) -> Ints:
    return frames.take(min(count, frames.free_ram), 0)


def _rename(host: Host, vm: Vm, place: Ints) -> None:
    """Let the maps of a VM name the frames that `place` says, where it says any."""
    if has_running_part(vm):
        vm_map = host.map_of(vm)
        try:
            for ppns, mpns, shared in vm_map.iter_present(vm.cursor):
                for flag in (False, True):
                    hit = (place[mpns] >= 0) & (shared == flag)
                    vm_map.put_all(ppns[hit], place[mpns[hit]], shared=flag)
        finally:
            vm_map.close()
    if vm.cursor:
        saved = host.saved_map_of(vm, writable=True)
        try:
            for ppns, mpns, shared in saved.iter_present(0, vm.cursor):
                hit = place[mpns] >= 0
                if hit.any():
                    words = place[mpns[hit]].astype(np.uint64) + np.uint64(1)
                    saved.replace(ppns[hit], np.where(shared[hit], words | np.uint64(lay.SHARED_FLAG), words))
        finally:
            saved.close()
