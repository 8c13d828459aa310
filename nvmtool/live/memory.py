"""A QEMU process's guest memory, seen from the host: where it is, what of it is resident or swapped out, and paging it out.

Evidence of use comes from two places. `smaps` counts the pages that were referenced since the marks were cleared at the look before: so
much of the memory is a working set, wherever it is. `pagemap` tells which pages are in memory: what comes back after it was paged out is in
use, and its 2 MiB are left alone for a while. (Kernels with idle page tracking could tell each page; Debian's and this one's cannot.)
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NotFoundError, RefusedError, StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

PAGE = 4096
CHUNK_BYTES = 2 << 20
CHUNK_PAGES = CHUNK_BYTES // PAGE
# What was in use is looked at again after so long.
HOT_SECONDS = 60.0
# A chunk of which this share came back is in use.
_RETURNED_SHARE = 1 / 16
_RETURN_SECONDS = 0.15
_PRESENT, _SWAPPED = 63, 62

_PROCESS_MADVISE = 440
_MADV_PAGEOUT = 21
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Area:
    """A mapping of a process: where it begins and ends, and what it maps."""

    start: int
    end: int
    path: str

    @property
    def size_bytes(self) -> int:
        """Return its length."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Residency:
    """Bytes of guest memory that are resident, swapped out, and (None: not known yet) referenced since the look before."""

    resident_bytes: int
    swapped_bytes: int
    referenced_bytes: int | None


class GuestMemory:
    """The mapping of a process that is a guest's memory."""

    def __init__(self, pid: int, memory_bytes: int | None) -> None:
        """Find it: the smallest mapping that the guest's memory fits into, else the largest; raises NotFoundError, or RefusedError."""
        self.pid = pid
        areas = sorted(_areas(pid), key=lambda area: area.size_bytes)
        fit = [area for area in areas if memory_bytes is not None and area.size_bytes >= memory_bytes]
        if not areas:
            raise NotFoundError(f"process {pid}: has no memory")
        # The smallest that is large enough: TCG's code and huge reservations are mapped too.
        self.area = fit[0] if fit else areas[-1]
        self.nchunks = -(-self.area.size_bytes // CHUNK_BYTES)
        self._hot_until = np.zeros(self.nchunks)
        self._hand = 0
        self._cleared = False

    def look(self) -> Residency:
        """Return what is resident, and clear the marks of what was referenced for the next look; raises NotFoundError."""
        fields = _smaps(self.pid, self.area)
        referenced = fields["Referenced"] if self._cleared else None
        try:
            (Path("/proc") / str(self.pid) / "clear_refs").write_text("1")
            self._cleared = True
        except FileNotFoundError as error:
            raise NotFoundError(f"process {self.pid}: is gone") from error
        except OSError:  # not ours to clear
            self._cleared = False
        return Residency(fields["Rss"], fields["Swap"], referenced)

    def states(self, first: int, count: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which of some pages are present, and which are swapped out."""
        try:
            with (Path("/proc") / str(self.pid) / "pagemap").open("rb", buffering=0) as file:
                file.seek((self.area.start // PAGE + first) * 8)
                words = np.frombuffer(file.read(count * 8), "<u8")
        except OSError as error:
            raise NotFoundError(f"process {self.pid}: is gone") from error
        return (words >> np.uint64(_PRESENT) & np.uint64(1)) > 0, (words >> np.uint64(_SWAPPED) & np.uint64(1)) > 0

    def page_out(self, size_bytes: int, *, spare_hot: bool = True) -> int:
        """Page out about so much and return how much is out now that was not: chunks in a round, those known to be in use left out.

        Raises NotFoundError, or RefusedError without the right to. Nothing goes out while the host has neither swap nor a file for it.
        """
        done = 0
        pidfd = _pidfd(self.pid)
        try:
            tried: list[int] = []
            for _ in range(self.nchunks):
                chunk, self._hand = self._hand, (self._hand + 1) % self.nchunks
                if spare_hot and self._hot_until[chunk] > time.monotonic():
                    continue
                npages = self._chunk_pages(chunk)
                present, _ = self.states(chunk * CHUNK_PAGES, npages)
                if present.any():
                    self._advise(pidfd, chunk, min(npages, _pages_for(present, size_bytes - done)))
                    tried.append(chunk)
                    after, _ = self.states(chunk * CHUNK_PAGES, npages)
                    done += max(int(present.sum()) - int(after.sum()), 0) * PAGE
                if done >= size_bytes:
                    break
            return max(done - self._mark_returned(tried), 0)
        finally:
            os.close(pidfd)

    def sample(self, frames: Ints) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return of some pages which are present, which are swapped out, and which lie where something was in use lately."""
        states = [self.states(frame, 1) for frame in frames.tolist()]
        hot = self._hot_until[frames // CHUNK_PAGES] > time.monotonic()
        return np.array([each[0][0] for each in states]), np.array([each[1][0] for each in states]), hot

    def _mark_returned(self, chunks: list[int]) -> int:
        """Look again a moment later: what came back is in use. Return how much that is, in bytes."""
        returned = 0
        gone = {chunk: self.states(chunk * CHUNK_PAGES, self._chunk_pages(chunk))[0] for chunk in chunks}
        time.sleep(_RETURN_SECONDS)
        for chunk, before in gone.items():
            now, _ = self.states(chunk * CHUNK_PAGES, len(before))
            back = int((now & ~before).sum())
            returned += back * PAGE
            if back >= _RETURNED_SHARE * len(before):
                self._hot_until[chunk] = time.monotonic() + HOT_SECONDS
        return returned

    def _chunk_pages(self, chunk: int) -> int:
        return min(CHUNK_PAGES, self.area.size_bytes // PAGE - chunk * CHUNK_PAGES)

    def _advise(self, pidfd: int, chunk: int, npages: int) -> None:
        vector = struct.pack("QQ", self.area.start + chunk * CHUNK_BYTES, npages * PAGE)
        result = _libc.syscall(_PROCESS_MADVISE, pidfd, vector, ctypes.c_size_t(1), _MADV_PAGEOUT, 0)
        if result < 0:
            code = ctypes.get_errno()
            if code == errno.ESRCH:
                raise NotFoundError(f"process {self.pid}: is gone")
            if code == errno.EPERM:
                raise RefusedError(f"process {self.pid}: paging out needs the right to (root, or CAP_SYS_NICE and ptrace)")
            raise StorageError(f"process {self.pid}: process_madvise: {os.strerror(code)}")


def _pages_for(present: NDArray[np.bool_], wanted_bytes: int) -> int:
    """Return how many pages from the first on hold so many bytes that are present."""
    at = np.flatnonzero(np.cumsum(present) * PAGE >= max(wanted_bytes, PAGE))
    return int(at[0]) + 1 if len(at) else len(present)


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise NotFoundError(f"process {pid}: is gone") from error


def _areas(pid: int) -> list[Area]:
    try:
        lines = (Path("/proc") / str(pid) / "maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFoundError(f"process {pid}: is gone") from error
    except PermissionError as error:
        raise RefusedError(f"process {pid}: not yours to look at; root may") from error
    found = []
    for line in lines:
        words = line.split(maxsplit=5)
        start, _, end = words[0].partition("-")
        if words[1].startswith("rw"):
            found.append(Area(int(start, 16), int(end, 16), words[5] if len(words) > 5 else ""))
    return found


def _smaps(pid: int, area: Area) -> dict[str, int]:
    """Return an area's numbers in /proc/PID/smaps, in bytes; the kernel may have cut it into several."""
    totals = {"Rss": 0, "Swap": 0, "Referenced": 0}
    inside = False
    try:
        with (Path("/proc") / str(pid) / "smaps").open() as file:
            for line in file:
                name, _, rest = line.partition(":")
                if "-" in name and " " in name:
                    start = int(line.partition("-")[0], 16)
                    inside = area.start <= start < area.end
                elif inside and name in totals:
                    totals[name] += int(rest.split()[0]) * 1024
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFoundError(f"process {pid}: is gone") from error
    return totals
