"""Defragmentation of a thin swap file (T4): the loop and the copying, beside a running VM or alone.

A pass goes once through the page-frame space for the set of blocks that was chosen at its start. A few may follow, and then others only
while each at least halves what is left, so that a VM that swaps for ever does not keep it for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import BusyError, UsageError
from ..media import lock
from ..media.imagefile import close_file, open_file
from ..media.journal import run_arrays
from ..media.pagefile import PageFile, page_buffer
from . import layout as lay
from .density import choose_to_empty
from .interrupts import interrupts_deferred
from .moves import Mover
from .opening import read_fields
from .remote import RemoteMover
from .swapfile import SwapFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .moves import Moves, Status

    Progress = Callable[[int, int, str], None] | None
    Ints = NDArray[np.int64]
    Job = tuple[int, list[memoryview]]

# Reading through a gap of unwanted pages is quicker than another read.
_GAP_PAGES = 4
_SPAN_BUFFERS = 1000
_ALONE_PAGES = 16384
_BESIDE_PAGES = 1024
_JOBS_AT_ONCE = 128
# Alone, several requests at the device at a time; beside a VM its faults come first.
_ALONE_WORKERS = 8
_BESIDE_WORKERS = 1
# So many passes are made where blocks are left; then only while each at least halves them.
_PASSES = 6
# So long a process that opens the file may keep helpers away.
_LOCK_SECONDS = 1.0
# Beside a VM the helper rests so much longer than it works.
_REST = 1.0


class Moving(Protocol):
    """The side that has the swap file open for writing: moves.Mover here, or remote.RemoteMover for another process's."""

    def begin(self) -> Status:
        """Choose which blocks to empty."""

    def plan(self, most: int) -> Moves:
        """Plan some moves."""

    def commit(self) -> int:
        """Let the frames that did not change name the copies."""

    def end(self) -> Status:
        """Drop what was planned, and end."""


@dataclass(frozen=True)
class DefragResult:
    """What a defragmentation did; `complete`: nothing is left to do (beside a running VM: one block or 1 % at most)."""

    blocks_before: int
    blocks_after: int
    blocks_optimal: int
    blocks_released: int
    bytes_released: int
    pages_moved: int
    pages_optimal: int
    passes: int
    live: bool
    complete: bool
    seconds: float


def plan_defrag(swap: SwapFile) -> DefragResult:
    """Return what a defragmentation of an idle file would do, by a file opened for reading; O(storage blocks)."""
    choice = choose_to_empty(np.maximum(swap.used, 0).astype(np.int32), swap.slots_per_block)
    before, released = swap.blocks_allocated, swap.blocks_allocated - choice.noptimal
    return DefragResult(
        blocks_before=before,
        blocks_after=choice.noptimal,
        blocks_optimal=choice.noptimal,
        blocks_released=released,
        bytes_released=released * swap.block_bytes,
        pages_moved=choice.npages,
        pages_optimal=choice.npages,
        passes=0,
        live=False,
        complete=True,
        seconds=0.0,
    )


def defragment(
    path: str | Path,
    *,
    reservation: str | Path | None = None,
    max_bytes: int | None = None,
    max_seconds: float | None = None,
    progress: Progress = None,
) -> DefragResult:
    """Defragment a swap file, beside its VM when one runs; stopped anywhere, nothing is lost, and running it again goes on.

    Raises BusyError when another process has it that takes no part, and whatever `SwapFile.open` raises.
    """
    path = Path(path)
    budgets: dict[str, Any] = {"max_bytes": max_bytes, "max_seconds": max_seconds, "progress": progress}
    try:
        swap = SwapFile.open(path, writable=True, reservation=reservation)
    except BusyError:
        return _defragment_beside(path, budgets)
    with swap:
        alone = Defragmenter(Mover(swap), swap.pages, swap.data_offset, swap.block_bytes, live=False, **budgets)
        return alone.run()


def _defragment_beside(path: Path, budgets: Mapping[str, Any]) -> DefragResult:
    fd = open_file(path, writable=True)
    try:
        # Kept until the last copy: a VM that is started meanwhile must not take the slots that are written to.
        lock.lock(fd, path, lock.HELPER, exclusive=True, seconds=_LOCK_SECONDS)
        fields = read_fields(path, fd)
        pages = PageFile(path, fd, writable=True)
        data_offset, block_bytes = fields["data_start"] * lay.PAGE, fields["slots_per_block"] * lay.PAGE
        try:
            with RemoteMover(path, fd) as mover:
                return Defragmenter(mover, pages, data_offset, block_bytes, live=True, **budgets).run()
        finally:
            pages.close()
    finally:
        close_file(fd)


@dataclass
class Defragmenter:
    """One defragmentation; `run` does it. `pages` copies; it is this process's own, whoever changes the words."""

    moving: Moving
    pages: PageFile
    data_offset: int
    block_bytes: int
    live: bool
    max_bytes: int | None = None
    max_seconds: float | None = None
    progress: Progress = None

    def __post_init__(self) -> None:
        """Begin to count."""
        if (self.max_bytes is not None and self.max_bytes < 0) or (self.max_seconds is not None and self.max_seconds < 0):
            raise UsageError("a budget cannot be negative")
        self._started = time.monotonic()
        self._moved = 0
        self._batch = _BESIDE_PAGES if self.live else _ALONE_PAGES

    def run(self) -> DefragResult:
        """Move pages until the best possible result, or until a budget is spent; what was moved stays so, stopped anywhere.

        Where it raises, an interrupt included, nothing may be asked of `moving` any more: hang up, or close the file without a commit.
        """
        first = status = self.moving.begin()
        optimal, passes = first.pages_to_move, 0
        while True:
            passes += 1
            with ThreadPoolExecutor(_BESIDE_WORKERS if self.live else _ALONE_WORKERS) as workers:
                self._pass(optimal, workers)
            left = self.moving.end()
            if self._spent() or self._is_good(left) or (passes >= _PASSES and 2 * _excess(left) > _excess(status)):
                break
            status = self.moving.begin()
        released = first.blocks_allocated - left.blocks_allocated
        return DefragResult(
            blocks_before=first.blocks_allocated,
            blocks_after=left.blocks_allocated,
            blocks_optimal=left.blocks_optimal,
            blocks_released=max(released, 0),
            bytes_released=max(released, 0) * self.block_bytes,
            pages_moved=self._moved,
            pages_optimal=optimal,
            passes=passes,
            live=self.live,
            complete=self._is_good(left),
            seconds=time.monotonic() - self._started,
        )

    def _pass(self, total: int, workers: ThreadPoolExecutor) -> None:
        while (most := self._most()) > 0:
            begun = time.monotonic()
            moves = self.moving.plan(most)
            if len(moves.sources):
                # Once this process hangs up or closes the file, others write to these slots: no copy may still be on its way.
                with interrupts_deferred():
                    copy_pages(self.pages, moves, self.data_offset, workers)
                    # The copies must be durable before a record names them.
                    self.pages.fence()
                self._moved += self.moving.commit()
                if self.progress is not None:
                    self.progress(min(self._moved, total), total, "pages")
            if moves.last:
                return
            if self.live:
                time.sleep((time.monotonic() - begun) * _REST)

    def _most(self) -> int:
        """Return how many pages the next batch may have by the budgets."""
        if self.max_seconds is not None and time.monotonic() - self._started >= self.max_seconds:
            return 0
        if self.max_bytes is None:
            return self._batch
        return min(self._batch, self.max_bytes // lay.PAGE - self._moved)

    def _spent(self) -> bool:
        return self._most() <= 0

    def _is_good(self, status: Status) -> bool:
        # A running VM always has a block that is not full yet.
        return _excess(status) <= (max(status.blocks_optimal // 100, 1) if self.live else 0)


def _excess(status: Status) -> int:
    return status.blocks_allocated - status.blocks_optimal


def copy_pages(pages: PageFile, moves: Moves, data_offset: int, workers: ThreadPoolExecutor) -> None:
    """Copy pages between slots: read in spans, through small gaps, and written in runs. Durable after a fence."""
    by_source = np.argsort(moves.sources)
    buffer = page_buffer(len(by_source))
    _share_out(workers, pages.read, _read_jobs(moves.sources[by_source], buffer, data_offset))
    row_of = np.empty(len(by_source), np.int64)
    row_of[by_source] = np.arange(len(by_source))
    by_target = np.argsort(moves.targets)
    views = [buffer[row].data for row in row_of[by_target].tolist()]
    jobs, done = [], 0
    for first, count in zip(*(each.tolist() for each in run_arrays(moves.targets[by_target])), strict=True):
        jobs.append((data_offset + first * lay.PAGE, views[done : done + count]))
        done += count
    _share_out(workers, pages.write, jobs)


def _read_jobs(slots: Ints, buffer: NDArray[np.uint8], data_offset: int) -> list[Job]:
    """Return reads that fill the buffer with the pages of ascending slots; gaps go to one place that nobody looks at."""
    unwanted = page_buffer(_GAP_PAGES)
    firsts, lengths = run_arrays(slots)
    gaps = np.append(firsts[1:] - firsts[:-1] - lengths[:-1], _GAP_PAGES + 1)
    jobs: list[Job] = []
    span: list[memoryview] = []
    start = row = 0
    for first, count, gap in zip(firsts.tolist(), lengths.tolist(), gaps.tolist(), strict=True):
        if not span:
            start = first
        span.append(buffer[row : row + count].data.cast("B"))
        row += count
        if gap > _GAP_PAGES or len(span) >= _SPAN_BUFFERS:
            jobs.append((data_offset + start * lay.PAGE, span))
            span = []
        else:
            span.append(unwanted[:gap].data.cast("B"))
    return jobs


def _share_out(workers: ThreadPoolExecutor, do: Callable[[int, list[memoryview]], None], jobs: list[Job]) -> None:
    """Do all jobs, some at a time; raises what the first of them raises, when none is at work any more."""

    def do_some(some: list[Job]) -> None:
        for offset, buffers in some:
            do(offset, buffers)

    futures = [workers.submit(do_some, jobs[start : start + _JOBS_AT_ONCE]) for start in range(0, len(jobs), _JOBS_AT_ONCE)]
    wait(futures)
    for future in futures:
        future.result()
