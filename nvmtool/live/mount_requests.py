"""Requests of the kernel's FUSE, answered from the mounted tree and the access layer; needs pyfuse3.

A running point is opened past the page cache, so that what one process writes, or a revert changes, another one reads at once; a loop
device on it has a cache of its own. Names are looked up anew each time: a snapshot is there as soon as it is taken.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NoReturn, TypeVar

import pyfuse3

from ..errors import BusyError, NoSpaceError, NotFoundError, NvmtoolError, RefusedError, UsageError
from ..region import layout as lay
from ..region.access import Export
from .mount_tasks import Tasks
from .mount_tree import Node, Tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from .serving import Serving

T = TypeVar("T")

_RETRY_SECONDS = 0.02
# A file's size never changes, and its times matter to nobody in a hurry.
_ATTRIBUTE_SECONDS = 1.0
_PREFERRED_BYTES = 1 << 20
_MOST_NAME_BYTES = 255


class Mounted(pyfuse3.Operations):
    """The front end of a mounted device. Each request runs in the one thread that has the device, without a pause in between."""

    def __init__(self, serving: Serving, only: str | None) -> None:
        """Show what a serving process serves; `only` names the one region that is shown."""
        super().__init__()
        self._serving = serving
        self.tree = Tree(serving.access, only, writable=serving.device.writable)
        self.tasks = Tasks(serving.loop)
        self.served = 0
        self._held = 0
        self._next_handle = 1
        self._files: dict[int, Export] = {}
        self._listings: dict[int, list[Node]] = {}

    # --- as a front end

    @property
    def has_held(self) -> bool:
        """Whether writes wait for space, or for a reader."""
        return self._held > 0

    def users_of(self, region: str, snapshot: str | None = None) -> int:
        """Return how many open files show a region's running point or a snapshot; with "*" any state of the region."""
        return sum(each.region.name == region and snapshot in ("*", each.snapshot) for each in self._files.values())

    def close(self) -> None:
        """Forget all open files."""
        self.tasks.close()
        self._files.clear()
        self._listings.clear()

    # --- names and attributes

    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Find a name in a directory."""
        self.served += 1
        return self._attributes(self._found(lambda: self._child(parent_inode, os.fsdecode(name))))

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext | None = None) -> pyfuse3.EntryAttributes:
        """Say what a file looks like."""
        self.served += 1
        return self._attributes(self._found(lambda: self.tree.node(inode)))

    async def setattr(
        self, inode: int, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Refuse all changes but those that change nothing, and times, which nobody keeps: a region has the size that it has."""
        node = self._found(lambda: self.tree.node(inode))
        if fields.update_mode or fields.update_uid or fields.update_gid or (fields.update_size and attr.st_size != node.size_bytes):
            raise pyfuse3.FUSEError(errno.EPERM)
        return self._attributes(node)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Say how full the device's data area is."""
        blocks = self._serving.device.blocks
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = lay.BLOCK_SIZE
        data.f_blocks = blocks.nblocks
        data.f_bfree = data.f_bavail = blocks.free_blocks
        data.f_files = data.f_ffree = data.f_favail = 0
        data.f_namemax = _MOST_NAME_BYTES
        return data

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Take down what a directory has now."""
        handle = self._handle()
        self._listings[handle] = self._found(lambda: list(self.tree.children(inode)))
        return handle

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory from some entry on."""
        for position, node in enumerate(self._listings[fh][start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, os.fsencode(node.name), self._attributes(node), position):
                break

    async def releasedir(self, fh: int) -> None:
        """End a listing."""
        self._listings.pop(fh, None)

    # --- files

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a running point or a snapshot."""
        node = self._found(lambda: self.tree.node(inode))
        if node.export is None:
            raise pyfuse3.FUSEError(errno.EISDIR)
        export = self._found(lambda: self._serving.access.export(node.export or ""))
        if export.read_only and (flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC):
            raise pyfuse3.FUSEError(errno.EROFS)
        handle = self._handle()
        self._files[handle] = export
        return pyfuse3.FileInfo(fh=handle, direct_io=export.snapshot is None, keep_cache=False)

    async def release(self, fh: int) -> None:
        """Close a file; what was written to it is flushed a moment later, as by fsync."""
        self._files.pop(fh, None)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read bytes; past the end there are none."""
        self.served += 1
        export = self._files[fh]
        size = min(size, export.size_bytes - off)
        if size <= 0:
            return b""
        (answer,) = export.read([(off, size)])
        if isinstance(answer, NvmtoolError):
            raise self._failure(answer, f"{export.name}: read of {size} bytes at {off}")
        return bytes(size) if answer is None else b"".join(answer)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write bytes; durable after fsync."""
        self.served += 1
        export = self._files[fh]
        if off + len(buf) > export.size_bytes:
            # As at the end of a block device: what fits is written, and then there is no space.
            buf = buf[: max(0, export.size_bytes - off)]
            if not buf:
                raise pyfuse3.FUSEError(errno.ENOSPC)
        while True:
            (error,) = export.write([(off, memoryview(buf))])
            if error is None:
                self.tree.written(export.region)
                return len(buf)
            if not (isinstance(error, BusyError) or (isinstance(error, NoSpaceError) and self._serving.waits_for_space())):
                raise self._failure(error, f"{export.name}: write of {len(buf)} bytes at {off}")
            await self._wait()

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Make durable what was written, to any file."""
        self.served += 1
        while True:
            try:
                return self._serving.access.flush()
            except BusyError:  # a reader keeps the log as it is
                await self._wait()
            except NvmtoolError as error:
                raise self._failure(error, "flush") from None

    async def flush(self, fh: int) -> None:
        """Nothing is to be done when a descriptor is closed."""

    # --- helpers

    async def _wait(self) -> None:
        self._held += 1
        try:
            await self.tasks.sleep(_RETRY_SECONDS)
        finally:
            self._held -= 1

    def _handle(self) -> int:
        self._next_handle += 1
        return self._next_handle

    def _child(self, parent: int, name: str) -> Node:
        if name == ".":
            return self.tree.node(parent)
        return self.tree.node(self.tree.parent(parent)) if name == ".." else self.tree.child(parent, name)

    def _found(self, look: Callable[[], T]) -> T:
        try:
            return look()
        except NvmtoolError as error:
            raise self._failure(error, "looking up") from None

    def _failure(self, error: NvmtoolError, what: str) -> pyfuse3.FUSEError:
        """Return the error for the kernel; what is no fault of the client's is reported."""
        code = _errno_of(error)
        if code == errno.EIO:
            self._serving.report(f"{what}: {error}")
        return pyfuse3.FUSEError(code)

    def _attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        found = pyfuse3.EntryAttributes()
        found.st_ino = node.inode
        found.generation = 0
        found.entry_timeout = 0
        found.attr_timeout = _ATTRIBUTE_SECONDS
        found.st_mode = node.mode
        found.st_nlink = 2 if node.is_folder else 1
        found.st_uid, found.st_gid = self.tree.uid, self.tree.gid
        found.st_size, found.st_blocks, found.st_blksize = node.size_bytes, node.sectors, _PREFERRED_BYTES
        found.st_atime_ns = found.st_mtime_ns = found.st_ctime_ns = node.changed_ns
        return found


async def _refuse(*_: object) -> NoReturn:
    raise pyfuse3.FUSEError(errno.EPERM)


# What regions and snapshots there are, the commands for them say; left out, these would be "not implemented".
for _name in ("create", "mknod", "mkdir", "symlink", "link", "rename", "unlink", "rmdir"):
    setattr(Mounted, _name, _refuse)


def _errno_of(error: NvmtoolError) -> int:
    match error:
        case NoSpaceError():
            return errno.ENOSPC
        case NotFoundError():
            return errno.ENOENT
        case RefusedError():
            return errno.EROFS
        case UsageError():
            return errno.EINVAL
    return errno.EIO
