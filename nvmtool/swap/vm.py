"""A running VM: page frames in memory, faults that swap in, pressure that swaps out, and every page stamped and verified.

Memory used: the resident pages with 150 bytes of tables each, 8 bytes per page frame that was ever touched, and what the swap file keeps.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NoSpaceError, RefusedError
from .frames import IN_MEMORY
from .latency import Latencies
from .resident import Resident
from .stamps_layout import ANY, NEVER, SWAPPED
from .verify import Expected, Findings, describe

if TYPE_CHECKING:
    from .pattern import Pattern
    from .stamps import Stamps
    from .swapfile import SwapFile

# A batch swapped out is an eighth of the rows, and no more than one vectored write takes (IOV_MAX).
_BATCH_SHARE = 8
_MOST_IN_BATCH = 1024
_MOST_UNCOMMITTED = 1024
_COMMIT_SECONDS = 0.25


class Vm:
    """The memory of one VM over its swap file. A failed swap-out loses nothing: its pages stay in memory, and it may be tried again.

    `known` holds per frame the version of its page plus 1, or 0 where this process has not seen the page yet.
    """

    def __init__(self, swap: SwapFile, pattern: Pattern, nresident: int, *, stamps: Stamps | None, findings: Findings) -> None:
        """Begin with nothing in memory."""
        self.swap = swap
        self.pattern = pattern
        self.findings = findings
        self.resident = Resident(min(nresident, swap.nframes))
        self.known = np.zeros(swap.nframes, np.uint64)
        self.latencies = Latencies()
        self.ops = self.swap_ins = self.swap_outs = self.first_touches = self.verified_pages = self.lost_in_memory = 0
        self._stamps = stamps
        # Versions rise through all runs on a file, so that an old page is never taken for a new one.
        self._version = time.time_ns() // 1000
        self._most = min(swap.max_batch, _MOST_IN_BATCH)
        self._batch = min(self._most, max(self.resident.nrows // _BATCH_SHARE, 1))
        self._uncommitted = 0
        self._committed_at = time.monotonic()

    def start_after(self, version: int) -> None:
        """Let the versions of pages written from now on be higher than this one."""
        self._version = max(self._version, version)

    def access(self, frames: list[int], writes: list[bool]) -> None:
        """Read or write a word of each page frame in turn, and serve a defragmenter once.

        Raises NoSpaceError or RefusedError when no page can be swapped out to make room; what was in memory is still there.
        """
        start = time.perf_counter_ns()
        if self.swap.poll():
            # The next access has waited for that, whether it faults or not.
            self.latencies.add(time.perf_counter_ns() - start)
        resident, pattern = self.resident, self.pattern
        rows, referenced, page_words = resident.rows, resident.referenced, resident.words
        # Memoryviews give Python's own integers, several times faster than numpy's scalars.
        page_versions, known = page_words[:, 1].data, self.known.data
        version = self._version
        done = 0
        try:
            for frame, is_write in zip(frames, writes, strict=True):
                row = rows.get(frame)
                if row is None:
                    row = self._fault(frame)
                    # A page with an error was stamped anew.
                    version = self._version
                if is_write:
                    self._version = version = version + 1
                    pattern.stamp(page_words[row], frame, version)
                    known[frame] = version + 1
                elif page_versions[row] + 1 != known[frame]:
                    self._report_changed(frame, row)
                    version = self._version
                referenced[row] = 1
                done += 1
        finally:
            self.ops += done
        if self._uncommitted and time.monotonic() - self._committed_at > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make swap-ins durable, so that their slots and emptied storage blocks come back."""
        self.swap.commit()
        self._note_commit()

    def swap_out_all(self) -> None:
        """Swap out everything, in the order of the frames; when that raises, `resident.rows` has what is still in memory."""
        frames = sorted(self.resident.rows)
        start = 0
        while start < len(frames):
            self.swap.poll()
            start += self._swap_out(frames[start : start + self._most])
        self.commit()

    def check_resident(self) -> None:
        """Verify all 4096 bytes of every page in memory; errors go to the findings."""
        resident = self.resident
        for frame, row in resident.rows.items():
            if not self.pattern.holds(resident.words[row], frame, int(self.known[frame]) - 1):
                self._report_changed(frame, row)
        self.verified_pages += len(resident.rows)

    def expected(self, start: int, stop: int) -> Expected:
        """Return what the file must hold of the frames from `start` to below `stop`: what this process has swapped out."""
        known = self.known[start:stop]
        states = np.where(known > 0, SWAPPED, ANY).astype(np.uint8)
        for frame in self.resident.rows:
            if start <= frame < stop:
                states[frame - start] = NEVER
        versions = np.maximum(known, 1) - np.uint64(1)
        return Expected(states, versions, versions)

    def _fault(self, frame: int) -> int:
        """Bring a page frame into memory and return its row."""
        start = time.perf_counter_ns()
        if not self.swap.poll():
            # Only when a defragmenter was served has the VM waited for that.
            start = time.perf_counter_ns()
        resident = self.resident
        waited = not resident.free
        if waited:
            self._swap_out(resident.choose(self._batch))
        state = self.swap.state_of(frame)
        row = resident.free[-1]
        if self._stamps is not None:
            self._stamps.enter_memory(frame)
        if state >= 0:
            waited = True
            self._swap_in(frame, state, row)
        else:
            self._begin(frame, state, row)
        resident.put(frame, resident.free.pop())
        if waited:
            self.latencies.add(time.perf_counter_ns() - start)
        if self._uncommitted >= _MOST_UNCOMMITTED:
            self.commit()
        return row

    def _begin(self, frame: int, state: int, row: int) -> None:
        """Let a frame that is in no slot begin as zeros."""
        if state != IN_MEMORY:
            self.swap.touch(frame)
            self._uncommitted += 1
        elif self._stamps is None:
            # With stamps they were counted at the start.
            self.lost_in_memory += 1
        self.resident.words[row] = 0
        self.known[frame] = 1
        self.first_touches += 1

    def _swap_in(self, frame: int, slot: int, row: int) -> None:
        self.swap.swap_in(frame, self.resident.buffer(row))
        self.swap_ins += 1
        self._uncommitted += 1
        self.verified_pages += 1
        page = self.resident.words[row]
        known = int(self.known[frame])
        version = known - 1 if known else int(page[1])
        if self.pattern.holds(page, frame, version):
            self.known[frame] = version + 1
            if not known:
                self.start_after(version)
            return
        expected = f"version {version}" if known else "any version"
        self.findings.add(frame, f"in slot {slot}", describe(self.pattern, page, frame, version if known else None, expected))
        self._stamp_anew(frame, row)

    def _report_changed(self, frame: int, row: int) -> None:
        version = int(self.known[frame]) - 1
        what = describe(self.pattern, self.resident.words[row], frame, version, f"version {version}")
        self.findings.add(frame, "in memory", what)
        self._stamp_anew(frame, row)

    def _stamp_anew(self, frame: int, row: int) -> None:
        """Give a page with an error, which has been reported, contents that later checks can tell again."""
        self._version += 1
        self.pattern.stamp(self.resident.words[row], frame, self._version)
        self.known[frame] = self._version + 1

    def _swap_out(self, frames: list[int]) -> int:
        """Swap out pages, as many from the front as there is space for; return how many.

        Raises NoSpaceError or RefusedError when there is space for none.
        """
        try:
            return self._swap_out_batch(frames)
        except (NoSpaceError, RefusedError):
            # Slots of pages that were swapped in are free only after a commit; and fewer pages may fit.
            self.commit()
        count = len(frames)
        while True:
            try:
                return self._swap_out_batch(frames[:count])
            except (NoSpaceError, RefusedError):
                if count == 1:
                    raise
            count //= 2

    def _swap_out_batch(self, frames: list[int]) -> int:
        resident = self.resident
        array = np.array(frames, np.int64)
        versions = self.known[array] - np.uint64(1)
        if self._stamps is not None:
            self._stamps.pend(array, versions)
        self.swap.swap_out(array, [resident.buffer(resident.rows[frame]) for frame in frames])
        if self._stamps is not None:
            self._stamps.commit(array, versions)
        resident.drop(frames)
        self.swap_outs += len(frames)
        self._note_commit()
        return len(frames)

    def _note_commit(self) -> None:
        self._uncommitted = 0
        self._committed_at = time.monotonic()
