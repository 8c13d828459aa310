"""Open-file-description locks on one byte each: they die with the process, and name their holder.

Bytes far past any file's end serve our files (DESIGN 3.8):

- `WRITER`: held exclusively by the one process that changes the image.
- `CHECKPOINT`: held shared by every reader for as long as it reads, and exclusively by the writer for the moments in which it
  moves logged changes home. Since blocks are reused only after that, a reader sees one state of the image, however long it takes.
- `RESIZER`: held exclusively by the one process that changes a reservation's size, which takes WRITER for moments only.
- `HELPER`: held exclusively by the one process that copies pages for the writer of a swap file, until it copies no more. The next writer
  waits for it: slots that were held for those copies are free by the words, and a copy that comes late would hit another page.
- `FRAMES`: held exclusively by the one process that changes a host's frame table, for a batch.
- `SCHEDULER`: held exclusively by the one memory scheduler that governs a host.
- `turn_of(n)`: held exclusively by the one process that has VM `n` of a host: a running VM gives it away between two accesses to whoever
  holds `wanted_of(n)`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from contextlib import suppress
from pathlib import Path

from ..errors import BusyError

WRITER = (1 << 62) + 0
CHECKPOINT = (1 << 62) + 1
RESIZER = (1 << 62) + 2
HELPER = (1 << 62) + 3
FRAMES = (1 << 62) + 4
SCHEDULER = (1 << 62) + 5
_VMS = (1 << 62) + (1 << 20)

_OFD_GETLK = 36
_OFD_SETLK = 37
_POLL_SECONDS = 0.005


def turn_of(number: int) -> int:
    """Return the byte of a VM's turn."""
    return _VMS + 4 * number


def wanted_of(number: int) -> int:
    """Return the byte that says who wants a VM's turn next."""
    return _VMS + 4 * number + 1


def guest_of(number: int) -> int:
    """Return the byte that the one guest at work on a VM holds all the time."""
    return _VMS + 4 * number + 2


def _flock(kind: int, byte: int) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)


def try_lock(fd: int, byte: int, *, exclusive: bool) -> bool:
    """Take the lock at once or return False; raises OSError where the file system has no locks."""
    try:
        fcntl.fcntl(fd, _OFD_SETLK, _flock(fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, byte))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def lock(fd: int, path: Path, byte: int, *, exclusive: bool, seconds: float) -> None:
    """Take the lock, waiting at most some seconds; raises BusyError that names the holder."""
    deadline = time.monotonic() + seconds
    while not try_lock(fd, byte, exclusive=exclusive):
        if time.monotonic() >= deadline:
            raise BusyError(f"{path}: in use by {holder(path, byte)}")
        time.sleep(_POLL_SECONDS)


def unlock(fd: int, byte: int) -> None:
    """Give the lock back; harmless when it is not held."""
    fcntl.fcntl(fd, _OFD_SETLK, _flock(fcntl.F_UNLCK, byte))


def is_held(fd: int, byte: int, *, shared: bool = False) -> bool:
    """Tell whether another open file holds the lock exclusively, or also shared; takes nothing."""
    answer = fcntl.fcntl(fd, _OFD_GETLK, _flock(fcntl.F_WRLCK if shared else fcntl.F_RDLCK, byte))
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def holder(path: Path, byte: int) -> str:
    """Describe the processes that hold the lock on the file, from /proc; needs the right to look at them."""
    wanted = os.stat(path)
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid() and _holds(process, wanted, byte):
            with suppress(OSError):  # the process ended meanwhile
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found.append(f"process {process.name} ({command[:80]})")
    return ", ".join(found) or "another process"


def _holds(process: Path, wanted: os.stat_result, byte: int) -> bool:
    try:
        infos = list((process / "fdinfo").iterdir())
    except OSError:  # the process ended meanwhile, or is not ours to look at
        return False
    for info in infos:
        with suppress(OSError):  # closed meanwhile
            # Locks first: the kernel knows them by itself, while a file's status is asked of its file system, of which any may hang.
            if any("OFDLCK" in line and f" {byte} {byte}" in line for line in info.read_text().splitlines()):
                status = (process / "fd" / info.name).stat()
                if (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    return False
