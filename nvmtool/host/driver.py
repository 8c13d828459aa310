"""A guest's balloon driver, and its report of what its memory is used for (T5): what the scheduler talks with, in words of the VM's map.

The scheduler stores how much the balloon is to hold (`balloon_target`) and how much may stay in memory (`most_resident`); the guest stores
what the balloon holds and its classes, in pages. The balloon takes page frames that were never touched, then page cache that was not
touched lately; it never takes anonymous pages, for the guest has no swap of its own. A touched page frame leaves the balloon by itself.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .space import Space

    Ints = NDArray[np.int64]

REPORT_SECONDS = 0.5
_PAGES_AT_ONCE = 4096
_SWAP_OUT_PAGES = 256


class Driver:
    """The balloon of one guest; `first_cache` and behind are page cache, whose contents a file has."""

    def __init__(self, npages: int, first_cache: int) -> None:
        """Begin with an empty balloon."""
        self.first_cache = first_cache
        self.is_ballooned = np.zeros(npages, bool)
        # Bytes of page frames that were touched since the last report; the guest sets them.
        self.touched = np.zeros(npages, np.uint8)
        self._before = np.zeros(npages, np.uint8)
        self.size = 0
        self._next = 0.0

    def tick(self, space: Space, referenced: NDArray[np.uint8], is_clean: NDArray[np.bool_]) -> None:
        """Follow what the scheduler wants, and report now and then; between two batches of accesses.

        `is_clean` tells of which page frames a file has the contents. Raises what swapping out raises.
        """
        head = space.map
        target = head.get("balloon_target")
        if target != self.size:
            self._follow(space, target, is_clean)
            head.put("balloon", self.size)
        most = head.get("most_resident")
        if most and space.resident > most:
            space.swap_out(space.choose(min(space.resident - most, _SWAP_OUT_PAGES), referenced))
        now = time.monotonic()
        if now >= self._next:
            self._next = now + REPORT_SECONDS
            self._report(space)

    def take_back(self, space: Space, ppn: int) -> None:
        """Let a page frame that is about to be touched be the guest's again."""
        if self.is_ballooned[ppn]:
            self.is_ballooned[ppn] = False
            self.size -= 1
            space.map.put("balloon", self.size)

    def close(self, space: Space) -> None:
        """Say that nobody answers any more; what the balloon held is untouched memory."""
        for name in ("reported", "balloon", "balloon_target", "most_resident"):
            space.map.put(name, 0)

    def _follow(self, space: Space, target: int, is_clean: NDArray[np.bool_]) -> None:
        if target < self.size:
            given = np.flatnonzero(self.is_ballooned)[: min(self.size - target, _PAGES_AT_ONCE)]
            self.is_ballooned[given] = False
            self.size -= len(given)
            return
        count = min(target - self.size, _PAGES_AT_ONCE)
        untouched = np.flatnonzero(~self.is_ballooned & ~self._holds(space))[:count]
        idle = (space.map.array != 0) & is_clean & (self.touched == 0) & (self._before == 0)
        idle[: self.first_cache] = False
        dropped = np.flatnonzero(idle)[: count - len(untouched)]
        if len(dropped):
            space.drop(dropped)
        for taken in (untouched, dropped):
            self.is_ballooned[taken] = True
            self.size += len(taken)

    def _holds(self, space: Space) -> NDArray[np.bool_]:
        """Tell of each page frame whether it has contents, in memory or in a slot."""
        found: NDArray[np.bool_] = space.map.array != 0
        if space.swap is not None:
            found = found | (space.swap.states(np.arange(len(found))) >= 0)
        return found

    def _report(self, space: Space) -> None:
        holds = self._holds(space)
        active = holds & ((self.touched | self._before) != 0)
        anon, file = slice(None, self.first_cache), slice(self.first_cache, None)
        counts = {
            "unreclaimable": 0,
            "active_anon": int(active[anon].sum()),
            "active_file": int(active[file].sum()),
            "inactive_anon": int((holds & ~active)[anon].sum()),
            "inactive_file": int((holds & ~active)[file].sum()),
        }
        for name, count in counts.items():
            space.map.put(name, count)
        # Last: from the first one on there is a report.
        space.map.put("reported", space.map.get("reported") + 1)
        self._before[:] = self.touched
        self.touched[:] = 0
