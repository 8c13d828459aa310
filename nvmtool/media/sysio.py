"""Linux calls that Python's os module lacks: fallocate modes, early write-back, sizes of block devices."""

from __future__ import annotations

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_uint]

_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
_SYNC_FILE_RANGE_WRITE = 2
_NO_SUCH_MODE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV)


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Give a byte range back to the file system; False where it cannot (the range keeps its contents)."""
    if _libc.fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, offset, length) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_SUCH_MODE:
        return False
    raise OSError(code, os.strerror(code))


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Ask for a range to be written soon, so that the fence that follows has little left to wait for.

    A hint: errors are not reported here, the fence reports them.
    """
    _libc.sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE)


def file_size(fd: int) -> int:
    """Return the size in bytes of a regular file or a block device."""
    here = os.lseek(fd, 0, os.SEEK_CUR)
    size = os.lseek(fd, 0, os.SEEK_END)
    os.lseek(fd, here, os.SEEK_SET)
    return size
