"""Storage that moves between a reservation and a swap file, neither of which has more or less of it afterwards.

Where the file system clones, the very block moves: the range is cloned, then punched where it was. Elsewhere storage is allocated on one
side before it is punched on the other, so that there is never less than was promised. Words are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NoSpaceError, NvmtoolError, StorageError
from ..media.pagefile import page_buffer
from ..media.store import PAGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..media.pagefile import PageFile

    Ints = NDArray[np.int64]

_ZEROS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BlockArea:
    """Blocks of one file, block 0 at `data_offset` bytes."""

    pages: PageFile
    data_offset: int
    block_bytes: int

    def bounds(self, first: int, count: int) -> tuple[int, int]:
        """Return (offset, length) in bytes of a run of blocks."""
        return self.data_offset + first * self.block_bytes, count * self.block_bytes

    def punch(self, first: int, count: int) -> None:
        """Give the storage of a run back to the file system."""
        self.pages.punch(*self.bounds(first, count))

    def is_written(self, first: int, count: int) -> bool:
        """Tell whether all of a run has storage that was written, so that a clone has it too."""
        extents = self.pages.extents(*self.bounds(first, count))
        return sum(extent.length for extent in extents if extent.written) == count * self.block_bytes


class Headroom:
    """Storage past a reservation's end, for the moment in which a full file system has none for a move.

    Even a clone or a punch needs some, for the file system's trees; cutting off what is past the end needs none. What was spent is taken
    back as soon as there is space again.
    """

    def __init__(self, pages: PageFile, nbytes: int) -> None:
        """Stand on an open reservation that is to have so many bytes past its end."""
        self._pages = pages
        self._nbytes = nbytes
        self._spent = False

    def spend(self) -> bool:
        """Give what is there back to the file system, which may use it on return; False when nothing is there."""
        if not self._stored():
            return False
        self._spent = True
        self._pages.trim()
        # A file system may keep what was freed until it is durable.
        self._pages.fence()
        return True

    def refill(self) -> None:
        """Allocate what was spent, by this process or by one that was killed, as far as there is space; the rest is tried again later."""
        # Full file systems refuse to allocate even what is there.
        if self._stored() < self._nbytes:
            with suppress(NoSpaceError):
                self._pages.allocate(self._pages.size, self._nbytes)
                self._spent = False

    def refill_if_spent(self) -> None:
        """Allocate what this process spent."""
        if self._spent:
            self.refill()

    def _stored(self) -> int:
        try:
            return self._pages.stored_bytes(self._pages.size, self._nbytes)
        except StorageError:  # a file system that does not tell
            return 0 if self._spent else self._nbytes


@dataclass(frozen=True, slots=True)
class BlockMover:
    """Moves storage between the blocks of a reservation and those of one swap file. Durable after a fence of both."""

    reserved: BlockArea
    storage: BlockArea
    clones: bool
    headroom: Headroom

    def lend(self, reserved: Ints, storage: Ints) -> None:
        """Move the storage of reserved blocks to storage blocks, which have none; undone when an exception passes.

        Raises NoSpaceError where storage must be allocated and another has taken what the punch set free.
        """
        done = 0
        try:
            for first, other, count in joint_runs(reserved, storage):
                self._with_headroom(self._lend_run, first, other, count)
                done += count
        except NvmtoolError:
            self.bring_back(reserved[:done], storage[:done])
            raise

    def bring_back(self, reserved: Ints, storage: Ints) -> None:
        """Move the storage of storage blocks back; also from what a killed `lend` or `bring_back` left.

        Afterwards each reserved block has storage, and no storage block has. Raises NoSpaceError.
        """
        for first, other, count in joint_runs(reserved, storage):
            self._with_headroom(self._bring_back_run, first, other, count)

    def _with_headroom(self, move: Callable[[int, int, int], None], first: int, other: int, count: int) -> None:
        """Move a run; where the file system has no space for that, once more with what the reservation keeps for it."""
        try:
            move(first, other, count)
        except NoSpaceError:
            if not self.headroom.spend():
                raise
            self.bring_back(np.arange(first, first + count), np.arange(other, other + count))
            if move == self._lend_run:
                move(first, other, count)

    def _lend_run(self, first: int, other: int, count: int) -> None:
        source, target = self.reserved.bounds(first, count), self.storage.bounds(other, count)
        try:
            if not (self.clones and self.storage.pages.clone_from(self.reserved.pages, source[0], *target)):
                self._allocate_for(first, count, target)
        except NvmtoolError:
            # Before a clone is whole nothing was punched; an allocation gave the reserved storage up for its last try.
            self.storage.punch(other, count)
            if not (self.clones and self.reserved.is_written(first, count)):
                fill(self.reserved, first, count, written=self.clones)
            raise
        self.reserved.punch(first, count)

    def _allocate_for(self, first: int, count: int, target: tuple[int, int]) -> None:
        try:
            self.storage.pages.allocate(*target)
        except NoSpaceError:
            self.reserved.punch(first, count)
            # A file system may keep what was freed until it is durable.
            self.reserved.pages.fence()
            self.storage.pages.allocate(*target)

    def _bring_back_run(self, first: int, other: int, count: int) -> None:
        if self.clones:
            if self.storage.is_written(other, count) and self._clone_back(first, other, count):
                self.storage.punch(other, count)
                return
            if count > 1:  # after a kill the blocks of one run may be in different states
                for index in range(count):
                    self._bring_back_run(first + index, other + index, 1)
                return
            if self.reserved.is_written(first, 1):
                self.storage.punch(other, 1)
                return
        self._allocate_back(first, other, count)

    def _clone_back(self, first: int, other: int, count: int) -> bool:
        source, target = self.storage.bounds(other, count), self.reserved.bounds(first, count)
        return self.reserved.pages.clone_from(self.storage.pages, source[0], *target)

    def _allocate_back(self, first: int, other: int, count: int) -> None:
        try:
            fill(self.reserved, first, count, written=self.clones)
            self.storage.punch(other, count)
        except NoSpaceError:
            self.storage.punch(other, count)
            # A file system may keep what was freed until it is durable.
            self.storage.pages.fence()
            fill(self.reserved, first, count, written=self.clones)


def fill(area: BlockArea, first: int, count: int, *, written: bool) -> None:
    """Give a run of blocks storage, written with zeros where blocks are cloned; raises NoSpaceError."""
    if written:
        write_zeros(area, first, count)
    else:
        area.pages.allocate(*area.bounds(first, count))


def write_zeros(area: BlockArea, first: int, count: int) -> None:
    """Give a run of blocks storage that is written, as cloning needs it; raises NoSpaceError.

    Each block is written by itself: a file system that copies on write then frees its extent as soon as the block is overwritten.
    """
    zeros = page_buffer(_ZEROS_BYTES // PAGE).data.cast("B")
    for block in range(first, first + count):
        offset, length = area.bounds(block, 1)
        chunks = [zeros[: min(_ZEROS_BYTES, length - start)] for start in range(0, length, _ZEROS_BYTES)]
        area.pages.write(offset, chunks)


def joint_runs(reserved: Ints, storage: Ints) -> Iterator[tuple[int, int, int]]:
    """Yield (reserved block, storage block, count) of each run of pairs in which both numbers rise by one."""
    if not len(reserved):
        return
    breaks = np.flatnonzero((np.diff(reserved) != 1) | (np.diff(storage) != 1)) + 1
    bounds = [0, *breaks.tolist(), len(reserved)]
    for start, end in pairwise(bounds):
        yield int(reserved[start]), int(storage[start]), end - start
