"""States that are filled where nobody reads and show in one transaction: a whole region, or the next snapshot of one.

A region on its way is marked as being deleted. A snapshot on its way is a nameless one that is marked so, with the tree of its base to
begin with, copied where it is written to; the running point stays what it is until the last transaction. So whoever reads passes both
over, and the writable open after a kill takes them apart like any other deletion that was cut off.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BusyError, NvmtoolError
from ..media import word
from . import layout as lay
from .records import Record
from .region import Region
from .snapshots import add_snapshot, create_snapshot, run_on_from, take_state
from .sweep import mark_deleted, sweep_region, sweep_snapshot

if TYPE_CHECKING:
    from .device import Device


class NewRegion:
    """A region on its way; its contents are written to `region`."""

    def __init__(self, device: Device, name: str, size_bytes: int, mapping: str) -> None:
        """Make the region, empty; raises as `Device.create_region` does."""
        self.region: Region = device.create_region(name, size_bytes, mapping, hidden=True)

    def complete(self, snapshot: str, created: int) -> None:
        """Let the region show, with a snapshot of what was written and of that time (microseconds)."""
        create_snapshot(self.region, snapshot, created=created, unmark=lay.DELETING)

    def abandon(self) -> None:
        """Delete the region unless it is complete; what cannot be done now, the next writable open does."""
        self.region.forget_writes()
        if self.region.record.get("flags") & lay.DELETING:
            with suppress(NvmtoolError):
                sweep_region(self.region)


class NextSnapshot:
    """A snapshot on its way, and the running point's next state; what differs from its base is written to `region`."""

    def __init__(self, region: Region, base: str) -> None:
        """Begin with the contents of a snapshot; raises NotFoundError or NoSpaceError."""
        device = region.device
        region.flush()
        source = region.snapshot(base)
        with device.transaction():
            self._record = add_snapshot(region, "", take_state(region), source.id, source)
            mark_deleted(region, self._record)
            root = source.get_pointer("root", word.TABLE)
            if root:
                device.blocks.add_refs(np.array([root]), word.TABLE)
        self._running = region
        self.region: Region = Region(device, _FillingRecord(region.record, self._record, device))

    def complete(self, snapshot: str, created: int) -> None:
        """Let the snapshot show, of that time (microseconds), and the running point go on from it; what only that had is freed."""
        region, record = self._running, self._record
        self.region.flush()
        with region.device.transaction():
            record.name = snapshot
            record.put("created", created)
            record.put("parent", record.get("parent") & ~lay.SNAPSHOT_DELETING)
            remains = run_on_from(region, record)
        region.forget_cached()
        with suppress(BusyError):  # it has happened: a reader that keeps the log from going home keeps space from being freed, no more
            sweep_snapshot(region, remains)

    def abandon(self) -> None:
        """Delete the snapshot unless it is complete; what cannot be done now, the next writable open does."""
        self.region.forget_writes()
        if self._record.get("parent") & lay.SNAPSHOT_DELETING:
            with suppress(NvmtoolError):
                sweep_snapshot(self._running, self._record)


class _FillingRecord(Record):
    """A region's record as whoever fills a snapshot sees it: that snapshot's state in place of the running point's."""

    def __init__(self, region: Record, snapshot: Record, device: Device) -> None:
        super().__init__(device.records, region.number, region.base)
        self._region, self._snapshot = region, snapshot
        # No snapshot has this counter: `run_on_from` finds out what it is for the running point.
        self._mapped_purged = 0

    def get(self, field: str) -> int:
        if field == "state":
            return self._snapshot.id
        return self._mapped_purged if field == "mapped_purged" else self._holder(field).get(field)

    def put(self, field: str, payload: int) -> None:
        if field == "mapped_purged":
            self._mapped_purged = payload
        else:
            self._holder(field).put(field, payload)

    def get_pointer(self, field: str, kind: int) -> int:
        return self._holder(field).get_pointer(field, kind)

    def put_pointer(self, field: str, kind: int, block: int) -> None:
        self._holder(field).put_pointer(field, kind, block)

    def _holder(self, field: str) -> Record:
        return self._snapshot if field in ("root", "array", "mapped") else self._region
