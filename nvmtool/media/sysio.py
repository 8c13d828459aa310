"""Linux calls that Python's os module lacks: fallocate modes, extents and their clones, a second descriptor past the page cache."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]

_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_uint]

_SYNC_FILE_RANGE_WRITE = 0x02
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_NO_SUCH_MODE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV)

_FICLONERANGE = 0x4020940D
_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP_HEAD = struct.Struct("=QQLLLL")
_FIEMAP_EXTENT = struct.Struct("=QQQ16xL12x")
_FIEMAP_SYNC = 0x01
_EXTENTS_AT_ONCE = 256
_LAST, _UNWRITTEN, _SHARED = 0x01, 0x800, 0x2000


@dataclass(frozen=True, slots=True)
class Extent:
    """A stretch of a file that has storage; all numbers are bytes. `shared`: another file names the same storage."""

    offset: int
    length: int
    physical: int
    written: bool
    shared: bool


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Give a byte range back to the file system; False where it cannot (the range keeps its contents)."""
    return _fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length)


def allocate(fd: int, offset: int, length: int) -> bool:
    """Give a byte range inside the file storage of its own, which reads as zeros where there was a hole; False where it cannot."""
    return _fallocate(fd, _KEEP_SIZE, offset, length)


def start_writeback(fd: int) -> None:
    """Let the kernel begin to store what was written to a file; makes nothing durable, and may wait for a busy disk."""
    _libc.sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def clone_range(source: int, source_offset: int, target: int, target_offset: int, length: int) -> bool:
    """Let the target name the source's storage too; False where these two files cannot share it.

    Only what was written is cloned on XFS. Offsets and length are multiples of the file system's block.
    """
    try:
        fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, source_offset, length, target_offset))
    except OSError as error:
        if error.errno in (*_NO_SUCH_MODE, errno.EXDEV, errno.EINVAL, errno.ENOTTY):
            return False
        raise
    return True


def can_clone(folder: Path) -> bool:
    """Tell whether files in a folder can share storage, by cloning one written page between two nameless ones; raises OSError."""
    page = 4096
    files: list[int] = []
    try:
        for _ in range(2):
            files.append(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600))
            os.pwrite(files[-1], bytes([len(files)]) * page, 0)
        source, target = files
        return clone_range(source, 0, target, 0, page) and os.pread(target, page, 0) == os.pread(source, page, 0)
    except OSError as error:
        if error.errno in (*_NO_SUCH_MODE, errno.EISDIR):
            return False
        raise
    finally:
        for fd in files:
            os.close(fd)


def iter_extents(fd: int, offset: int, length: int, *, sync: bool = True) -> Iterator[Extent]:
    """Yield the storage of a byte range in order, as FIEMAP tells it, after writing back what is dirty; raises OSError."""
    end = offset + length
    while offset < end:
        request = bytearray(_FIEMAP_HEAD.size + _EXTENTS_AT_ONCE * _FIEMAP_EXTENT.size)
        _FIEMAP_HEAD.pack_into(request, 0, offset, end - offset, _FIEMAP_SYNC if sync else 0, 0, _EXTENTS_AT_ONCE, 0)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
        count = _FIEMAP_HEAD.unpack_from(request)[3]
        for index in range(count):
            logical, physical, size, flags = _FIEMAP_EXTENT.unpack_from(request, _FIEMAP_HEAD.size + index * _FIEMAP_EXTENT.size)
            first, behind = max(logical, offset), min(logical + size, end)
            yield Extent(first, behind - first, physical + first - logical, not flags & _UNWRITTEN, bool(flags & _SHARED))
        if count == 0 or flags & _LAST:
            return
        offset = logical + size


def iter_data(fd: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the stretches of a byte range that may hold anything but zeros; all of it where that is not known."""
    end = offset + length
    while offset < end:
        try:
            first = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data behind here
                yield offset, end - offset
            return
        behind = min(os.lseek(fd, first, os.SEEK_HOLE), end)
        if first < end:
            yield first, behind - first
        offset = max(behind, first)


def open_direct(fd: int, flags: int = os.O_WRONLY) -> int:
    """Open the file of a descriptor once more, past the page cache; -1 where that cannot be."""
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_DIRECT)
    except OSError:
        return -1


def file_size(fd: int) -> int:
    """Return the size in bytes of a regular file or a block device."""
    here = os.lseek(fd, 0, os.SEEK_CUR)
    size = os.lseek(fd, 0, os.SEEK_END)
    os.lseek(fd, here, os.SEEK_SET)
    return size


def _fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    if _libc.fallocate(fd, mode, offset, length) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_SUCH_MODE:
        return False
    raise OSError(code, os.strerror(code))
