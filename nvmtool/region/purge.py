"""Purging: move non-active blocks from NVM to the mass store, in batches that each leave a whole image.

The two modes differ in what they walk and which pointers they change (`purge_virtblock`, T1, and `purge_pointers`, T2); budgets, copying
and the
report are one here. A dry run is the same code on a device opened for reading: every word changes in the private view, nothing is copied
or stored.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import MassFullError, NoSpaceError, UsageError
from . import layout as lay
from .snapshots import require_snapshots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .device import Device
    from .region import Region

MODES = ("virtblock", "pointer-elimination")


@dataclass(frozen=True)
class PurgeResult:
    """What a purge did, or would do; sizes in bytes."""

    mode: str
    blocks_purged: int
    bytes_purged: int
    pointers_updated: int
    blocks_remaining: int
    seconds: float
    free_bytes_before: int
    free_bytes_after: int


@dataclass
class Job:
    """A running purge or recall: its budget, and what it did so far."""

    max_blocks: int | None = None
    deadline: float | None = None
    # Stop when this many blocks of NVM are free.
    free_blocks_wanted: int | None = None
    progress: Callable[[int, int, str], None] | None = None
    total: int = 0
    blocks: int = 0
    pointers: int = 0
    batch_blocks: int = field(default=16384)

    def room(self, device: Device) -> int:
        """Return how many more blocks the budget allows in the next batch; 0 means stop."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return 0
        room = min(self.batch_blocks, device.step_blocks, device.journal.max_words // 8)
        if self.max_blocks is not None:
            room = min(room, self.max_blocks - self.blocks)
        if self.free_blocks_wanted is not None:
            room = min(room, self.free_blocks_wanted - device.blocks.free_blocks)
        return max(room, 0)

    def shrink(self, blocks: int) -> bool:
        """Try half as many blocks as did not fit the mass store's file system; False when it was one already."""
        self.batch_blocks = blocks // 2
        return self.batch_blocks > 0

    def add(self, blocks: int, pointers: int) -> None:
        """Count a committed batch."""
        self.blocks += blocks
        self.pointers += pointers
        if self.progress is not None:
            self.progress(self.blocks * lay.BLOCK_SIZE, max(self.total, self.blocks) * lay.BLOCK_SIZE, "bytes")


def purge(
    device: Device,
    *,
    mode: str,
    region: str | None = None,
    snapshots: Sequence[str] = (),
    max_bytes: int | None = None,
    max_seconds: float | None = None,
    free_target: float | None = None,
    dry_run: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> PurgeResult:
    """Purge one region, or all of the device; `snapshots` limits it to theirs (T1: the arrays they own, T2: the tables they name).

    `free_target` (0 to 1) stops as soon as that share of the data area is free. Each batch is durable on its own: killed
    anywhere, nothing is lost, and the same call goes on. A dry run needs a device opened for reading. Raises UsageError
    for a mapping that does not fit the mode, NoSpaceError when the mass store's file system is full, NotFoundError,
    StorageError or DamagedError.
    """
    device.require(dry_run=dry_run)
    regions = _regions(device, mode, region, snapshots)
    started = time.monotonic()
    for each in regions:
        each.flush()
    free_before = device.blocks.free_blocks
    job = Job(
        max_blocks=None if max_bytes is None else max_bytes // lay.BLOCK_SIZE,
        deadline=None if max_seconds is None else started + max_seconds,
        free_blocks_wanted=None if free_target is None else int(-(-free_target * device.blocks.nblocks // 1)),
        progress=progress,
        total=sum(non_active_blocks(each) for each in regions),
    )
    for each in regions:
        records = require_snapshots(each, tuple(snapshots))
        if job.total:
            device.slots.pairing.begin()
        try:
            with device.transaction():
                if mode == "virtblock":
                    from .purge_virtblock import purge_virtblock

                    purge_virtblock(each, records, job)
                else:
                    from .purge_pointers import purge_pointers

                    purge_pointers(each, records, job)
        except MassFullError as error:
            raise NoSpaceError(f"{error}; {job.blocks} blocks were purged before that") from error
    return PurgeResult(
        mode=mode,
        blocks_purged=job.blocks,
        bytes_purged=job.blocks * lay.BLOCK_SIZE,
        pointers_updated=job.pointers,
        blocks_remaining=sum(non_active_blocks(each) for each in regions),
        seconds=round(time.monotonic() - started, 6),
        free_bytes_before=free_before * lay.BLOCK_SIZE,
        free_bytes_after=device.blocks.free_blocks * lay.BLOCK_SIZE,
    )


def non_active_blocks(region: Region) -> int:
    """Return how many blocks of a region in NVM the running point does not name."""
    record = region.record
    return record.get("nvm_blocks") - (record.get("mapped") - record.get("mapped_purged"))


def _regions(device: Device, mode: str, region: str | None, snapshots: Sequence[str]) -> list[Region]:
    if mode not in MODES:
        raise UsageError(f"mode {mode!r}: must be one of {', '.join(MODES)}")
    regions = [device.region(region)] if region is not None or snapshots else device.regions()
    for each in regions:
        flags = each.record.get("flags")
        if mode == "virtblock" and (flags & lay.CONVERTING or not flags & lay.VIRTBLOCK_MAPPING):
            state = "is being converted" if flags & lay.CONVERTING else "has direct mapping"
            raise UsageError(
                f"{device.path}: region {each.name!r} {state}; use --mode pointer-elimination, or first: "
                f"nvmtool region convert {device.path} {each.name} --mapping virtblock"
            )
    return regions
