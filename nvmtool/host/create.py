"""Make a host, its pools and its VMs, and delete pools and VMs."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ExistsError, NotFoundError, NvmtoolError, RefusedError, UsageError
from ..media.header import COPIES
from ..media.imagefile import ImageFile, open_file
from ..media.journal import Journal
from ..media.newfile import NewFile, remove_file
from ..media.root import ROOT_BLOCK, new_root_block
from ..media.store import FileStore, translated
from ..region.device import read_header
from ..swap.delete import delete_swap
from ..swap.reservation import create_reservation
from ..text import human
from . import layout as lay
from .frames import FrameTable
from .host import HOST_FILE, MEMORY_FILE, VOLATILE, Host
from .maps import remove_map
from .records import DEFAULT_SHARES, ROOT_POOL, Pool, Records, Vm, check_shares, new_pool, new_vm

# A reservation has at least a block; it grows when VMs need swap.
SWAP_BLOCK_BYTES = 1 << 20
MIN_RAM_PAGES = 16


def init_host(
    path: str | Path,
    *,
    ram_bytes: int,
    nvm: str | Path | None = None,
    memory: str | Path | None = None,
    swap_bytes: int = SWAP_BLOCK_BYTES,
    sparse: bool = False,
) -> None:
    """Create a host's folder with machine memory, nothing in it, and a root pool.

    `memory` is a folder, best on tmpfs, in which machine memory and volatile state are put; `swap_bytes` is what the root pool's
    reservation has from the start. Machine memory is allocated unless `sparse`. Raises UsageError, ExistsError, FormatError for an `nvm`
    that is no device image, or NoSpaceError; failed, nothing is left, and killed in between, there is no
    host yet, and the same call makes one.
    """
    path = Path(path)
    ram_pages = _pages(ram_bytes, "RAM", least=MIN_RAM_PAGES)
    if (path / HOST_FILE).exists():
        raise ExistsError(f"{path}: is a host already")
    nvm_pages = _nvm_pages(Path(nvm)) if nvm is not None else 0
    with translated(path):
        for folder in (path, path / "vms", path / "pools"):
            folder.mkdir(mode=0o700, exist_ok=True)
    fields: dict[str, Any] = {
        "uuid": uuid.uuid4().bytes,
        "generation": 1,
        "ram_pages": ram_pages,
        "nvm_pages": nvm_pages,
        "created": time.time_ns() // 1000,
        "nvm_path": _stored_path(path, Path(nvm)) if nvm is not None else "",
        **lay.host_areas(),
    }
    try:
        _make_volatile(path, Path(memory) if memory is not None else None, fields["uuid"])
        make_memory(path, fields["uuid"], ram_pages, sparse=sparse)
        FrameTable.create(path / VOLATILE / "frames", ram_pages, nvm_pages, 1, sparse=sparse)
        _make_pool_folder(path / "pools" / ROOT_POOL, swap_bytes)
        _write_file(path / HOST_FILE, fields)
    except BaseException:  # an interrupt too must not leave gigabytes of memory that belong to no host
        _remove_remains(path)
        raise


def make_memory(path: Path, host_uuid: bytes, ram_pages: int, *, sparse: bool) -> None:
    """Create machine memory, or let what is there be this machine's life's; its frames hold anything."""
    target = Path(os.path.realpath(path / MEMORY_FILE))
    header = lay.MEMORY_FORMAT.encode({"host_uuid": host_uuid, "boot": lay.boot_id(), "generation": 1, "ram_pages": ram_pages})
    size = (lay.MEMORY_START + ram_pages) * lay.PAGE
    with translated(target):
        fd = os.open(target, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, size)
            if not sparse:
                os.posix_fallocate(fd, 0, size)
            os.pwrite(fd, header * len(COPIES), 0)
        except OSError:
            target.unlink()
            raise
        finally:
            os.close(fd)


def create_pool(
    host: Host,
    name: str,
    *,
    parent: str = ROOT_POOL,
    reservation_bytes: int = 0,
    limit_bytes: int = 0,
    shares: int = DEFAULT_SHARES,
    swap_bytes: int = SWAP_BLOCK_BYTES,
) -> Pool:
    """Create a pool with its reservation file; durable on return. A limit of 0 is none.

    Raises UsageError, ExistsError, NoSpaceError, or RefusedError when its parent cannot promise the reservation.
    """
    from .admission import require_pool

    check_shares(shares)
    reservation, limit = _pages(reservation_bytes, "reservation"), _pages(limit_bytes, "limit")
    if limit and limit < reservation:
        raise UsageError(f"pool {name}: limit {human(limit_bytes)} is below its reservation {human(reservation_bytes)}")
    with host.turn():
        above = host.pool(parent)
        if host.pools.find(name) is not None:
            raise ExistsError(f"{host.path}: pool {name!r} exists already")
        require_pool(host, above, name, reservation)
        with host.file.transaction():
            pool = new_pool(host.pools, name, parent=above.number, reservation=reservation, limit=limit, shares=shares)
            _make_pool_folder(host.pool_folder(pool), swap_bytes)
    return pool


def delete_pool(host: Host, name: str) -> None:
    """Delete a pool that has neither pools nor VMs; raises NotFoundError or RefusedError."""
    with host.turn():
        pool = host.pool(name)
        users = [vm.name for vm in host.all_vms() if vm.pool == pool.number]
        users += [other.name for other in host.all_pools() if other.parent == pool.number]
        if pool.parent < 0:
            raise RefusedError(f"{host.path}: the pool {ROOT_POOL} stays")
        if users:
            raise RefusedError(f"{host.path}: pool {name} is in use by {', '.join(users)}")
        with host.file.transaction():
            host.pools.get(pool.number).clear()
        with suppress(NotFoundError):
            remove_file(host.reservation_path(pool))
        _remove_folder(host.pool_folder(pool))


def create_vm(
    host: Host,
    name: str,
    *,
    memory_bytes: int,
    reservation_bytes: int = 0,
    limit_bytes: int = 0,
    shares: int = DEFAULT_SHARES,
    pool: str = ROOT_POOL,
) -> Vm:
    """Create a VM that is off; durable on return. A limit of 0 is none. Raises UsageError, ExistsError or NotFoundError."""
    check_shares(shares)
    memory = _pages(memory_bytes, "memory", least=1)
    reservation, limit = _pages(reservation_bytes, "reservation"), _pages(limit_bytes, "limit")
    if reservation > memory:
        raise UsageError(f"VM {name}: reservation {human(reservation_bytes)} is more than its memory {human(memory_bytes)}")
    if limit and limit < reservation:
        raise UsageError(f"VM {name}: limit {human(limit_bytes)} is below its reservation {human(reservation_bytes)}")
    with host.turn():
        number = host.pool(pool).number
        with host.file.transaction():
            return new_vm(host.vms, name, pool=number, memory=memory, reservation=reservation, limit=limit, shares=shares)


def delete_vm(host: Host, name: str) -> None:
    """Delete a VM that is off, with what a kill may have left of it; raises NotFoundError or RefusedError."""
    with host.vm_turns([host.vm(name).number]), host.turn():
        vm = host.vm(name)
        if not vm.is_off:
            raise RefusedError(f"VM {name}: is {vm.state_name}; power it off first")
        drop_swap(host, vm)
        remove_map(host.saved_map_path(vm))
        with host.file.transaction():
            host.vms.get(vm.number).clear()


def drop_swap(host: Host, vm: Vm) -> None:
    """Delete the swap file of a VM that is off, if there is one; its blocks go home."""
    pool = host.pool_numbered(vm.pool)
    with suppress(NotFoundError):
        delete_swap(host.swap_path(vm), reservation=host.reservation_path(pool))


def _make_pool_folder(folder: Path, swap_bytes: int) -> None:
    blocks = max(-(-swap_bytes // SWAP_BLOCK_BYTES), 1)
    with translated(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    try:
        with suppress(ExistsError):  # of a call that was killed
            create_reservation(folder / "reservation", blocks * SWAP_BLOCK_BYTES, SWAP_BLOCK_BYTES)
    except NvmtoolError:
        _remove_folder(folder)
        raise


def _remove_folder(folder: Path) -> None:
    with suppress(OSError):  # a mount point stays
        folder.rmdir()


def _remove_remains(path: Path) -> None:
    """Remove what a host that could not be made left; the folders too, where nothing else is in them."""
    for name in (MEMORY_FILE, VOLATILE):
        home = Path(os.path.realpath(path / name))
        if home.is_dir():
            shutil.rmtree(home)
        else:
            home.unlink(missing_ok=True)
        if (path / name).is_symlink():
            (path / name).unlink()
            _remove_folder(home.parent)
    (path / "pools" / ROOT_POOL / "reservation").unlink(missing_ok=True)
    for folder in (path / "pools" / ROOT_POOL, path / "pools", path / "vms", path):
        _remove_folder(folder)


def _make_volatile(path: Path, memory: Path | None, host_uuid: bytes) -> None:
    """Make the place for volatile state; with a memory folder, machine memory and it are there, and links lead to them."""
    with translated(path):
        for name in (MEMORY_FILE, VOLATILE):
            if memory is not None:
                home = memory.resolve() / f"nvmtool-{uuid.UUID(bytes=host_uuid)}"
                home.mkdir(mode=0o700, parents=False, exist_ok=True)
                (path / name).unlink(missing_ok=True)
                (path / name).symlink_to(home / name)
        folder = Path(os.path.realpath(path / VOLATILE))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)


def _write_file(path: Path, fields: dict[str, object]) -> None:
    new = NewFile(path)
    try:
        with translated(path):
            os.fchmod(new.fd, 0o600)
        size = lay.host_areas()["size_blocks"] * lay.PAGE
        new.allocate(size, sparse=False)
        store = FileStore(path, new.fd, size, writable=True)
        store.store_bytes(lay.PAGE, [bytes(size - lay.PAGE)])
        Journal.format(store, lay.host_areas()["log_start"])
        store.store_bytes(ROOT_BLOCK * lay.PAGE, [new_root_block(lay.HOST_ROOT, lay.HOST_ROOT_PLACE, {"life": 1})])
        # Headers last: without them the rest is no host.
        store.fence()
        for copy in COPIES:
            store.store_bytes(copy * lay.PAGE, [lay.HOST_FORMAT.encode(fields)])
        store.fence()
        areas = lay.host_areas()
        file = ImageFile(store, areas["log_start"], areas["log_blocks"], writable=True)
        pools = Records(file.journal, lay.POOL_RECORD, lay.POOL_PLACE, start=areas["pool_start"], most=lay.MAX_POOLS, noun="pool")
        with file.transaction():
            new_pool(pools, ROOT_POOL, parent=-1, reservation=0, limit=0, shares=DEFAULT_SHARES)
        file.journal.checkpoint()
        store.close()
        new.publish()
    finally:
        new.close()


def _nvm_pages(nvm: Path) -> int:
    fd = open_file(nvm, writable=False)
    try:
        return read_header(nvm, fd).size_blocks
    finally:
        os.close(fd)


def _stored_path(path: Path, nvm: Path) -> str:
    """Return the device image's path as the header keeps it: relative when it is beside the host, so that they can move together."""
    folder, target = path.resolve(), nvm.resolve()
    stored = os.path.relpath(target, folder) if target.is_relative_to(folder.parent) else str(target)
    if len(os.fsencode(stored)) > lay.HOST_HEADER["nvm_path"].itemsize:
        raise UsageError(f"{nvm}: path is too long for the header")
    return stored


def _pages(size_bytes: int, what: str, *, least: int = 0) -> int:
    if size_bytes % lay.PAGE or not least <= size_bytes // lay.PAGE <= lay.MAX_PAGES:
        raise UsageError(f"{what} {size_bytes}: must be a multiple of {lay.PAGE} from {least * lay.PAGE} to {lay.MAX_PAGES * lay.PAGE}")
    return size_bytes // lay.PAGE
