"""Find machine frames of equal content and let their page frames share one (T3): hash, then compare.

The hash is a CRC-32C, which the machine computes at memory speed; bytes decide, so a collision costs a comparison and never a wrong share.
Memory used: 20 bytes per page frame looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..media.checksum import block_crc32c
from . import layout as lay
from .maps import split_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..media.mapping import FrameMemory
    from .frames import FrameTable
    from .host import Host
    from .maps import VmMap
    from .records import Vm

    Ints = NDArray[np.int64]
    Progress = Callable[[int, int, str], None] | None

_HASH_PAGES = 1 << 12
_APPLY_PAGES = 1 << 14
_COMPARE_PAGES = 1 << 10
_VM_SHIFT = 40


@dataclass(frozen=True, slots=True)
class Shared:
    """What sharing found: page frames looked at, frames that came free, in all and per VM (name and frames), and those of zeros."""

    pages_scanned: int
    frames_saved: int
    saved_by_vm: tuple[tuple[str, int], ...]
    zero_pages: int


@dataclass(frozen=True, slots=True)
class Candidates:
    """Page frames whose hash another has too, those with one hash side by side: `keys` are VM number << 40 | PPN, `mpns` where they were.

    `first` tells per page frame which of them is the first with this hash.
    """

    keys: Ints
    mpns: Ints
    first: Ints
    npages: int


def share(host: Host, *, progress: Progress = None) -> Shared:
    """Share frames of equal content among all VMs that run, zero frames included; they pause for a batch each.

    Killed anywhere, the frame table is made anew from the maps, and no page has changed. Raises BusyError.
    """
    with host.frames_turn():
        pass  # brings in order what a killed process left
    found = plan_sharing(host, progress=progress)
    saved: dict[int, int] = {}
    zeros = 0
    for start in range(0, len(found.keys), _APPLY_PAGES):
        stop = min(start + _APPLY_PAGES, len(found.keys))
        zeros += _apply(host, found, start, stop, saved)
        if progress is not None:
            progress(stop, len(found.keys), "pages")
    names = {vm.number: vm.name for vm in host.all_vms()}
    by_vm = tuple((names[number], count) for number, count in sorted(saved.items()) if number in names)
    return Shared(found.npages, sum(saved.values()), by_vm, zeros)


def plan_sharing(host: Host, *, progress: Progress = None) -> Candidates:
    """Hash every frame that a running VM has, each once, and find equal ones; VMs go on meanwhile, so this is a glance."""
    keys, mpns = _page_frames(host)
    distinct, back = np.unique(mpns, return_inverse=True)
    hashes = hash_frames(host.memory, distinct, progress)[back]
    order = np.argsort(hashes, kind="stable")
    hashes, keys, mpns = hashes[order], keys[order], mpns[order]
    begins = np.concatenate([[True], hashes[1:] != hashes[:-1]]) if len(hashes) else np.empty(0, bool)
    first = np.maximum.accumulate(np.where(begins, np.arange(len(hashes)), 0))
    lengths = np.bincount(first, minlength=len(hashes))[first]
    # Where all have one frame already there is nothing to gain.
    lowest, highest = _by_group(mpns, first)
    chosen = (lengths > 1) & (lowest != highest)
    moved = np.cumsum(chosen) - 1
    return Candidates(keys[chosen], mpns[chosen], moved[first[chosen]], len(hashes))


def hash_frames(memory: FrameMemory, mpns: Ints, progress: Progress = None) -> NDArray[np.uint32]:
    """Return the CRC-32C of distinct frames."""
    crc = block_crc32c()
    hashes = np.empty(len(mpns), np.uint32)
    for start in range(0, len(mpns), _HASH_PAGES):
        batch = mpns[start : start + _HASH_PAGES].tolist()
        hashes[start : start + len(batch)] = [crc(memory.page(mpn)) for mpn in batch]
        if progress is not None:
            progress(start + len(batch), len(mpns), "pages")
    return hashes


def _page_frames(host: Host) -> tuple[Ints, Ints]:
    """Return (keys, MPNs) of all page frames of running VMs that are in memory."""
    keys: list[Ints] = [np.empty(0, np.int64)]
    mpns: list[Ints] = [np.empty(0, np.int64)]
    for vm in host.all_vms():
        if vm.state == lay.ON:
            vm_map = host.map_of(vm)
            for ppns, found, _ in vm_map.iter_present():
                keys.append(ppns | vm.number << _VM_SHIFT)
                mpns.append(found)
            vm_map.close()
    return np.concatenate(keys), np.concatenate(mpns)


def _by_group(mpns: Ints, first: Ints) -> tuple[Ints, Ints]:
    if not len(mpns):
        return mpns, mpns
    begins = np.flatnonzero(first == np.arange(len(first)))
    at = np.searchsorted(begins, first)
    return np.minimum.reduceat(mpns, begins)[at], np.maximum.reduceat(mpns, begins)[at]


def _apply(host: Host, found: Candidates, start: int, stop: int, saved: dict[int, int]) -> int:
    """Share what of a stretch is still as it was and equal; return how many frames of zeros came free."""
    first = found.first[start:stop]
    # The representative of a group that began in an earlier stretch is looked up again.
    at = np.concatenate([np.arange(start, stop), np.unique(first[first < start])])
    keys, mpns, first = found.keys[at], found.mpns[at], found.first[at]
    numbers = (keys >> _VM_SHIFT).astype(np.int64)
    with host.vm_turns(np.unique(numbers).tolist()):
        vms = {vm.number: vm for vm in host.all_vms() if vm.state == lay.ON}
        maps = {number: host.map_of(vms[number]) for number in np.unique(numbers).tolist() if number in vms}
        try:
            with host.frames_turn() as frames:
                return _Batch(host, frames, maps, vms, keys, mpns, found.first[at], at).apply(saved)
        finally:
            for vm_map in maps.values():
                vm_map.close()


class _Batch:
    """One stretch of candidates in a turn of all their VMs."""

    def __init__(
        self, host: Host, frames: FrameTable, maps: dict[int, VmMap], vms: dict[int, Vm], keys: Ints, mpns: Ints, first: Ints, at: Ints
    ) -> None:
        self.host, self.frames, self.maps, self.vms = host, frames, maps, vms
        self.numbers, self.ppns = keys >> _VM_SHIFT, keys & ((1 << _VM_SHIFT) - 1)
        self.mpns, self.first, self.at = mpns, first, at

    def apply(self, saved: dict[int, int]) -> int:
        present, shared, now = self._look_again()
        # Where the first one has moved meanwhile, the group waits for the next scan.
        position = {index: place for place, index in enumerate(self.at.tolist())}
        leaders = np.array([position[index] for index in self.first.tolist()], np.int64)
        good = present & present[leaders] & (now != now[leaders])
        targets = now[leaders]
        chosen = np.flatnonzero(good)
        equal = self._equal(now[chosen], targets[chosen])
        chosen = chosen[equal]
        if not len(chosen):
            return 0
        park = self.frames.get("suspended") > 0
        free_before = self.frames.free_pages
        heads = np.unique(leaders[chosen])
        self._flag(heads[~shared[heads]], now)
        self._rename(chosen, targets)
        old, was_shared = now[chosen], shared[chosen]
        self.frames.set_all(old[~was_shared], lay.FREE)
        self.frames.drop_shares(old[was_shared], park=park)
        self.frames.add_shares(targets[chosen])
        self._count(saved, chosen, old, was_shared, self.frames.free_pages - free_before)
        zero_targets = np.unique(targets[chosen])
        zeros = [mpn for mpn in zero_targets.tolist() if not self.host.memory.words(mpn).any()]
        return int(np.isin(targets[chosen], zeros).sum())

    def _look_again(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Ints]:
        """Return whether each page frame is in memory still, whether it shares its frame, and which that is now."""
        words = np.zeros(len(self.ppns), np.uint64)
        for number, vm_map in self.maps.items():
            of_vm = self.numbers == number
            words[of_vm] = vm_map.array[self.ppns[of_vm]]
        mpns, shared = split_words(words)
        return words != 0, shared, mpns

    def _equal(self, old: Ints, targets: Ints) -> NDArray[np.bool_]:
        equal = np.empty(len(old), bool)
        first = np.empty((min(len(old), _COMPARE_PAGES), lay.PAGE), np.uint8)
        second = np.empty_like(first)
        for start in range(0, len(old), _COMPARE_PAGES):
            count = min(_COMPARE_PAGES, len(old) - start)
            self.host.memory.read(old[start : start + count], first[:count])
            self.host.memory.read(targets[start : start + count], second[:count])
            equal[start : start + count] = (first[:count].view("<u8") == second[:count].view("<u8")).all(axis=1)
        return equal

    def _flag(self, heads: Ints, now: Ints) -> None:
        """Let the frames that others are to share be shared ones, with the one who has them as the first."""
        for number, vm_map in self.maps.items():
            own = heads[self.numbers[heads] == number]
            vm_map.put_all(self.ppns[own], now[own], shared=True)
        self.frames.set_all(now[heads], lay.SHARED, 1)

    def _rename(self, chosen: Ints, targets: Ints) -> None:
        for number, vm_map in self.maps.items():
            own = chosen[self.numbers[chosen] == number]
            vm_map.put_all(self.ppns[own], targets[own], shared=True)

    def _count(self, saved: dict[int, int], chosen: Ints, old: Ints, was_shared: NDArray[np.bool_], freed: int) -> None:
        """Credit each VM with its frames that came free; those of frames that were shared go to the last who left."""
        private = self.numbers[chosen][~was_shared]
        for number, count in zip(*np.unique(private, return_counts=True), strict=True):
            saved[int(number)] = saved.get(int(number), 0) + int(count)
        rest = freed - len(private)
        if rest > 0:
            last = int(self.numbers[chosen][was_shared][-1])
            saved[last] = saved.get(last, 0) + rest
