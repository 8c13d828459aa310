"""The memory of one running VM, in the hands of the process that has its turn: faults, copy-on-write, swapping out and in.

A page frame is in a machine frame (its own or shared), in a slot of the VM's swap file, or was never touched and reads as zeros. Killed
anywhere, what the VM wrote last is in one of these: a word of the map counts more than a slot, because a page is in memory before its
slot is given up and stays there until the slot that holds it is durable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from ..errors import NoSpaceError, RefusedError
from ..swap.swapfile import SwapFile
from . import layout as lay
from .maps import split_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .host import Host
    from .records import Vm

    Ints = NDArray[np.int64]

ZEROS = bytes(lay.PAGE)
_FLAG = lay.SHARED_FLAG
# Frames that a process takes at a time, to hand out without a turn at the table.
_MAGAZINE = 64
_MOST_UNCOMMITTED = 1024
_SWAP_OUT_PAGES = 512
_WINDOW = 1 << 18


class Space:
    """A running VM's memory. The caller has the VM's turn as long as this is open."""

    def __init__(self, host: Host, vm: Vm) -> None:
        """Open the map, and bring in order what a killed process left; raises NotFoundError when the memory went with an earlier life."""
        self.host = host
        self.vm = vm
        self.memory = host.memory
        self.map = host.map_of(vm)
        self._magazine: list[int] = []
        self._swap: SwapFile | None = None
        self._looked_for_swap = False
        self._uncommitted = 0
        self.swap_ins = self.swap_outs = 0
        if self.map.get("working"):
            self._recover()
        self.map.put("working", 1)
        self.resident = sum(len(ppns) for ppns, _, _ in self.map.iter_present(vm.cursor))

    def __enter__(self) -> Self:
        """Return the space."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Close it; after an exception the next one who has the turn brings things in order."""
        self.close(in_order=error is None)

    @property
    def swap(self) -> SwapFile | None:
        """The VM's swap file, or None while it has none. Where map and file both have a page, the file's is forgotten."""
        if not self._looked_for_swap:
            path = self.host.swap_path(self.vm)
            if path.exists():
                reservation = self.host.reservation_path(self.host.pool_numbered(self.vm.pool))
                self._swap = SwapFile.open(path, writable=True, reservation=reservation)
                self._forget_doubles(self._swap)
            self._looked_for_swap = True
        return self._swap

    def require_swap(self) -> SwapFile:
        """Return the VM's swap file; raises RefusedError while it has none."""
        if self.swap is None:
            raise RefusedError(f"VM {self.vm.name}: has no swap yet, all of its memory is granted; nvmtool vm settle makes some")
        return self.swap

    def page(self, ppn: int) -> memoryview:
        """Return the 4096 bytes of a page frame that is in memory, to read; to write only after `own`."""
        return self.memory.page((self.map.words[ppn] & ~_FLAG) - 1)

    def fault(self, ppn: int) -> int:
        """Bring a page frame into memory and return its machine frame; raises NoSpaceError when no machine frame is free."""
        word = self.map.words[ppn]
        if word:
            return (word & ~_FLAG) - 1
        mpn = self._take_one()
        try:
            self.map.allocate(np.array([ppn]))
            if self.swap is not None and self.swap.state_of(ppn) >= 0:
                self.swap.swap_in(ppn, self.memory.page(mpn))
                self._uncommitted += 1
                self.swap_ins += 1
            else:
                self.memory.page(mpn)[:] = ZEROS
        except BaseException:  # an interrupt too: the frame is nobody's yet
            self._magazine.append(mpn)
            raise
        self.map.put_all(np.array([ppn]), np.array([mpn]), shared=False)
        self.resident += 1
        if self._uncommitted >= _MOST_UNCOMMITTED:
            self.commit()
        return mpn

    def own(self, ppn: int) -> int:
        """Bring a page frame into a machine frame of its own, to be written, and return that; sharing is broken. Raises NoSpaceError."""
        mpn = self.fault(ppn)
        if not self.map.words[ppn] & _FLAG:
            return mpn
        ppns, old = np.array([ppn]), np.array([mpn])
        self._fill_magazine()
        with self.host.frames_turn() as frames:
            suspended = frames.get("suspended") > 0
            if not suspended and int(frames.values(old)[0]) == 1:
                # Nobody else names it, and no suspended VM may: it need not be copied.
                frames.set_all(old, lay.PRIVATE, self.vm.number)
                self.map.put_all(ppns, old, shared=False)
                return mpn
            new = self._magazine.pop() if self._magazine else -1
            if new >= 0:
                self.memory.page(new)[:] = self.memory.page(mpn)
                self.map.put_all(ppns, np.array([new]), shared=False)
                frames.drop_shares(old, park=suspended)
        if new < 0:
            raise self._no_frame()
        return new

    def own_many(self, ppns: Ints) -> Ints:
        """Give page frames that are untouched or in slots machine frames of their own, whose contents are undefined; return the MPNs.

        For whoever writes all of each page. Raises NoSpaceError, and then changes nothing.
        """
        self.map.allocate(ppns)
        with self.host.frames_turn() as frames:
            mpns = frames.take(len(ppns), self.vm.number)
            if len(mpns) < len(ppns):
                frames.set_all(mpns, lay.FREE)
        if len(mpns) < len(ppns):
            raise self._no_frame()
        return mpns

    def name(self, ppns: Ints, mpns: Ints) -> None:
        """Let page frames name frames that were filled; what they had in slots is forgotten."""
        self.map.put_all(ppns, mpns, shared=False)
        self.resident += len(ppns)
        if self.swap is not None:
            swapped = ppns[self.swap.states(ppns) >= 0]
            for start in range(0, len(swapped), self.swap.max_batch):
                self.swap.forget(swapped[start : start + self.swap.max_batch])
                self.swap.commit()

    def drop(self, ppns: Ints) -> None:
        """Free what page frames have in memory; in slots they keep what they have there."""
        words = self.map.array[ppns]
        ppns, words = ppns[words != 0], words[words != 0]
        mpns, shared = split_words(words)
        with self.host.frames_turn() as frames:
            self.map.clear(ppns)
            frames.set_all(mpns[~shared], lay.FREE)
            frames.drop_shares(mpns[shared], park=frames.get("suspended") > 0)
        self.resident -= len(ppns)

    def swap_out(self, ppns: Ints) -> int:
        """Write page frames that are in memory to the swap file and free their frames; return how many went before there was no more room.

        Raises RefusedError without a swap file, and NoSpaceError or RefusedError when there is room for none.
        """
        swap = self.require_swap()
        done = 0
        most = min(swap.max_batch, _SWAP_OUT_PAGES)
        while done < len(ppns):
            batch = ppns[done : done + most]
            mpns, _ = split_words(self.map.array[batch])
            try:
                swap.swap_out(batch, [self.memory.page(mpn) for mpn in mpns.tolist()])
            except (NoSpaceError, RefusedError):
                if len(batch) > 1:
                    most = len(batch) // 2
                    continue
                if done == 0:
                    raise
                break
            self._uncommitted = 0
            self.drop(batch)
            self.swap_outs += len(batch)
            done += len(batch)
        return done

    def choose(self, count: int, referenced: NDArray[np.uint8] | None = None, *, hand: int = 0) -> Ints:
        """Return up to `count` page frames to swap out next: from `hand` on, not referenced lately, those that share nothing first.

        Clears the bytes of `referenced` that it passes (second chance).
        """
        order = ((hand, self.vm.memory_pages), (0, hand))
        found: Ints = np.empty(0, np.int64)
        for want_shared, second in ((False, False), (False, True), (True, True)):
            for start, stop in order:
                for ppns, _, shared in self.map.iter_present(start, stop):
                    fit = shared == want_shared
                    if referenced is not None and not second:
                        fit &= referenced[ppns] == 0
                        referenced[ppns] = 0
                    found = np.concatenate([found, np.setdiff1d(ppns[fit], found, assume_unique=True)[: count - len(found)]])
                    if len(found) == count:
                        return np.sort(found)
        return np.sort(found)

    def iter_rows(self, start: int, stop: int) -> Iterator[tuple[Ints, Ints]]:
        """Yield (PPNs, MPNs) of page frames in memory; see VmMap.iter_present."""
        for ppns, mpns, _ in self.map.iter_present(start, stop):
            yield ppns, mpns

    def commit(self) -> None:
        """Make swap-ins durable, so that their slots come back."""
        if self._swap is not None:
            self._swap.commit()
        self._uncommitted = 0

    def give_back_magazine(self) -> None:
        """Free the frames that are at hand but hold nothing."""
        if self._magazine:
            with self.host.frames_turn() as frames:
                frames.set_all(np.array(self._magazine, np.int64), lay.FREE)
            self._magazine.clear()

    def close_swap(self) -> None:
        """Commit and close the swap file, so that others may open it."""
        if self._swap is not None:
            self._swap.close()
        self._swap, self._looked_for_swap, self._uncommitted = None, False, 0

    def close(self, *, in_order: bool = True) -> None:
        """Close map and swap file; in order, nothing is left to bring in order."""
        try:
            if in_order:
                self.give_back_magazine()
                self.close_swap()
                self.map.put("working", 0)
            elif self._swap is not None:
                self._swap.close(commit=False)
        finally:
            self.map.close()

    def _take_one(self) -> int:
        self._fill_magazine()
        if not self._magazine:
            raise self._no_frame()
        return self._magazine.pop()

    def _fill_magazine(self) -> None:
        if not self._magazine:
            with self.host.frames_turn() as frames:
                count = max(min(_MAGAZINE, frames.free_pages // _MAGAZINE), 1)
                self._magazine = frames.take(count, self.vm.number)[::-1].tolist()

    def _no_frame(self) -> NoSpaceError:
        return NoSpaceError(f"{self.host.path}: no machine frame is free for VM {self.vm.name}; nvmtool host balance makes room")

    def _recover(self) -> None:
        """Free the frames that a killed process had at hand: the VM's by the table, and named by no page frame."""
        with self.host.frames_turn() as frames:
            owned = frames.of_kind(lay.PRIVATE, self.vm.number)
            named = [mpns[~shared] for _, mpns, shared in self.map.iter_present(self.vm.cursor)]
            frames.set_all(np.setdiff1d(owned, np.concatenate([owned[:0], *named]), assume_unique=True), lay.FREE)

    def _forget_doubles(self, swap: SwapFile) -> None:
        for ppns, _, _ in self.map.iter_present(self.vm.cursor):
            doubled = ppns[swap.states(ppns) >= 0]
            for start in range(0, len(doubled), swap.max_batch):
                swap.forget(doubled[start : start + swap.max_batch])
                swap.commit()
