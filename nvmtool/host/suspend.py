"""Suspend a VM to memory, restart the hypervisor, resume from memory: no page moves or is copied (T3).

Suspending saves the VM's map, a batch of page frames at a time, with a shared flag per page. A batch's words are durable before the VM's
*cursor* passes them: with that one word its page frames belong to the client node. The counts of shared frames are saved nowhere;
resuming makes them again, by entering each flagged frame with count 1 or adding 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, RefusedError
from ..media import lock
from ..text import human
from . import layout as lay
from .admission import most_for
from .create import make_memory
from .host import HOST_FILE
from .maps import BATCH, SavedMap, VmMap, remove_map, split_words
from .power import power_off, sweep_parked
from .reclaim import settle_count
from .space import Space

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .frames import FrameTable
    from .host import Host
    from .records import Vm

    Progress = Callable[[int, int, str], None] | None


@dataclass(frozen=True, slots=True)
class Moved:
    """What a suspension or a resumption did: pages whose ownership moved, those of them with the shared flag, frames swept at the end."""

    pages: int
    shared_pages: int
    frames_swept: int


def suspend(host: Host, name: str, *, batch: int = BATCH, most_batches: int | None = None, progress: Progress = None) -> Moved:
    """Suspend a running VM, or one whose suspension was cut off; all is durable on return.

    A process that runs the VM ends by it. Raises RefusedError for a VM in another state. `most_batches` stops early, as a kill would, but
    in order: the same call goes on.
    """
    number = host.vm(name).number
    with host.vm_turns([number]):
        vm = host.vm_numbered(number)
        if vm.state == lay.ON:
            with Space(host, vm):
                pass  # frames that a killed process had at hand go back
            path = host.saved_map_path(vm)
            saved = SavedMap.create(path, host_uuid=host.uuid, vm_uuid=vm.uuid, number=number, nframes=vm.memory_pages)
            saved.fence()
            saved.close()
            with host.turn():
                host.put_vm(vm, state=lay.SUSPENDING, cursor=0, saved_pages=0)
        elif vm.state == lay.RESUMING:
            with host.turn():
                host.put_vm(vm, state=lay.SUSPENDING)
        elif vm.state != lay.SUSPENDING:
            raise RefusedError(f"VM {name}: is {vm.state_name}, only a running VM can be suspended")
        return _save_all(host, settle_count(host, host.vm_numbered(number)), batch, most_batches, progress)


def _save_all(host: Host, vm: Vm, batch: int, most_batches: int | None, progress: Progress) -> Moved:
    vm_map, saved = host.map_of(vm), host.saved_map_of(vm, writable=True)
    pages = shared_pages = batches = 0
    try:
        while vm.cursor < vm.memory_pages and (most_batches is None or batches < most_batches):
            behind = _next_cursor(vm_map, vm.cursor, batch)
            shared = _save_batch(host, vm, vm_map, saved, behind)
            after = host.vm_numbered(vm.number)
            pages, shared_pages, batches = pages + after.saved_pages - vm.saved_pages, shared_pages + shared, batches + 1
            vm = after
            if progress is not None:
                progress(vm.cursor, vm.memory_pages, "pages")
    finally:
        vm_map.close()
        saved.close()
    if vm.cursor == vm.memory_pages:
        with host.turn():
            host.put_vm(vm, state=lay.SUSPENDED)
        remove_map(host.volatile_map_path(vm.number))
    return Moved(pages, shared_pages, 0)


def _next_cursor(vm_map: VmMap, cursor: int, batch: int) -> int:
    """Return where the next batch of page frames ends; a stretch that was never written is passed in one step."""
    for first, _ in vm_map.iter_written(cursor, vm_map.nframes):
        return min(max(first, cursor) + batch, vm_map.nframes)
    return vm_map.nframes


def _save_batch(host: Host, vm: Vm, vm_map: VmMap, saved: SavedMap, behind: int) -> int:
    npages, flagged, held = 0, [], []
    for first, last in vm_map.iter_written(vm.cursor, behind):
        words = vm_map.array[first:last].copy()
        saved.write(first, words)
        mpns, shared = split_words(words[words != 0])
        npages += len(mpns)
        flagged.append(mpns[shared])
        held.append(mpns[~shared])
    # The words must be durable before the cursor says that they count.
    saved.fence()
    with host.turn(), host.frames_turn() as frames:
        if vm.cursor == 0:
            frames.put("suspended", frames.get("suspended") + 1)
        host.put_vm(vm, cursor=behind, saved_pages=vm.saved_pages + npages)
        for mpns in held:
            frames.set_all(mpns, lay.HELD_BY_SUSPENDED, vm.number)
        for mpns in flagged:
            frames.drop_shares(mpns, park=True)
    return sum(len(mpns) for mpns in flagged)


def resume(host: Host, name: str, *, batch: int = BATCH, most_batches: int | None = None, progress: Progress = None) -> Moved:
    """Resume a suspended VM, or one whose suspension or resumption was cut off; it runs on return, with every page where it was.

    Raises RefusedError when its memory cannot be guaranteed now, or for a VM in another state, DamagedError for a damaged map: then nothing
    was lost. Killed anywhere, the same call goes on.
    """
    number = host.vm(name).number
    with host.vm_turns([number]):
        vm = host.vm_numbered(number)
        if vm.state not in (lay.SUSPENDING, lay.SUSPENDED, lay.RESUMING):
            raise RefusedError(f"VM {name}: is {vm.state_name}, not suspended")
        with host.turn():
            if vm.state == lay.SUSPENDED:
                _require_memory(host, vm)
                VmMap.create(host.volatile_map_path(number), vm.memory_pages, host.life)
            host.put_vm(vm, state=lay.RESUMING)
        return _restore_all(host, settle_count(host, host.vm_numbered(number)), batch, most_batches, progress)


def _require_memory(host: Host, vm: Vm) -> None:
    most = most_for(host, vm)
    if vm.granted_pages > most:
        need, free = human(vm.granted_pages * lay.PAGE), human(most * lay.PAGE)
        raise RefusedError(f"VM {vm.name}: its granted memory of {need} cannot be guaranteed now: {free} are free")


def _restore_all(host: Host, vm: Vm, batch: int, most_batches: int | None, progress: Progress) -> Moved:
    vm_map, saved = host.map_of(vm), host.saved_map_of(vm)
    first_cursor, pages, shared_pages, batches, swept = vm.cursor, 0, 0, 0, 0
    try:
        while vm.cursor and (most_batches is None or batches < most_batches):
            behind = max((last for _, last in saved.iter_data(0, vm.cursor)), default=0)
            first = max(behind - batch, 0) if behind else 0
            shared, gone = _restore_batch(host, vm, vm_map, saved, first, min(behind, vm.cursor))
            after = host.vm_numbered(vm.number)
            pages, shared_pages = pages + vm.saved_pages - after.saved_pages, shared_pages + shared
            swept, batches = swept + gone, batches + 1
            vm = after
            if progress is not None:
                progress(first_cursor - vm.cursor, first_cursor, "pages")
    finally:
        vm_map.close()
        saved.close()
    if vm.cursor == 0:
        with host.turn():
            host.put_vm(vm, state=lay.ON)
        remove_map(host.saved_map_path(vm))
    return Moved(pages, shared_pages, swept)


def _restore_batch(host: Host, vm: Vm, vm_map: VmMap, saved: SavedMap, first: int, behind: int) -> tuple[int, int]:
    words = saved.read(first, behind) if behind > first else np.zeros(0, np.uint64)
    mpns, shared = split_words(words[words != 0])
    left = vm.saved_pages - len(mpns)
    if left < 0 or (first == 0 and left):
        raise DamagedError(f"{saved.path}: the VM's record counts {vm.saved_pages} saved pages, the map has another number of them")
    with host.turn(), host.frames_turn() as frames:
        _require_held(frames, vm, mpns, shared)
        vm_map.put_words(first, words)
        host.put_vm(vm, cursor=first, saved_pages=left)
        frames.set_all(mpns[~shared], lay.PRIVATE, vm.number)
        frames.add_shares(mpns[shared])
        swept = 0
        if first == 0:
            frames.put("suspended", frames.get("suspended") - 1)
            swept = sweep_parked(frames)
    return int(shared.sum()), swept


def _require_held(frames: FrameTable, vm: Vm, mpns: NDArray[np.int64], shared: NDArray[np.bool_]) -> None:
    frames.require(mpns)
    own = mpns[~shared]
    wrong = (frames.kinds(own) != lay.HELD_BY_SUSPENDED) | (frames.values(own) != vm.number)
    kinds = frames.kinds(mpns[shared])
    if wrong.any() or (~np.isin(kinds, (lay.SHARED, lay.PARKED))).any():
        raise DamagedError(f"VM {vm.name}: its saved map names a machine frame that is not its own; nvmtool host check tells all")


def restart(host: Host, *, force: bool = False) -> int:
    """Restart the hypervisor: throw all volatile state away, keep memory; return how many VMs were powered off by `force`.

    VMs must be off or suspended; `force` powers off those that are not, as a reset would, and all when the machine's memory is gone.
    Raises RefusedError that names them.
    """
    try:
        host.require_memory()
        is_lost = False
    except RefusedError:
        if not force:
            raise
        is_lost = True
    doomed = [vm for vm in host.all_vms() if (is_lost and not vm.is_off) or vm.state not in (lay.OFF, lay.SUSPENDED)]
    if doomed and not force:
        names = ", ".join(f"{vm.name} is {vm.state_name}" for vm in doomed)
        raise RefusedError(f"{host.path}: {names}: suspend or power off first; --force loses what they have in memory")
    numbers = [vm.number for vm in host.all_vms() if not vm.is_off]
    with host.vm_turns(numbers):
        if is_lost:
            for vm in doomed:
                with host.turn():
                    host.put_vm(vm, state=lay.OFF, granted_pages=0, cursor=0, saved_pages=0)
            make_memory(host.path, host.uuid, host.nram, sparse=host.is_sparse())
        with host.turn():
            left = [vm for vm in host.all_vms() if vm.state not in (lay.OFF, lay.SUSPENDED)]
            for vm in left:
                host.put_vm(vm, state=lay.OFF, granted_pages=0, cursor=0, saved_pages=0)
            lock.lock(host.file.fd, host.path / HOST_FILE, lock.FRAMES, exclusive=True, seconds=10.0)
            try:
                with host.file.transaction():
                    host.root.put("life", host.life + 1)
                host.begin_life()
            finally:
                lock.unlock(host.file.fd, lock.FRAMES)
        for vm in doomed:
            power_off(host, vm.name)  # what is left of them: maps and swap
    return len(doomed)
