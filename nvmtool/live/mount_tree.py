"""The mounted tree: which inode is what, and what it looks like. Knows nothing of FUSE.

    /                            inode 1
    /REGION                      a directory for each region
    /REGION/current              its running point
    /REGION/snapshots            a directory
    /REGION/snapshots/NAME       each snapshot

Numbers are made of the ids of regions and snapshots, so they stay the same from mount to mount; no snapshot gets one that another had.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DamagedError, NotFoundError
from ..region import layout as lay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..region.access import Access
    from ..region.records import Record
    from ..region.region import Region

ROOT = 1
_REGION_SHIFT = 40
_FOLDER, _CURRENT, _SNAPSHOTS, _FIRST_SNAPSHOT = 1, 2, 3, 16
_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Node:
    """A file or directory. `export` is the name of what a file shows."""

    inode: int
    name: str
    mode: int
    size_bytes: int = 0
    used_bytes: int = 0
    changed_ns: int = 0
    export: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def sectors(self) -> int:
        """Allocated storage in units of 512 bytes."""
        return self.used_bytes // _SECTOR


class Tree:
    """What is mounted of a device: all regions, or one."""

    def __init__(self, access: Access, only: str | None, *, writable: bool) -> None:
        """Show what can be reached through `access`; `only` names the one region that is shown."""
        self._device = access.device
        self._only = only
        self._writable = writable
        self.started_ns = time.time_ns()
        # Of each region, when its running point was written to, and the state that it was then.
        self._written: dict[int, tuple[int, int]] = {}
        # Of each region its snapshots by name, and what tells that they are still these.
        self._listed: dict[int, tuple[tuple[int, ...], dict[str, Node]]] = {}
        self.uid, self.gid = os.getuid(), os.getgid()

    def node(self, inode: int) -> Node:
        """Return what has a number; raises NotFoundError."""
        if inode == ROOT:
            return self._folder(ROOT, "")
        region = self._region(inode >> _REGION_SHIFT)
        part = inode & (1 << _REGION_SHIFT) - 1
        if part == _FOLDER:
            return self._folder(inode, region.name)
        if part == _SNAPSHOTS:
            return self._folder(inode, "snapshots")
        if part == _CURRENT:
            return self._current(region)
        for node in self._snapshots(region).values():
            if node.inode == inode:
                return node
        raise NotFoundError(f"no inode {inode}")

    def written(self, region: Region) -> None:
        """Note that a region's running point was written to just now."""
        self._written[region.id] = time.time_ns(), region.record.get("state")

    def child(self, parent: int, name: str) -> Node:
        """Return what a directory has under a name; raises NotFoundError."""
        if parent == ROOT:
            return self._folder(self._number(self._named(name), _FOLDER), name)
        region, part = self._region(parent >> _REGION_SHIFT), parent & (1 << _REGION_SHIFT) - 1
        if part == _FOLDER:
            if name == "current":
                return self._current(region)
            if name == "snapshots":
                return self._folder(self._number(region, _SNAPSHOTS), name)
        elif part == _SNAPSHOTS:
            # One that is not listed is not there, or its record says what is wrong with it.
            return self._snapshots(region).get(name) or self._snapshot(region, region.snapshot(name))
        raise NotFoundError(f"nothing is called {name!r} there")

    def children(self, parent: int) -> Iterator[Node]:
        """Yield what a directory has; raises NotFoundError."""
        if parent == ROOT:
            for region in self._regions():
                yield self._folder(self._number(region, _FOLDER), region.name)
            return
        region, part = self._region(parent >> _REGION_SHIFT), parent & (1 << _REGION_SHIFT) - 1
        if part == _FOLDER:
            yield self._current(region)
            yield self._folder(self._number(region, _SNAPSHOTS), "snapshots")
        elif part == _SNAPSHOTS:
            yield from self._snapshots(region).values()
        else:
            raise NotFoundError(f"inode {parent} is no directory")

    def parent(self, inode: int) -> int:
        """Return the directory above one."""
        if inode == ROOT or inode & (1 << _REGION_SHIFT) - 1 == _FOLDER:
            return ROOT
        return self._number(self._region(inode >> _REGION_SHIFT), _FOLDER)

    def _regions(self) -> list[Region]:
        return [region for region in self._device.regions() if self._only in (None, region.name)]

    def _region(self, number: int) -> Region:
        for region in self._regions():
            if region.id == number:
                return region
        raise NotFoundError(f"no region {number}")

    def _named(self, name: str) -> Region:
        if self._only not in (None, name):
            raise NotFoundError(f"no region {name!r} here")
        return self._device.region(name)

    @staticmethod
    def _number(region: Region, part: int) -> int:
        return region.id << _REGION_SHIFT | part

    def _folder(self, inode: int, name: str) -> Node:
        return Node(inode, name, stat.S_IFDIR | 0o500, changed_ns=self.started_ns)

    def _current(self, region: Region) -> Node:
        mode = stat.S_IFREG | (0o600 if self._writable else 0o400)
        used = region.record.get("mapped") * lay.BLOCK_SIZE
        written_ns, state = self._written.get(region.id, (self.started_ns, region.record.get("state")))
        if state != region.record.get("state"):  # taken back to a snapshot, or one was taken
            self.written(region)
            written_ns = self._written[region.id][0]
        return Node(self._number(region, _CURRENT), "current", mode, region.size_bytes, used, written_ns, region.name)

    def _snapshots(self, region: Region) -> dict[str, Node]:
        """Return a region's readable snapshots by name; no more is looked at than whether one came or went since the last time."""
        record = region.record
        version = record.get("next_state"), record.get("nsnapshots"), record.get("flags")
        known, found = self._listed.get(region.id, ((), {}))
        if known != version:
            found = {}
            for snapshot in region.snapshots:
                with suppress(DamagedError):
                    if not snapshot.get("parent") & lay.SNAPSHOT_DELETING:
                        found[snapshot.name] = self._snapshot(region, snapshot)
            if not record.get("flags") & lay.SWEEPING:
                self._listed[region.id] = version, found
        return found

    def _snapshot(self, region: Region, record: Record) -> Node:
        return Node(
            self._number(region, _FIRST_SNAPSHOT + record.id),
            record.name,
            stat.S_IFREG | 0o400,
            region.size_bytes,
            record.get("mapped") * lay.BLOCK_SIZE,
            record.get("created") * 1000,
            f"{region.name}@{record.name}",
        )
