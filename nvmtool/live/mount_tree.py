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
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import NotFoundError
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
        self.started_ns = self.written_ns = time.time_ns()
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
        for record in region.snapshots:
            if record.id == part - _FIRST_SNAPSHOT and not record.get("parent") & lay.SNAPSHOT_DELETING:
                return self._snapshot(region, record)
        raise NotFoundError(f"no inode {inode}")

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
            return self._snapshot(region, region.snapshot(name))
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
            for record in region.snapshots:
                if not record.get("parent") & lay.SNAPSHOT_DELETING:
                    yield self._snapshot(region, record)
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
        return Node(self._number(region, _CURRENT), "current", mode, region.size_bytes, used, self.written_ns, region.name)

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
