"""DAX: is MAP_SYNC to be had on this file, and where is libpmem (Debian: libpmem1)?"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache

from ..errors import StorageError

_MAP_SHARED_VALIDATE_SYNC = 0x03 | 0x80000


def can_map_sync(fd: int) -> bool:
    """Tell whether stores through a mapping of this file reach the medium without msync (MAP_SYNC)."""
    try:
        mmap.mmap(fd, mmap.PAGESIZE, flags=_MAP_SHARED_VALIDATE_SYNC, prot=mmap.PROT_READ).close()
    except OSError:  # every file that is not on a DAX device says so here
        return False
    return True


@cache
def find_libpmem() -> ctypes.CDLL | None:
    """Return the loaded libpmem, or None where it is not installed."""
    try:
        library = ctypes.CDLL("libpmem.so.1")
    except OSError:
        return None
    library.pmem_flush.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.pmem_flush.restype = None
    library.pmem_drain.argtypes = []
    library.pmem_drain.restype = None
    return library


def load_libpmem() -> ctypes.CDLL:
    """Return libpmem; raises StorageError where it is not installed."""
    library = find_libpmem()
    if library is None:
        raise StorageError("libpmem.so.1 is not installed (Debian: libpmem1)")
    return library
