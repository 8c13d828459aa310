"""The image host as a world of the memory scheduler (T5): its running VMs, whose guests have balloons and classes of their own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NotFoundError
from ..media import lock
from ..sched.classes import sample_classes
from ..sched.facts import CLASS_NAMES, Balloon, Classes, Estimate, Facts, HostFacts, VmFacts
from ..swap.swapfile import SwapFile
from . import layout as lay
from .host import HOST_FILE, Host
from .power import promised_pages
from .reclaim import take_from
from .sharing import share

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .maps import VmMap
    from .records import Vm

_GUEST_SECONDS = 5.0
_POLL_SECONDS = 0.02
_FREE, _INACTIVE = CLASS_NAMES.index("free"), CLASS_NAMES.index("inactive_anon")
_REPORTED = ("unreclaimable", "active_anon", "active_file", "inactive_anon", "inactive_file")


class HostWorld:
    """A host's running VMs; see `nvmtool.sched.world.World` for what it promises.

    A VM at which a guest works has a balloon driver, and reports its classes; its guest swaps out what it used least. One at which none
    does is sampled: nobody touches its pages, so all that it holds is inactive.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the host and lock it for this scheduler; raises what opening raises, and BusyError that names another scheduler."""
        self._host = Host.open(folder, writable=True)
        try:
            lock.lock(self._host.file.fd, self._host.path / HOST_FILE, lock.SCHEDULER, exclusive=True, seconds=0)
        except BaseException:  # an interrupt too must not keep the host open
            self._host.close()
            raise

    def facts(self) -> Facts:
        """Return what is known now; a VM that is suspended or goes off meanwhile is left out."""
        host = self._host
        with host.turn(), host.frames_turn():
            pass  # see what others committed, and bring in order what a killed process left
        vms = tuple(self._facts_of(vm) for vm in host.all_vms() if vm.state == lay.ON)
        total, free = host.frames.capacity * lay.PAGE, host.frames.free_pages * lay.PAGE
        return Facts(HostFacts(total, free, max(total - free - sum(vm.held_bytes for vm in vms), 0)), vms)

    def set_balloon(self, name: str, size_bytes: int) -> None:
        """Tell the balloon of a VM's guest to hold so much."""
        vm_map = self._host.map_of(self._running(name))
        vm_map.put("balloon_target", size_bytes // lay.PAGE)
        vm_map.close()

    def swap_out(self, name: str, size_bytes: int) -> int:
        """Swap out so much of a VM: its guest chooses what it used least, or nobody uses any of it. Return how much went."""
        vm, pages = self._running(name), size_bytes // lay.PAGE
        vm_map = self._host.map_of(vm)
        try:
            before = _resident(vm_map)
            if not self._host.has_guest(vm):
                take_from(self._host, vm, pages)
                return max(before - _resident(vm_map), 0) * lay.PAGE
            most = max(before - pages, 1)
            vm_map.put("most_resident", most)
            deadline = time.monotonic() + _GUEST_SECONDS
            while (now := _resident(vm_map)) > most and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            return max(before - now, 0) * lay.PAGE
        finally:
            vm_map.close()

    def swap_in(self, name: str, size_bytes: int) -> int:
        """Let so much more of a VM stay in memory, and return 0: its pages come back when they are touched."""
        vm = self._running(name)
        vm_map = self._host.map_of(vm)
        most = vm_map.get("most_resident")
        if most:
            more = most + size_bytes // lay.PAGE
            vm_map.put("most_resident", more if more < vm.memory_pages else 0)
        vm_map.close()
        return 0

    def share(self, name: str, size_bytes: int) -> int:
        """Share equal pages of all VMs, and return what that freed of this one."""
        self._running(name)
        return dict(share(self._host).saved_by_vm).get(name, 0) * lay.PAGE

    def close(self) -> None:
        """Let go of the host; balloons and swapped pages stay as they are."""
        lock.unlock(self._host.file.fd, lock.SCHEDULER)
        self._host.close()

    def _running(self, name: str) -> Vm:
        with self._host.turn():
            vm = self._host.vm(name)
        if vm.state != lay.ON:
            raise NotFoundError(f"VM {name}: is {vm.state_name}")
        return vm

    def _facts_of(self, vm: Vm) -> VmFacts:
        vm_map = self._host.map_of(vm)
        try:
            swapped, room = self._swap_of(vm)
            resident = _resident(vm_map)
            driver = self._host.has_guest(vm) and vm_map.get("reported") > 0
            size = min(vm_map.get("balloon"), vm.memory_pages) if driver else 0
            estimate = _reported(vm, vm_map, size) if driver else self._sampled(vm, vm_map)
            return VmFacts(
                vm.name,
                vm.memory_pages * lay.PAGE,
                reservation_bytes=vm.reservation_pages * lay.PAGE,
                limit_bytes=vm.limit_pages * lay.PAGE or None,
                shares=vm.shares,
                balloon=Balloon(driver, size * lay.PAGE, vm_map.get("balloon_target") * lay.PAGE if driver else None),
                swapped_bytes=swapped * lay.PAGE,
                swap_room_bytes=max(room, 0) * lay.PAGE,
                resident_bytes=resident * lay.PAGE,
                estimate=estimate,
            )
        finally:
            vm_map.close()

    def _swap_of(self, vm: Vm) -> tuple[int, int]:
        """Return how many pages of a VM are swapped out, and how many more may be."""
        path = self._host.swap_path(vm)
        if not path.exists():
            return 0, 0
        with SwapFile.open(path) as swap:
            used = swap.used_slots
        return used, promised_pages(self._host, vm) - used

    def _sampled(self, vm: Vm, vm_map: VmMap) -> Estimate | None:
        path = self._host.swap_path(vm)
        words = vm_map.array

        def class_of(frames: NDArray[np.int64]) -> NDArray[np.integer]:
            holds = words[frames] != 0
            if path.exists():
                with SwapFile.open(path) as swap:
                    holds |= swap.states(frames) >= 0
            return np.where(holds, _INACTIVE, _FREE)

        return sample_classes(vm.memory_pages, class_of, vm.memory_pages * lay.PAGE)


def _reported(vm: Vm, vm_map: VmMap, balloon_pages: int) -> Estimate:
    counts = [vm_map.get(name) for name in _REPORTED]
    free = max(vm.memory_pages - balloon_pages - sum(counts), 0)
    return Estimate.reported(Classes(*(count * lay.PAGE for count in (*counts, free))))


def _resident(vm_map: VmMap) -> int:
    return sum(len(ppns) for ppns, _, _ in vm_map.iter_present())
