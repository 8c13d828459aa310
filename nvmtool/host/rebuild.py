"""The frame table made anew from the VMs' maps: at the start of a life, and after a process was killed while it changed the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, NotFoundError
from ..media import lock
from ..media.journal import distinct
from . import layout as lay
from .lent import lent_by_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .frames import FrameTable
    from .host import Host
    from .records import Vm

    Ints = NDArray[np.int64]


def rebuild(host: Host) -> None:
    """Compute every frame's word from the maps; the caller holds FRAMES.

    VMs that a process has now keep their private frames, named or not: that process knows them. Nobody else changed theirs meanwhile, for a
    change needs their turn. Raises DamagedError when maps contradict each other.
    """
    frames = host.frames
    vms = host.all_vms()
    at_work = [vm.number for vm in vms if not vm.is_off and _has_turn(host, vm)]
    frames.reset(np.array(at_work, np.int64))
    if host.nnvm:
        frames.lend(lent_by_image(host) + host.nram)
    frames.put("suspended", sum(vm.cursor > 0 for vm in vms))
    for vm in vms:
        if vm.cursor:
            for mpns, shared in iter_saved(host, vm):
                frames.require(mpns)
                _hold(frames, vm, mpns[~shared], lay.HELD_BY_SUSPENDED, may_be=())
                loose = mpns[shared]
                frames.set_all(distinct(loose[np.isin(frames.kinds(loose), (lay.FREE, lay.LENT_FREE))]), lay.PARKED)
    for vm in vms:
        if has_running_part(vm):
            for mpns, shared in iter_running(host, vm):
                frames.require(mpns)
                _hold(frames, vm, mpns[~shared], lay.PRIVATE, may_be=(lay.PRIVATE,) if vm.number in at_work else ())
                frames.add_shares(mpns[shared])


def has_running_part(vm: Vm) -> bool:
    """Tell whether page frames of a VM are in its volatile map."""
    return vm.state in (lay.ON, lay.SUSPENDING, lay.RESUMING)


def iter_saved(host: Host, vm: Vm) -> Iterator[tuple[Ints, NDArray[np.bool_]]]:
    """Yield (MPNs, shared flags) of the page frames that belong to a VM's client node; raises DamagedError."""
    saved = host.saved_map_of(vm)
    try:
        for _, mpns, shared in saved.iter_present(0, vm.cursor):
            yield mpns, shared
    finally:
        saved.close()


def iter_running(host: Host, vm: Vm) -> Iterator[tuple[Ints, NDArray[np.bool_]]]:
    """Yield (MPNs, shared flags) of the page frames that are the VM's own; none when its map went with an earlier life."""
    try:
        vm_map = host.map_of(vm)
    except NotFoundError:
        return
    try:
        for _, mpns, shared in vm_map.iter_present(vm.cursor):
            yield mpns, shared
    finally:
        vm_map.close()


def _has_turn(host: Host, vm: Vm) -> bool:
    return vm.number in host.held_turns or lock.is_held(host.file.fd, lock.turn_of(vm.number))


def _hold(frames: FrameTable, vm: Vm, mpns: Ints, kind: int, *, may_be: tuple[int, ...]) -> None:
    kinds = frames.kinds(mpns)
    wrong = ~np.isin(kinds, (lay.FREE, lay.LENT_FREE, *may_be))
    if wrong.any() or len(distinct(mpns)) != len(mpns):
        first = int(mpns[wrong][0]) if wrong.any() else -1
        raise DamagedError(f"VM {vm.name}: machine frame {first} is named twice, and not as shared")
    frames.set_all(mpns, kind, vm.number)
