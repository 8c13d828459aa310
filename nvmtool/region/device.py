"""A device image: open it, lock it, and reach its regions."""

from __future__ import annotations

import os
import stat
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ..errors import BusyError, DamagedError, ExistsError, NotFoundError, NvmtoolError, RefusedError, UsageError
from ..media import sysio, word
from ..media.imagefile import ImageFile, close_file, open_file, take_lock
from ..media.journal import runs
from ..media.record import check_name
from ..media.root import Root
from ..media.store import open_store, translated
from . import layout as lay
from .blocks import Blocks
from .header import HEADER_FORMAT, Header
from .mass import MassStore
from .records import RecordTable
from .region import Region
from .slots import Slots

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray

    from ..media.store import Store
    from .records import Record
    from .sweep import Change, Progress

MAPPINGS = ("virtblock", "direct")


class Device:
    """An open device image. Use it as a context manager; leaving it flushes what was written, unless an exception passes.

    A writable device is this process's alone among writers; readers see the state of the moment in which they opened.
    """

    def __init__(self, store: Store, header: Header, mass: MassStore | None, *, writable: bool, fd: int = -1) -> None:
        """Stand on an open store; `open` is the usual way."""
        self.path = store.path
        self.header = header
        self.store = store
        self.writable = writable
        self._file = ImageFile(store, header.log_start, header.log_blocks, writable=writable, fd=fd)
        self.transaction = self._file.transaction
        self.no_readers = self._file.no_readers
        self._regions: dict[int, Region] = {}
        self._slots_left_over = False
        # Long jobs change so many blocks in one commit at most, and call `pause` between two: whoever serves others meanwhile sets these.
        self.step_blocks = 16384
        self.pause: Callable[[], bool] = _nobody_waits
        self.aside: Callable[[], AbstractContextManager[None]] = nullcontext
        # What a writable open completed because an earlier process was cut off in it: (region, snapshot or None).
        self.resumed: set[tuple[str, str | None]] = set()
        self.journal = self._file.journal
        self.blocks = Blocks(self.journal, header)
        self.root = Root(self.journal, lay.ROOT, lay.ROOT_PLACE)
        self.slots = Slots(self.journal, self.blocks, self.root)
        self.slots.attach(mass)
        index = lay.field_index(lay.ROOT, "region_table")
        self._table = RecordTable(
            self.journal,
            self.blocks,
            lay.REGION_RECORD,
            label="region table entry",
            region=0,
            structures=(lay.REGIONS_PLACE, lay.REGION_LEAF_PLACE),
            top=(lay.ROOT_BLOCK * lay.WORDS_PER_BLOCK + index, word.place(lay.ROOT_PLACE, 0, index)),
        )
        self.journal.on_rollback.append(self._forget_cached)

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = False, mass: str | Path | None = None, any_pair: bool = False) -> Device:
        """Open an image with its mass store, and finish what a killed process left when it is writable.

        `any_pair` opens for writing also where another copy of the image changed the store. Raises FormatError, DamagedError,
        BusyError, NotFoundError, RefusedError or StorageError.
        """
        path = Path(path)
        fd = open_file(path, writable=writable)
        mass_store = None
        try:
            header = read_header(path, fd)
            take_lock(fd, path, writable=writable)
            store = open_store(path, fd, header.size_blocks * lay.BLOCK_SIZE, writable=writable)
            mass_path = Path(mass) if mass is not None else mass_location(path, header)
            device = cls(store, header, None, writable=writable, fd=fd)
            mass_store = MassStore.open(
                mass_path,
                expected_uuid=header.mass_uuid,
                device_uuid=header.uuid,
                min_slots=device.slots.end(),
                writable=writable,
            )
            device.slots.attach(mass_store)
            if writable:
                mass_store.lock()
                if not any_pair:
                    device.slots.pairing.require_sound()
                device.resume()
        except BaseException:  # an interrupt too must not keep the locks
            if mass_store is not None:
                mass_store.close()
            close_file(fd)
            raise
        return device

    def __enter__(self) -> Self:
        """Return the device."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Flush and close; after an exception close without flushing. Raises BusyError when a writer did not wait for this reader."""
        outdated = False
        if error is None or isinstance(error, NvmtoolError):
            with suppress(DamagedError):
                outdated = self._file.is_outdated
        self.close(flush=error is None)
        if outdated:
            raise BusyError(f"{self.path}: changed while it was being read, for its server could not wait any longer; try again") from error

    @property
    def mass(self) -> MassStore | None:
        """The open mass store."""
        return self.slots.mass

    @property
    def records(self) -> RecordTable:
        """The region table."""
        return self._table

    @property
    def lent_blocks(self) -> int:
        """Number of blocks lent as volatile memory; raises DamagedError."""
        return self.root.get("lent_blocks")

    @property
    def lender_tag(self) -> int:
        """Which host has lent blocks, 0 while there are none; raises DamagedError."""
        return self.root.find("lender_tag") or 0

    def regions(self) -> list[Region]:
        """Return the regions in the order of their records."""
        return [self.any_region(record) for record in self._table if not record.get("flags") & lay.DELETING]

    def region(self, name: str | None = None) -> Region:
        """Return a region by its name, or the only one there is; raises NotFoundError, or UsageError when there are several."""
        if name is None:
            regions = self.regions()
            if len(regions) != 1:
                names = ", ".join(region.name for region in regions)
                if not regions:
                    raise NotFoundError(
                        f"{self.path}: has no region yet; create one with: nvmtool region create {self.path} NAME --size SIZE"
                    )
                raise UsageError(f"{self.path}: has several regions, name one of them with --region: {names}")
            return regions[0]
        record = self._table.find(name)
        if record is None or record.get("flags") & lay.DELETING:
            raise NotFoundError(f"{self.path}: no region {name!r}")
        return self.any_region(record)

    def create_region(self, name: str, size_bytes: int, mapping: str = "virtblock", *, hidden: bool = False) -> Region:
        """Create an empty region; durable on return. A hidden one counts as being deleted until that mark is taken off.

        Raises UsageError for a size or name that cannot be, ExistsError, or NoSpaceError.
        """
        self.require(dry_run=False)
        check_name(name)
        if mapping not in MAPPINGS:
            raise UsageError(f"mapping {mapping!r}: must be one of {', '.join(MAPPINGS)}")
        most = lay.MAX_REGION_BLOCKS * lay.BLOCK_SIZE
        if not 0 < size_bytes <= most or size_bytes % lay.BLOCK_SIZE:
            raise UsageError(f"region size {size_bytes}: must be a multiple of {lay.BLOCK_SIZE} from {lay.BLOCK_SIZE} to {most}")
        if self._table.find(name) is not None:
            raise ExistsError(f"{self.path}: region {name!r} exists already")
        with self.transaction():
            record = self._table.create()
            values = dict.fromkeys(self._table.fields, 0)
            values.update(size_blocks=size_bytes // lay.BLOCK_SIZE, created=time.time_ns() // 1000, state=1, next_state=2)
            values["flags"] = (lay.VIRTBLOCK_MAPPING if mapping == "virtblock" else 0) | (lay.DELETING if hidden else 0)
            for field in values.keys() - {"id", "name", "spare", "root", "array", "snapshot_table"}:
                record.put(field, values[field])
            record.id = record.number + 1
            record.name = name
            self.root.put("nregions", self.root.get("nregions") + 1)
        return self.any_region(record)

    def delete_region(self, name: str, progress: Progress = None, *, dry_run: bool = False) -> Change:
        """Delete a region with all its snapshots; see `nvmtool.region.sweep.delete_region`."""
        from .sweep import delete_region

        return delete_region(self, name, progress=progress, dry_run=dry_run)

    def resume(self) -> None:
        """Finish deletions that a killed process began; what it left in free slots of the mass store goes when this one closes."""
        from .sweep import finish_deletions

        self._slots_left_over = not self.slots.pairing.is_settled
        finish_deletions(self)

    def evict_readers_after(self, seconds: float) -> None:
        """Never wait for readers; go on without them when they have kept the log from going home for so long."""
        self._file.evict_readers_after(seconds)

    def require(self, *, dry_run: bool) -> None:
        """Raise RefusedError unless the device was opened for this: a dry run rehearses on one opened for reading."""
        if self.writable == dry_run:
            raise RefusedError(f"{self.path}: opened for {'writing, a dry run needs reading' if dry_run else 'reading'}")

    def require_other_file(self, path: str | Path) -> None:
        """Raise RefusedError when a path is the image itself or its mass store."""
        for own in (self.path, self.mass.path if self.mass is not None else self.path):
            if _is_same_file(own, Path(path)):
                raise RefusedError(f"{path}: is {'the image itself' if own == self.path else 'the mass store of the image'}")

    def require_current(self) -> None:
        """Raise BusyError when a writer did not wait for this reader: what it read may be a mixture of states."""
        if not self.writable and self._file.is_outdated:
            raise BusyError(f"{self.path}: changed while it was being read, for its server could not wait any longer; try again")

    def give_storage(self, blocks: NDArray[np.int64]) -> None:
        """Allocate the storage of blocks where a sparse image has none yet, so that a store through a mapping cannot fail.

        Raises NoSpaceError.
        """
        if self._file.fd >= 0:
            with translated(self.path):
                for first, count in runs(blocks):
                    sysio.allocate(self._file.fd, first * lay.BLOCK_SIZE, count * lay.BLOCK_SIZE)

    def flush(self) -> None:
        """Make all writes to all regions durable."""
        for region in self._regions.values():
            region.flush()

    def close(self, *, flush: bool = True) -> None:
        """Close the image; its log is left empty unless readers are still there."""
        try:
            if self.writable and flush:
                self.flush()
                with suppress(BusyError):  # the log keeps what cannot go home while somebody reads
                    self._settle()
        finally:
            if self.mass is not None:
                self.mass.close()
                self.slots.attach(None)
            self._file.close()

    def _settle(self) -> None:
        self.journal.checkpoint(patient=False)
        if not self.slots.pairing.is_settled:
            if self._slots_left_over:
                with self.no_readers(patient=False):  # a reader may be reading slots that are free by now
                    self.slots.give_back_free()
            self.slots.pairing.settle()
            self.journal.checkpoint(patient=False)

    def any_region(self, record: Record) -> Region:
        """Return the region of a record, one that is being deleted too."""
        found = self._regions.get(record.number)
        if found is None:
            found = self._regions[record.number] = Region(self, record)
        return found

    def forget_region(self, number: int) -> None:
        """Drop the region object of a record that is being deleted."""
        self._regions.pop(number, None)

    def _forget_cached(self) -> None:
        for region in self._regions.values():
            region.forget_cached()


def _nobody_waits() -> bool:
    """Let nobody change anything; the journal is idle whenever a job calls this, and True says that somebody has changed it."""
    return False


def read_header(path: Path, fd: int) -> Header:
    """Return the header in force; raises FormatError or DamagedError, also when the file is shorter than it says."""
    header = Header(**HEADER_FORMAT.read(path, fd))
    size = os.lseek(fd, 0, os.SEEK_END)
    if size < header.size_blocks * lay.BLOCK_SIZE:
        raise DamagedError(f"{path}: truncated: {size} bytes, the header says {header.size_blocks * lay.BLOCK_SIZE}")
    return header


def mass_location(path: Path, header: Header) -> Path:
    """Return where the header says that the mass store is."""
    return path.resolve().parent / header.mass_path


def _is_same_file(first: Path, second: Path) -> bool:
    try:
        one, other = first.stat(), second.stat()
    except OSError:
        return False
    both_devices = stat.S_ISBLK(one.st_mode) and stat.S_ISBLK(other.st_mode)
    return os.path.samestat(one, other) or (both_devices and one.st_rdev == other.st_rdev)
