"""A guest at work on a running VM: it touches memory, breaks sharing, swaps under pressure, and can tell whether it lost anything."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NoSpaceError, NvmtoolError, RefusedError
from ..media.pagefile import page_buffer
from ..swap.latency import Latencies
from ..swap.pattern import Pattern
from ..swap.verify import Findings, describe
from ..swap.workload import iter_accesses
from . import layout as lay
from .balance import find_frames, return_to
from .driver import Driver
from .space import Space

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..stopping import Stop
    from .host import Host
    from .records import Vm

    Ints = NDArray[np.int64]
    Progress = Callable[[int, int, str], None] | None

_OPS_AT_ONCE = 64
_SWAP_OUT_PAGES = 256
_VERIFY_PAGES = 256
_FLAG = lay.SHARED_FLAG
# What a guest knows of a page frame: nothing, a version of the pattern, or the checksum of something else (a loaded page).
_UNKNOWN, _PATTERN, _FOREIGN = range(3)
# The version of what a file has.
_OF_FILE = 1


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """What to run; as RunOptions of a swap file. The VM's grant says how much stays in memory under pressure.

    At most `rate` accesses a second, where it is given. The last `cache_share` of memory is page cache: read, not written, and read again
    from its file after it was dropped.
    """

    workload: str = "uniform"
    ops: int | None = None
    seconds: float | None = None
    seed: int = 0
    write_ratio: float = 0.5
    verify: bool = False
    cache_share: float = 0.0
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class GuestReport:
    """What a guest did. `faults` waited for a machine frame, a page from the swap file, or a copy of a shared one.

    `verified_pages` were compared in all their bytes; `unknown_pages` could not be, because they were not this guest's and it had not seen
    them before. `errors` counts page frames, `findings` describes the first ten.
    """

    ops: int
    faults: int
    swap_ins: int
    swap_outs: int
    shares_broken: int
    pauses: int
    faults_p50_us: float
    faults_p99_us: float
    verified_pages: int
    unknown_pages: int
    errors: int
    resident_pages: int
    seconds: float
    ended_by: str
    findings: tuple[str, ...]
    failure: NvmtoolError | None


def run_guest(host: Host, name: str, options: GuestOptions, *, stop: Stop, progress: Progress = None) -> GuestReport:
    """Run a guest on a VM until its operations, its time, `stop`, or a suspension or power-off by somebody else end it.

    Its memory stays in the VM. Other processes may take the VM's turn at any time: the guest pauses for them. When no machine frame can be
    had, the report says why in `failure`. Raises RefusedError for a VM that does not run, BusyError while another guest is at work.
    """
    vm = host.vm(name)
    if vm.state != lay.ON:
        raise RefusedError(f"VM {name}: is {vm.state_name}; power it on first")
    with host.guest_place(vm), host.vm_turns([vm.number]):
        return _Guest(host, host.vm_numbered(vm.number), options, stop, progress).run()


class _Guest:
    def __init__(self, host: Host, vm: Vm, options: GuestOptions, stop: Stop, progress: Progress) -> None:
        self.host, self.vm, self.options, self.stop, self.progress = host, vm, options, stop, progress
        self.space = Space(host, vm)
        self.pattern = Pattern(vm.uuid)
        self.findings = Findings()
        self.latencies = Latencies()
        self.referenced = np.zeros(vm.memory_pages, np.uint8)
        self.kinds = bytearray(vm.memory_pages)
        self.driver = Driver(vm.memory_pages, vm.memory_pages - int(vm.memory_pages * options.cache_share))
        # Word 1 of each known page: its version, where it is of the pattern.
        self.known = np.zeros(vm.memory_pages, np.uint64)
        self.checksums = np.zeros(vm.memory_pages, np.uint32)
        self.version = time.time_ns() // 1000
        self.ops = self.broken = self.pauses = self.verified = self.unknown = 0
        self.failure: NvmtoolError | None = None

    def run(self) -> GuestReport:
        begun = time.monotonic()
        try:
            if self.options.ops != 0:
                self._work()
        except (NoSpaceError, RefusedError) as error:
            self.failure = error
        try:
            if self.options.verify and self.vm.state == lay.ON:
                self._verify()
        finally:
            if self.vm.state == lay.ON:
                self.driver.close(self.space)
                self.space.close()
        return GuestReport(
            ops=self.ops,
            faults=self.latencies.count,
            swap_ins=self.space.swap_ins,
            swap_outs=self.space.swap_outs,
            shares_broken=self.broken,
            pauses=self.pauses,
            faults_p50_us=self.latencies.percentile_us(500),
            faults_p99_us=self.latencies.percentile_us(990),
            verified_pages=self.verified,
            unknown_pages=self.unknown,
            errors=self.findings.errors,
            resident_pages=self.space.resident,
            seconds=round(time.monotonic() - begun, 6),
            ended_by="failure" if self.failure is not None else self.stop.reason or "ops",
            findings=tuple(self.findings.lines),
            failure=self.failure,
        )

    def _work(self) -> None:
        options, left = self.options, self.options.ops
        begun = time.monotonic()
        deadline = begun + options.seconds if options.seconds is not None else None
        for frames, writes in iter_accesses(options.workload, self.vm.memory_pages, seed=options.seed, write_ratio=options.write_ratio):
            if options.ops is not None and self.progress is not None:
                self.progress(self.ops, options.ops, "operations")
            for start in range(0, len(frames), _OPS_AT_ONCE):
                if self.stop.reason or not self._let_others():
                    return
                count = _OPS_AT_ONCE if left is None else min(left, _OPS_AT_ONCE)
                self._access(frames[start : start + count], writes[start : start + count])
                self.driver.tick(self.space, self.referenced, self.known == _OF_FILE)
                if left is not None:
                    left -= count
                    if left == 0:
                        self.stop.ask("ops")
                if options.rate:
                    time.sleep(max(begun + self.ops / options.rate - time.monotonic(), 0))
                if deadline is not None and time.monotonic() >= deadline:
                    self.stop.ask("seconds")

    def _access(self, frames: list[int], writes: list[bool]) -> None:
        words, memory, kinds, known, referenced = self.space.map.words, self.space.memory, self.kinds, self.known.data, self.referenced.data
        first_cache, touched = self.driver.first_cache, self.driver.touched.data
        for ppn, wants_write in zip(frames, writes, strict=True):
            is_write = wants_write and ppn < first_cache
            word = words[ppn]
            if word == 0 or (is_write and word & _FLAG):
                self._fault(ppn, is_write)
                words = self.space.map.words
                word = words[ppn]
            page = memory.words((word & ~_FLAG) - 1)
            if not kinds[ppn]:
                self._learn(ppn, page)
            elif int(page[1]) != known[ppn]:
                self._report(ppn, page, "in memory")
            if is_write:
                self.version += 1
                self.pattern.stamp(page, ppn, self.version)
                kinds[ppn], known[ppn] = _PATTERN, self.version
            referenced[ppn] = touched[ppn] = 1
            self.ops += 1

    def _fault(self, ppn: int, is_write: bool) -> None:
        start = time.perf_counter_ns()
        self.driver.take_back(self.space, ppn)
        most = min(self.vm.most_pages, self.space.map.get("most_resident") or self.vm.most_pages)
        while self.space.resident >= most and not self.space.map.words[ppn]:
            self._swap_out_own()
        while True:
            word = self.space.map.words[ppn]
            try:
                if is_write:
                    self.space.own(ppn)
                else:
                    self.space.fault(ppn)
                break
            except NoSpaceError:
                self.space = find_frames(self.space, _SWAP_OUT_PAGES, self.referenced)
                self.vm = self.space.vm
        self.broken += bool(word & _FLAG)
        if ppn >= self.driver.first_cache and not word:
            self._read_from_file(ppn)
        self.latencies.add(time.perf_counter_ns() - start)

    def _read_from_file(self, ppn: int) -> None:
        """Fill a page of cache that came out of nowhere; one that was swapped out has its contents."""
        page = self.space.memory.words((self.space.map.words[ppn] & ~_FLAG) - 1)
        if not page[1]:
            self.pattern.stamp(page, ppn, _OF_FILE)
            self.kinds[ppn], self.known[ppn] = _PATTERN, _OF_FILE

    def _swap_out_own(self) -> None:
        count = min(_SWAP_OUT_PAGES, max(self.space.resident // 8, 1))
        self.space.swap_out(self.space.choose(count, self.referenced))

    def _let_others(self) -> bool:
        """Pause while somebody wants the VM; return whether it still runs afterwards."""
        if not self.host.is_wanted(self.vm.number):
            return True
        self.pauses += 1
        self.space.close()
        with self.host.pause_turn(self.vm.number):
            pass
        self.vm = self.host.vm_numbered(self.vm.number)
        if self.vm.state != lay.ON:
            self.stop.ask(f"VM {self.vm.state_name}")
            return False
        self.space = return_to(self.space)
        return True

    def _learn(self, ppn: int, page: NDArray[np.uint64]) -> None:
        """Take a page as it is, whose contents this guest has not seen before."""
        found = self.pattern.identify(page)
        self.known[ppn] = page[1]
        if found is None:
            self.kinds[ppn], self.checksums[ppn] = _FOREIGN, zlib.crc32(page.tobytes())
        elif found not in ((-1, 0), (ppn, int(page[1]))):
            self.findings.add(ppn, "in memory", describe(self.pattern, page, ppn, None, "a page of its own"))
            self.kinds[ppn] = _FOREIGN
            self.checksums[ppn] = zlib.crc32(page.tobytes())
        else:
            self.kinds[ppn] = _PATTERN
            self.version = max(self.version, found[1])

    def _report(self, ppn: int, page: NDArray[np.uint64], where: str) -> None:
        version = int(self.known[ppn])
        self.findings.add(ppn, where, describe(self.pattern, page, ppn, version, f"version {version}"))
        self.kinds[ppn] = _UNKNOWN
        self._learn(ppn, page)

    def _verify(self) -> None:
        """Compare every page that this guest knows, in memory and in the swap file, in all its bytes."""
        npages = self.vm.memory_pages
        for ppns, mpns in self.space.iter_rows(0, npages):
            for ppn, mpn in zip(ppns.tolist(), mpns.tolist(), strict=True):
                self._compare(ppn, self.space.memory.words(mpn), "in memory")
        swap = self.space.swap
        if swap is None:
            return
        buffer = page_buffer(_VERIFY_PAGES)
        for start in range(0, npages, _VERIFY_PAGES):
            frames = np.arange(start, min(start + _VERIFY_PAGES, npages))
            frames = frames[(swap.states(frames) >= 0) & (self.space.map.array[frames] == 0)]
            if len(frames):
                swap.read_pages(frames, buffer)
                for row, ppn in enumerate(frames.tolist()):
                    self._compare(ppn, buffer[row].view("<u8"), "in its slot")
            if self.progress is not None:
                self.progress(min(start + _VERIFY_PAGES, npages), npages, "pages")

    def _compare(self, ppn: int, page: NDArray[np.uint64], where: str) -> None:
        kind, version = self.kinds[ppn], int(self.known[ppn])
        if kind == _UNKNOWN:
            self._learn(ppn, page)
            self.unknown += self.kinds[ppn] == _FOREIGN
            self.verified += self.kinds[ppn] == _PATTERN
            return
        sound = zlib.crc32(page.tobytes()) == self.checksums[ppn] if kind == _FOREIGN else self.pattern.holds(page, ppn, version)
        self.verified += 1
        if not sound:
            self._report(ppn, page, where)
