"""Linux calls that Python's os module lacks: fallocate modes, a second descriptor past the page cache, sizes of block devices."""

from __future__ import annotations

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]

_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
_NO_SUCH_MODE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV)


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Give a byte range back to the file system; False where it cannot (the range keeps its contents)."""
    if _libc.fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, offset, length) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_SUCH_MODE:
        return False
    raise OSError(code, os.strerror(code))


def open_direct(fd: int) -> int:
    """Open the file of a descriptor once more, for writes past the page cache; -1 where that cannot be."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT)
    except OSError:
        return -1


def file_size(fd: int) -> int:
    """Return the size in bytes of a regular file or a block device."""
    here = os.lseek(fd, 0, os.SEEK_CUR)
    size = os.lseek(fd, 0, os.SEEK_END)
    os.lseek(fd, here, os.SEEK_SET)
    return size
