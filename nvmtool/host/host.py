"""An open host: its records, its machine memory, and the turns in which processes change them.

The folder, what survives what, and the locks are in docs/host.md. Turns are taken in this order: VMs by their numbers, then the records
(`turn`), then the frame table (`frames_turn`).
"""

from __future__ import annotations

import math
import os
import shutil
import uuid as uuids
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from ..errors import DamagedError, FormatError, NotFoundError, NvmtoolError, RefusedError
from ..media import lock
from ..media.imagefile import ImageFile, close_file, open_file, take_lock
from ..media.mapping import FrameMemory, PageMapping
from ..media.root import Root
from ..media.store import FileStore
from . import layout as lay
from .frames import FrameTable
from .maps import SavedMap, VmMap
from .rebuild import has_running_part, rebuild
from .records import Pool, Records, Vm, pool_of, vm_of

HOST_FILE = "host.nvh"
MEMORY_FILE = "memory"
VOLATILE = "volatile"
_TURN_SECONDS = 10.0
_VM_TURN_SECONDS = 30.0


class Host:
    """An open host. Use it as a context manager. Sizes inside are pages of 4 KiB.

    One opened for reading shows the records as they were then; it can be asked for `quiet`, in which nothing moves.
    """

    def __init__(self, path: Path, fd: int, fields: dict[str, Any], *, writable: bool) -> None:
        """Stand on an open file; `open` is the usual way. Raises DamagedError."""
        self.path = path
        self.fields = fields
        self.writable = writable
        self.nram: int = fields["ram_pages"]
        self.nnvm: int = fields["nvm_pages"]
        self.uuid: bytes = fields["uuid"]
        store = FileStore(path / HOST_FILE, fd, fields["size_blocks"] * lay.PAGE, writable=writable)
        self.file = ImageFile(store, fields["log_start"], fields["log_blocks"], writable=writable, fd=fd)
        journal = self.file.journal
        self.root = Root(journal, lay.HOST_ROOT, lay.HOST_ROOT_PLACE)
        self.pools = Records(journal, lay.POOL_RECORD, lay.POOL_PLACE, start=fields["pool_start"], most=lay.MAX_POOLS, noun="pool")
        self.vms = Records(journal, lay.VM_RECORD, lay.VM_PLACE, start=fields["vm_start"], most=lay.MAX_VMS, noun="VM")
        self.held_turns: set[int] = set()
        self._turns = 0
        self._frame_turns = 0
        self._memory: FrameMemory | None = None
        self._frames: FrameTable | None = None

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = False, lost: bool = False) -> Host:
        """Open a host's folder; a writable one brings in order what a killed process left.

        `lost` opens also one whose machine memory is gone. Raises NotFoundError, FormatError, DamagedError, BusyError, or RefusedError when
        the machine was restarted since, and with it went the memory.
        """
        path = Path(path)
        file = path / HOST_FILE
        if not file.exists():
            raise NotFoundError(f"{path}: no host here; make one with: nvmtool host init {path} --ram SIZE")
        fd = open_file(file, writable=writable)
        with ExitStack() as opened:
            opened.callback(close_file, fd)
            fields = lay.HOST_FORMAT.read(file, fd)
            if os.fstat(fd).st_size < fields["size_blocks"] * lay.PAGE:
                raise DamagedError(f"{file}: truncated: {os.fstat(fd).st_size} bytes, the header says {fields['size_blocks'] * lay.PAGE}")
            take_lock(fd, file, writable=writable, seconds=_TURN_SECONDS)
            host = cls(path, fd, fields, writable=writable)
            if writable:
                host.file.end_turn()
            if writable and not lost:
                host.require_memory()
            opened.pop_all()
        return host

    def __enter__(self) -> Self:
        """Return the host."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it; what was committed is durable already."""
        self.close()

    @property
    def uuid_text(self) -> str:
        """The host's UUID as people write it."""
        return str(uuids.UUID(bytes=self.uuid))

    @property
    def life(self) -> int:
        """Which life of the hypervisor this is; raises DamagedError."""
        return self.root.get("life")

    @property
    def memory(self) -> FrameMemory:
        """The machine frames; raises NotFoundError or DamagedError."""
        if self._memory is None:
            self.require_memory()
            ram = PageMapping(self.path / MEMORY_FILE, lay.MEMORY_START, self.nram, writable=self.writable)
            nvm = PageMapping(self.nvm_path, 0, self.nnvm, writable=self.writable) if self.nnvm else None
            self._memory = FrameMemory(ram, nvm)
        return self._memory

    @property
    def frames(self) -> FrameTable:
        """The frame table of this life; raises NotFoundError while there is none: the next `frames_turn` makes it."""
        if self._frames is not None and self._frames.get("life") != self.life:
            self._frames.close()
            self._frames = None
        if self._frames is None:
            path = self.path / VOLATILE / "frames"
            frames = FrameTable(path, self.nram, self.nnvm, writable=self.writable)
            if frames.get("life") != self.life:
                frames.close()
                raise NotFoundError(f"{path}: is of an earlier life; the next command that changes the host makes a new one")
            self._frames = frames
        return self._frames

    @property
    def nvm_path(self) -> Path:
        """Where the device image is that lends pages; raises NotFoundError when the host has none."""
        if not self.nnvm:
            raise NotFoundError(f"{self.path}: has no device image; nvmtool host init --nvm names one")
        return self.path.resolve() / str(self.fields["nvm_path"])

    def all_pools(self) -> list[Pool]:
        """Return the pools in the order of their numbers; raises DamagedError."""
        pools = [pool_of(record) for record in self.pools]
        known = {pool.number for pool in pools}
        for pool in pools:
            if pool.parent >= 0 and pool.parent not in known:
                raise DamagedError(f"{self.path / HOST_FILE}: pool {pool.name}: its parent {pool.parent} is no pool")
        return pools

    def all_vms(self) -> list[Vm]:
        """Return the VMs in the order of their numbers; raises DamagedError."""
        return [vm_of(self.vms, record) for record in self.vms]

    def vm(self, name: str) -> Vm:
        """Return a VM by its name; raises NotFoundError."""
        return vm_of(self.vms, self.vms.require(name))

    def vm_numbered(self, number: int) -> Vm:
        """Return a VM by its number; raises NotFoundError."""
        if not self.vms.is_used(number):
            raise NotFoundError(f"{self.path}: VM {number} is gone")
        return vm_of(self.vms, self.vms.get(number))

    def pool(self, name: str) -> Pool:
        """Return a pool by its name; raises NotFoundError."""
        return pool_of(self.pools.require(name))

    def pool_numbered(self, number: int) -> Pool:
        """Return a pool by its number; raises DamagedError."""
        if not self.pools.is_used(number):
            raise DamagedError(f"{self.path / HOST_FILE}: pool {number} is named, but there is none")
        return pool_of(self.pools.get(number))

    def put_vm(self, vm: Vm, **values: int) -> None:
        """Change fields of a VM's record, in a turn; one transaction."""
        record = self.vms.get(vm.number)
        with self.file.transaction():
            for field, value in values.items():
                record.put(field, value)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the one process that changes records, with what others committed in view; may be nested. Raises BusyError."""
        if self._turns:
            yield
            return
        with self.file.turn(_TURN_SECONDS):
            self._turns += 1
            try:
                yield
            finally:
                self._turns -= 1

    @contextmanager
    def frames_turn(self) -> Iterator[FrameTable]:
        """Be the one process that changes the frame table; raises BusyError.

        Killed inside, or ended by an exception, the next one rebuilds the table from the maps.
        """
        with self._frames_lock():
            frames = self._sound_frames()
            if frames is not None:
                yield from _at_work(frames)
                return
        # The maps count by the records, which this process may have seen long ago; their turn comes before the table's.
        with self.turn(), self._frames_lock():
            frames = self._sound_frames()
            if frames is None:
                frames = self._mend_frames()
            yield from _at_work(frames)

    @contextmanager
    def _frames_lock(self) -> Iterator[None]:
        lock.lock(self.file.fd, self.path / HOST_FILE, lock.FRAMES, exclusive=True, seconds=_TURN_SECONDS)
        try:
            yield
        finally:
            lock.unlock(self.file.fd, lock.FRAMES)

    def _sound_frames(self) -> FrameTable | None:
        """Return the table, or None for one that must be made anew; the caller holds FRAMES."""
        try:
            frames = self.frames
        except (NotFoundError, DamagedError):
            return None
        return None if frames.get("working") else frames

    def _mend_frames(self) -> FrameTable:
        """Make the table anew; the caller holds FRAMES and has the records' turn."""
        try:
            frames = self.frames
        except (NotFoundError, DamagedError):
            # A restart was killed between its two steps.
            self.begin_life()
            return self.frames
        rebuild(self)
        frames.put("working", 0)
        return frames

    @contextmanager
    def vm_turns(self, numbers: Sequence[int], *, seconds: float = _VM_TURN_SECONDS) -> Iterator[None]:
        """Be the one process that has these VMs; a running one pauses for it. Raises BusyError that names who does not let go."""
        with ExitStack() as turns:
            for number in sorted(set(numbers)):
                turns.enter_context(self._vm_turn(number, seconds))
            if numbers:
                with self.turn():  # see what the one before committed
                    pass
            yield

    @contextmanager
    def guest_place(self, vm: Vm) -> Iterator[None]:
        """Be the one guest at work on a VM; raises BusyError that names another."""
        fd, byte = self.file.fd, lock.guest_of(vm.number)
        lock.lock(fd, self.path / HOST_FILE, byte, exclusive=True, seconds=0)
        try:
            yield
        finally:
            lock.unlock(fd, byte)

    def has_guest(self, vm: Vm) -> bool:
        """Tell whether a guest is at work on a VM, in another process."""
        return lock.is_held(self.file.fd, lock.guest_of(vm.number))

    def is_wanted(self, number: int) -> bool:
        """Tell whether another process waits for the turn of a VM that this one has."""
        return lock.is_held(self.file.fd, lock.wanted_of(number), shared=True)

    @contextmanager
    def pause_turn(self, number: int) -> Iterator[None]:
        """Let others have a VM inside, whose turn this process has before and afterwards; records are seen anew afterwards."""
        fd, file = self.file.fd, self.path / HOST_FILE
        self.held_turns.discard(number)
        lock.unlock(fd, lock.turn_of(number))
        try:
            yield
        finally:
            lock.lock(fd, file, lock.wanted_of(number), exclusive=True, seconds=math.inf)
            lock.lock(fd, file, lock.turn_of(number), exclusive=True, seconds=math.inf)
            lock.unlock(fd, lock.wanted_of(number))
            self.held_turns.add(number)
            with self.turn():
                pass

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep all VMs, the records and the frame table as they are: running VMs pause, nobody has turns; also where opened for reading."""
        fd, file = self.file.fd, self.path / HOST_FILE
        while True:
            with ExitStack() as locks:
                numbers = [vm.number for vm in self.all_vms() if not vm.is_off]
                for number in numbers:
                    # Whoever runs the VM sees that somebody wants it, and lets go.
                    locks.enter_context(_shared(fd, file, lock.wanted_of(number)))
                    locks.enter_context(_shared(fd, file, lock.turn_of(number)))
                locks.enter_context(_shared(fd, file, lock.WRITER))
                locks.enter_context(_shared(fd, file, lock.FRAMES))
                self.file.journal.reload()
                if numbers == [vm.number for vm in self.all_vms() if not vm.is_off]:
                    with self._table_in_order():
                        yield
                    return

    @contextmanager
    def _table_in_order(self) -> Iterator[None]:
        """Where a killed process left the table in disorder, show one made anew from the maps, as the next change will make it."""
        if self._is_in_order():
            yield
            return
        before = self._frames
        with TemporaryDirectory(prefix="nvmtool-") as folder:
            path = Path(folder) / "frames"
            FrameTable.create(path, self.nram, self.nnvm, self.life, sparse=True)
            self._frames = made = FrameTable(path, self.nram, self.nnvm, writable=True)
        try:
            rebuild(self)
            yield
        finally:
            made.close()
            self._frames = before

    def _is_in_order(self) -> bool:
        """Tell whether nobody was killed at work on the table or a map; the caller is quiet. A damaged table is for others to name."""
        try:
            if self.frames.get("working"):
                return False
        except NotFoundError:
            return False
        except DamagedError:
            return True
        for vm in self.all_vms():
            if has_running_part(vm):
                with suppress(NvmtoolError):
                    vm_map = self.map_of(vm)
                    working = vm_map.get("working")
                    vm_map.close()
                    if working:
                        return False
        return True

    def map_of(self, vm: Vm) -> VmMap:
        """Open the map of a running VM; the caller closes it. Raises NotFoundError when its memory went with an earlier life."""
        vm_map = VmMap(self.volatile_map_path(vm.number), vm.memory_pages, writable=self.writable)
        if vm_map.get("life") != self.life:
            vm_map.close()
            raise NotFoundError(f"{self.path}: VM {vm.name}: its map is of an earlier life; what it had in memory is gone")
        return vm_map

    def saved_map_of(self, vm: Vm, *, writable: bool = False) -> SavedMap:
        """Open the saved map of a VM; the caller closes it. Raises NotFoundError, FormatError or DamagedError."""
        return SavedMap.open(
            self.saved_map_path(vm),
            host_uuid=self.uuid,
            vm_uuid=vm.uuid,
            number=vm.number,
            nframes=vm.memory_pages,
            writable=writable,
        )

    def volatile_map_path(self, number: int) -> Path:
        """Return where the map of a running VM is."""
        return self.path / VOLATILE / f"{number}.map"

    def saved_map_path(self, vm: Vm) -> Path:
        """Return where the saved map of a VM is."""
        return self.path / "vms" / f"{vm.name}.map"

    def pool_folder(self, pool: Pool) -> Path:
        """Return a pool's folder, which may be on a file system of its own."""
        return self.path / "pools" / pool.name

    def reservation_path(self, pool: Pool) -> Path:
        """Return where a pool's reservation file is."""
        return self.pool_folder(pool) / "reservation"

    def swap_path(self, vm: Vm) -> Path:
        """Return where a VM's swap file is, if it has one."""
        return self.pool_folder(self.pool_numbered(vm.pool)) / f"{vm.name}.vswp"

    def require_memory(self) -> None:
        """Raise NotFoundError, FormatError, DamagedError, or RefusedError when the memory is not this host's, or of this machine's life."""
        path = self.path / MEMORY_FILE
        try:
            fd = open_file(path, writable=False)
        except NotFoundError:
            raise RefusedError(f"{path}: machine memory is gone; nvmtool host restart --force gives up what was in it") from None
        try:
            fields = lay.MEMORY_FORMAT.read(path, fd)
        finally:
            os.close(fd)
        if fields["host_uuid"] != self.uuid or fields["ram_pages"] != self.nram:
            raise FormatError(f"{path}: is the machine memory of another host")
        if fields["boot"] != lay.boot_id():
            raise RefusedError(
                f"{path}: the machine was restarted since, what was in its memory is gone; nvmtool host restart --force gives it up"
            )

    def begin_life(self) -> None:
        """Throw all volatile state away and make it anew for the present life, with what suspended VMs hold; the caller holds FRAMES.

        Killed in between, the next turn does it.
        """
        if self._frames is not None:
            self._frames.close()
            self._frames = None
        folder = self.path / VOLATILE
        target = folder.resolve()
        for each in target.iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        FrameTable.create(folder / "frames", self.nram, self.nnvm, self.life, sparse=self.is_sparse())
        self._frames = FrameTable(folder / "frames", self.nram, self.nnvm, writable=True)
        self._frames.put("working", 1)
        rebuild(self)
        self._frames.put("working", 0)

    def close(self) -> None:
        """Release everything."""
        if self._memory is not None:
            self._memory.close()
        if self._frames is not None:
            self._frames.close()
        fd = self.file.fd
        for number in sorted(self.held_turns):
            with suppress(OSError):
                lock.unlock(fd, lock.turn_of(number))
        self.file.close()

    def is_sparse(self) -> bool:
        """Tell whether machine memory gets its storage only when it is used."""
        try:
            status = (self.path / MEMORY_FILE).stat()
        except OSError:  # it went with the machine's earlier life
            return False
        return status.st_blocks * 512 < status.st_size // 2

    @contextmanager
    def _vm_turn(self, number: int, seconds: float) -> Iterator[None]:
        if number in self.held_turns:
            yield
            return
        fd, file = self.file.fd, self.path / HOST_FILE
        lock.lock(fd, file, lock.wanted_of(number), exclusive=True, seconds=seconds)
        try:
            lock.lock(fd, file, lock.turn_of(number), exclusive=True, seconds=seconds)
        finally:
            lock.unlock(fd, lock.wanted_of(number))
        self.held_turns.add(number)
        try:
            yield
        finally:
            self.held_turns.discard(number)
            lock.unlock(fd, lock.turn_of(number))


def _at_work(frames: FrameTable) -> Iterator[FrameTable]:
    # An exception leaves the mark, as a kill does: the table is made anew.
    frames.put("working", 1)
    yield frames
    frames.put("working", 0)


@contextmanager
def _shared(fd: int, file: Path, byte: int) -> Iterator[None]:
    lock.lock(fd, file, byte, exclusive=False, seconds=_VM_TURN_SECONDS)
    try:
        yield
    finally:
        lock.unlock(fd, byte)
