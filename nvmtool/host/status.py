"""What a host and its VMs are doing: a glance that disturbs nobody, and may be a moment old."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..swap.reservation import reservation_info
from ..swap.swapfile import SwapFile
from . import layout as lay
from .admission import guarantees, swap_needed
from .balance import state_of
from .power import promised_pages
from .rebuild import has_running_part, iter_running

if TYPE_CHECKING:
    from .host import Host
    from .records import Pool, Vm


def host_status(host: Host) -> dict[str, Any]:
    """Return the facts that `host status --json` prints; sizes in bytes. Raises NotFoundError while a restart is half done."""
    frames = host.frames
    found = guarantees(host)
    return {
        "host": str(host.path),
        "format_version": lay.VERSION,
        "uuid": host.uuid_text,
        "life": host.life,
        "ram_bytes": host.nram * lay.PAGE,
        "lent_bytes": frames.get("lent") * lay.PAGE,
        "free_bytes": frames.free_pages * lay.PAGE,
        "free_share": round(frames.free_pages / frames.capacity, 4),
        "state": state_of(host),
        "guaranteed_bytes": found.total * lay.PAGE,
        "nvm": str(host.nvm_path) if host.nnvm else None,
        "vms": [vm_info(host, vm) for vm in host.all_vms()],
    }


def vm_info(host: Host, vm: Vm) -> dict[str, Any]:
    """Return the facts that `vm info --json` prints; sizes in bytes."""
    private = shared = 0
    if has_running_part(vm):
        for mpns, flags in iter_running(host, vm):
            shared += int(flags.sum())
            private += len(mpns) - int(flags.sum())
    path = host.swap_path(vm)
    swapped = 0
    if path.exists():
        with SwapFile.open(path) as swap:
            swapped = swap.used_slots
    return {
        "name": vm.name,
        "pool": host.pool_numbered(vm.pool).name,
        "state": vm.state_name,
        "memory_bytes": vm.memory_pages * lay.PAGE,
        "reservation_bytes": vm.reservation_pages * lay.PAGE,
        "limit_bytes": vm.limit_pages * lay.PAGE or None,
        "shares": vm.shares,
        "granted_bytes": vm.granted_pages * lay.PAGE,
        "promised_swap_bytes": promised_pages(host, vm) * lay.PAGE,
        "private_bytes": private * lay.PAGE,
        "shared_bytes": shared * lay.PAGE,
        "suspended_bytes": vm.saved_pages * lay.PAGE,
        "swapped_bytes": swapped * lay.PAGE,
        "at_work": host.has_guest(vm),
    }


def pool_info(host: Host, pool: Pool) -> dict[str, Any]:
    """Return the facts that `pool list --json` prints of a pool; sizes in bytes. `swap_needed_bytes` is T8's bound.

    Raises what reading its reservation raises.
    """
    found = guarantees(host)
    vms = [vm for vm in host.all_vms() if vm.pool == pool.number and not vm.is_off]
    available = sum(vm.granted_pages for vm in vms)
    needed = swap_needed([(vm.memory_pages, vm.reservation_pages) for vm in vms], available)
    swap = reservation_info(host.reservation_path(pool))
    return {
        "name": pool.name,
        "parent": host.pool_numbered(pool.parent).name if pool.parent >= 0 else None,
        "reservation_bytes": pool.reservation_pages * lay.PAGE,
        "limit_bytes": pool.limit_pages * lay.PAGE or None,
        "shares": pool.shares,
        "guaranteed_bytes": found.inside[pool.number] * lay.PAGE,
        "vms": [vm.name for vm in host.all_vms() if vm.pool == pool.number],
        "swap_bytes": swap["size_bytes"],
        "swap_promised_bytes": swap["promised_bytes"],
        "swap_lent_bytes": swap["lent_bytes"],
        "swap_needed_bytes": needed * lay.PAGE,
        "block_move": swap["block_move"],
    }
