"""Run a VM on a swap file: settle what a killed run left, touch memory, end in order, verify, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BusyError, DamagedError, NoSpaceError, NvmtoolError, RefusedError, UsageError
from ..stopping import Stop
from .layout import PAGE
from .pattern import Pattern
from .stamps import Stamps
from .stamps_layout import ANY, NEVER, SWAPPED
from .verify import Expected, Findings, iter_checked
from .vm import Vm
from .workload import iter_accesses

if TYPE_CHECKING:
    from .swapfile import SwapFile
    from .verify import Checked

    # Called with what is done, the total, and the unit.
    Progress = Callable[[int, int, str], None]

MIN_RESIDENT_PAGES = 16
# So often a defragmenter is served, and the end of the run is looked for, where there are no faults.
_OPS_AT_ONCE = 64
_STATES_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What to run. Without `ops` and `seconds` it runs until it is stopped; `write_ratio` is from 0 to 1."""

    resident_bytes: int
    workload: str = "uniform"
    ops: int | None = None
    seconds: float | None = None
    seed: int = 0
    write_ratio: float = 0.5
    verify: bool = False
    stamps: Path | None = None

    @property
    def only_verifies(self) -> bool:
        """Whether nothing is to be touched."""
        return self.ops == 0


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did.

    - `faults` are accesses that waited: a page was swapped in, others were swapped out to make room, or a defragmenter was answered first.
      The percentiles are theirs, to within 2 %. First touches that found a free row waited for nothing: `first_touches` counts all of them.
    - `verified_pages` were compared in all their 4096 bytes; `verified_all` tells whether that was everything, as asked for.
    - `errors` counts page frames; `findings` describes the first ten.
    - `lost_in_memory` pages went with an earlier process that was killed, and began anew.
    - `still_in_memory` pages could not be swapped out, for the reason `failure`.
    """

    ops: int
    swap_ins: int
    swap_outs: int
    faults: int
    faults_p50_us: float
    faults_p99_us: float
    faults_p999_us: float
    first_touches: int
    verified_pages: int
    errors: int
    lost_in_memory: int
    still_in_memory: int
    verified_all: bool
    seconds: float
    ended_by: str
    findings: tuple[str, ...]
    failure: NvmtoolError | None


def run_vm(swap: SwapFile, options: RunOptions, *, stop: Stop | None = None, progress: Progress | None = None) -> RunReport:
    """Run a VM on a writable swap file until its operations, its time or `stop` end it; then the file holds its whole memory.

    Defragmenters in other processes are served meanwhile. Where pages cannot be swapped out, the report says why in `failure`, and how many
    there were; everything else is in the file. Raises UsageError, what opening stamps raises, and StorageError, after which the file is as
    a kill would have left it.
    """
    if options.resident_bytes < MIN_RESIDENT_PAGES * PAGE:
        raise UsageError(f"resident memory of {options.resident_bytes} bytes is less than {MIN_RESIDENT_PAGES} pages")
    stamps = _open_stamps(swap, options)
    if stamps is None:
        return _Run(swap, options, None, stop or Stop(), progress).run()
    with stamps:
        return _Run(swap, options, stamps, stop or Stop(), progress).run()


def _open_stamps(swap: SwapFile, options: RunOptions) -> Stamps | None:
    if options.stamps is None:
        return None
    if options.stamps.exists() or options.only_verifies:
        return Stamps.open(options.stamps, swap.fields["uuid"], swap.nframes)
    return Stamps.create(options.stamps, swap.fields["uuid"], swap.nframes, _iter_swapped(swap))


def _iter_swapped(swap: SwapFile) -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    for start in range(0, swap.nframes, _STATES_AT_ONCE):
        states = swap.states_of_range(start, min(start + _STATES_AT_ONCE, swap.nframes))
        yield np.flatnonzero(states >= 0) + start


class _Run:
    """One run, from its first look at the file to its report."""

    def __init__(self, swap: SwapFile, options: RunOptions, stamps: Stamps | None, stop: Stop, progress: Progress | None) -> None:
        self.swap = swap
        self.options = options
        self.stamps = stamps
        self.stop = stop
        self.progress = progress
        self.findings = Findings()
        self.pattern = Pattern(swap.fields["uuid"])
        self.vm = Vm(swap, self.pattern, options.resident_bytes // PAGE, stamps=stamps, findings=self.findings)
        self.verified_pages = self.lost_in_memory = 0
        self.verified_all = False
        self.failure: NvmtoolError | None = None

    def run(self) -> RunReport:
        begun = time.monotonic()
        if not self.options.only_verifies:
            if self.stamps is not None:
                self._settle(self.stamps)
            self.swap.serve()
            self._attempt(self._touch_memory)
            if self.options.verify:
                self.vm.check_resident()
            self._attempt(self.vm.swap_out_all)
        if self.options.verify:
            self._verify_file()
        return self._report(time.monotonic() - begun)

    def _attempt(self, work: Callable[[], None]) -> None:
        """Do it as far as it goes: whatever a page cannot be swapped out for, the others are to be."""
        try:
            work()
        except (NoSpaceError, RefusedError, BusyError, DamagedError) as error:
            self.failure = self.failure or error

    def _settle(self, stamps: Stamps) -> None:
        """Learn each page's version from the stamps, or from the page where a kill left two; let what is gone begin anew."""
        for checked in iter_checked(self.swap, self.pattern, stamps.expected, self.findings, only_uncertain=True):
            if self.stop.reason:
                return
            self._count(checked)
            states, versions = _settled(checked)
            expected = checked.expected
            differs = (states != expected.states) | (versions != expected.committed) | (versions != expected.pending)
            stamps.settle(checked.frames[differs], states[differs], versions[differs])
            swapped = states == SWAPPED
            self.vm.known[checked.frames[swapped]] = versions[swapped] + np.uint64(1)
            self.vm.start_after(int(np.maximum(expected.committed, expected.pending).max()))

    def _touch_memory(self) -> None:
        options, vm, stop = self.options, self.vm, self.stop
        left = options.ops
        deadline = time.monotonic() + options.seconds if options.seconds is not None else None
        for frames, writes in iter_accesses(options.workload, self.swap.nframes, seed=options.seed, write_ratio=options.write_ratio):
            if options.ops is not None:
                self._tell(vm.ops, options.ops, "operations")
            for start in range(0, len(frames), _OPS_AT_ONCE):
                if stop.reason:
                    return
                count = _OPS_AT_ONCE if left is None else min(left, _OPS_AT_ONCE)
                vm.access(frames[start : start + count], writes[start : start + count])
                if left is not None:
                    left -= count
                    if left == 0:
                        stop.ask("ops")
                if deadline is not None and time.monotonic() >= deadline:
                    stop.ask("seconds")

    def _verify_file(self) -> None:
        """Compare all pages, unless somebody asks for the end meanwhile; once more, where that ended the run before."""
        asked = 0 if self.options.only_verifies else self.stop.times_asked
        for checked in iter_checked(self.swap, self.pattern, self._expected(), self.findings):
            if self.stop.times_asked > asked:
                return
            self._count(checked)
            self._tell(int(checked.frames[-1]) + 1, self.swap.nframes, "pages")
        self.verified_all = True

    def _expected(self) -> Callable[[int, int], Expected]:
        if self.options.only_verifies and self.stamps is not None:
            return self.stamps.expected
        return self.vm.expected

    def _tell(self, done: int, total: int, unit: str) -> None:
        if self.progress is not None:
            self.progress(done, total, unit)

    def _count(self, checked: Checked) -> None:
        self.verified_pages += checked.npages
        self.lost_in_memory += int(checked.gone.sum())

    def _report(self, seconds: float) -> RunReport:
        vm = self.vm
        return RunReport(
            ops=vm.ops,
            swap_ins=vm.swap_ins,
            swap_outs=vm.swap_outs,
            faults=vm.latencies.count,
            faults_p50_us=vm.latencies.percentile_us(500),
            faults_p99_us=vm.latencies.percentile_us(990),
            faults_p999_us=vm.latencies.percentile_us(999),
            first_touches=vm.first_touches,
            verified_pages=self.verified_pages + vm.verified_pages,
            errors=self.findings.errors,
            lost_in_memory=self.lost_in_memory + vm.lost_in_memory,
            still_in_memory=len(vm.resident.rows),
            verified_all=self.verified_all,
            seconds=round(seconds, 6),
            ended_by="failure" if self.failure is not None else self.stop.reason or "ops",
            findings=tuple(self.findings.lines),
            failure=self.failure,
        )


def _settled(checked: Checked) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint8]], np.ndarray[tuple[int], np.dtype[np.uint64]]]:
    """Return the states and versions that the stamps must have before a run goes on.

    A page whose error was reported is taken as it is from now on, whatever it holds: each error is reported once.
    """
    expected, present = checked.expected, checked.slots >= 0
    uncertain = (expected.states != SWAPPED) | (expected.committed != expected.pending)
    versions = np.where(uncertain, checked.versions, expected.committed)
    known = present & checked.sound
    states = np.where(present, np.where(checked.sound, SWAPPED, ANY), NEVER).astype(np.uint8)
    return states, np.where(known, versions, np.uint64(0))
