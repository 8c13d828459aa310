"""A swap file's storage out of a reservation: blocks are lent to it and come home, and nothing is allocated besides (technique T8).

Two files cannot change in one transaction. The reservation speaks first (MOVING) and last (LENT or HELD); in between the swap file's own
word decides, after a kill, whose the block is (docs/format.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BusyError, DamagedError, FormatError, NotFoundError, NvmtoolError, RefusedError
from ..media import word
from ..media.imagefile import open_file
from ..media.journal import runs
from ..text import human
from .blockmove import BlockArea, BlockMover
from .layout import SWAP_FORMAT
from .reservationfile import ReservationFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..media.pagefile import PageFile
    from .lenders import Lender

    Ints = NDArray[np.int64]

_NOWHERE = -1
# A VM that must wait is better than one that ends: twice as long as a writer may wait for readers.
_FAULT_WAIT_SECONDS = 120.0


class Borrower:
    """The `Storage` (storage.py) of one swap file over a reservation that other processes use too.

    Only the holder of the swap file's WRITER lock may have a writable one.
    """

    def __init__(self, file: ReservationFile, lender: Lender, pages: PageFile, data_offset: int) -> None:
        """Stand on an open reservation, in a turn; `open` is the usual way."""
        self._file = file
        self._lender = lender
        self._area = BlockArea(pages, data_offset, file.block_bytes)
        self._mover = BlockMover(file.area, self._area, file.clones, file.headroom)
        # Per storage block the reserved block that it is, or _NOWHERE.
        self._home: Ints = np.empty(0, np.int64)
        # Storage blocks whose words still say MOVING, though they are theirs: said with the next transaction.
        self._unsaid: Ints = np.empty(0, np.int64)
        self._cursor = 0
        self._rebuild()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        reservation_uuid: bytes,
        swap_uuid: bytes,
        swap_path: Path,
        pages: PageFile,
        data_offset: int,
        block_bytes: int,
        writable: bool,
    ) -> Borrower:
        """Open a reservation on behalf of a swap file, and note where the swap file is now if it may be written.

        Raises NotFoundError, FormatError for another reservation, BusyError, or RefusedError for a copy of a swap file that is still where
        the reservation knows it, and for one that it does not know.
        """
        try:
            file = ReservationFile.open(path, writable=writable)
        except NotFoundError:
            raise NotFoundError(f"{swap_path}: its reservation {path} is gone; --reservation if it was moved") from None
        try:
            if file.uuid != reservation_uuid:
                raise FormatError(f"{path}: another reservation (uuid {file.uuid_text}) than the one that {swap_path} borrows from")
            if file.block_bytes != block_bytes:
                raise FormatError(f"{path}: has blocks of {file.block_bytes} bytes, those of {swap_path} are {block_bytes}")
            lender = _require_lender(file, swap_uuid, swap_path)
            if os.fstat(pages.fd).st_dev != os.fstat(file.fd).st_dev:
                raise RefusedError(f"{swap_path}: is not on the file system of its reservation {path}")
            if writable:
                lender = _note_place(file, lender, swap_path)
            borrower = cls(file, lender, pages, data_offset)
            file.end_turn() if writable else file.end_reading()
        except BaseException:  # an interrupt too must not keep other borrowers waiting
            file.close()
            raise
        return borrower

    def take(self, blocks: Ints) -> None:
        """Let reserved blocks become these storage blocks, all or none; durable after the next fence of the swap file's pages.

        Raises RefusedError beyond the promise, BusyError, or NoSpaceError where storage cannot move and another took what was freed.
        """
        if not len(blocks):
            return
        with self._turn(blocks):
            # An earlier call that failed half-way may have left some.
            self._return(blocks[self._home[blocks] != _NOWHERE])
            lent = int(np.count_nonzero(self._home != _NOWHERE))
            if lent + len(blocks) > self._lender.promise:
                raise RefusedError(
                    f"{self._file.path}: {self._area.pages.path} was promised {self._bytes(self._lender.promise)} and has "
                    f"{self._bytes(lent)}; {self._bytes(len(blocks))} more is refused"
                )
            done = 0
            try:
                for start in range(0, len(blocks), self._file.batch):
                    part = blocks[start : start + self._file.batch]
                    self._lend(part)
                    done += len(part)
            except NvmtoolError:
                self._return(blocks[:done])
                raise

    def give_back(self, blocks: Ints) -> None:
        """Let storage blocks that durably hold no page become reserved blocks again; raises BusyError or NoSpaceError."""
        if len(blocks):
            with self._turn(blocks):
                lent = self._home[blocks] != _NOWHERE
                for first, count in runs(blocks[~lent]):
                    self._area.punch(first, count)
                self._return(blocks[lent])

    def is_unsettled(self) -> bool:
        """Tell whether a block was on its way when this was opened: its owner was killed, or a resize was."""
        mine = np.flatnonzero(self._home != _NOWHERE)
        return bool((self._kinds(mine) == word.MOVING).any())

    def recover(self, occupied: NDArray[np.bool_]) -> None:
        """Settle each block that a killed process was moving: the swap file's, if it holds pages there, else the reservation's."""
        with self._turn(np.empty(0, np.int64)):
            self._rebuild()
            mine = np.flatnonzero(self._home != _NOWHERE)
            if len(mine) and mine[-1] >= len(occupied):
                raise DamagedError(f"{self._file.path}: storage block {mine[-1]} is lent, {self._area.pages.path} has {len(occupied)}")
            self._return(mine[~occupied[mine]])
            theirs = mine[occupied[mine]]
            self._unsaid = theirs[self._kinds(theirs) == word.MOVING]
            self._finish_unsaid()

    def close(self) -> None:
        """Say what is not said yet, unless others keep the reservation busy; the swap file's pages stay open."""
        try:
            if len(self._unsaid):
                with suppress(BusyError, RefusedError), self._turn(self._unsaid, patient=False):
                    self._say_lent()
        finally:
            self._file.close()

    @contextmanager
    def _turn(self, blocks: Ints, *, patient: bool = True) -> Iterator[None]:
        """Work on the reservation alone, with a map that is right for these storage blocks; raises BusyError."""
        if not self._file.journal.writable:
            raise RefusedError(f"{self._file.path}: opened for reading")
        with self._file.turn(_FAULT_WAIT_SECONDS if patient else None):
            known = self._file.lenders.get(self._lender.number) if self._lender.number in self._file.lenders.numbers() else None
            if known is None or known.uuid != self._lender.uuid:
                raise RefusedError(f"{self._file.path}: has forgotten {self._area.pages.path}")
            self._lender = known
            if not self._is_as_remembered(np.concatenate([blocks, self._unsaid])):
                self._rebuild()
                self._unsaid = self._unsaid[self._home[self._unsaid] != _NOWHERE]
                # Relabelled by a resize: the storage of the block that now stands for it is one too many.
                self._punch_homes(self._unsaid)
            try:
                yield
            except BaseException:  # an interrupt too: how far it came is in the words alone
                self._home = self._home[:0]
                raise

    def _is_as_remembered(self, blocks: Ints) -> bool:
        if not len(self._home) or (len(blocks) and blocks.max() >= len(self._home)):
            return False
        blocks = blocks[self._home[blocks] != _NOWHERE]
        homes = self._home[blocks]
        if not len(homes):
            return True
        if homes.max() >= self._file.nblocks:
            return False
        fates = self._file.words.get(homes)
        return bool((fates.of(self._lender.number) & (fates.storage == blocks)).all())

    def _rebuild(self) -> None:
        fates = self._file.words.get_all(self._file.nblocks)
        homes = np.flatnonzero(fates.of(self._lender.number))
        storage = fates.storage[homes]
        nblocks = (os.fstat(self._area.pages.fd).st_size - self._area.data_offset) // self._file.block_bytes
        if len(storage) and storage.max() >= nblocks:
            raise DamagedError(f"{self._file.path}: storage block {storage.max()} is lent, {self._area.pages.path} has {nblocks}")
        if len(np.unique(storage)) != len(storage):
            raise DamagedError(f"{self._file.path}: lent two blocks as one storage block of {self._area.pages.path}; see what check finds")
        self._home = np.full(nblocks, _NOWHERE, np.int64)
        self._home[storage] = homes

    def _lend(self, blocks: Ints) -> None:
        homes = self._file.words.find_held(len(blocks), self._file.nblocks, min(self._cursor, self._file.nblocks))
        homes = np.sort(homes)
        self._settle_unsaid()
        with self._file.transaction():
            self._put_lent()
            self._file.words.put(homes, word.MOVING, self._lender.number, blocks)
        self._unsaid = self._unsaid[:0]
        try:
            self._mover.lend(homes, blocks)
        except NvmtoolError:
            self._put_home(homes)
            raise
        self._home[blocks] = homes
        self._unsaid = blocks.copy()
        self._cursor = int(homes[-1]) + 1

    def _return(self, blocks: Ints) -> None:
        """Bring storage blocks home that durably hold no page, lent or on their way."""
        for start in range(0, len(blocks), self._file.batch):
            part = blocks[start : start + self._file.batch]
            homes = self._home[part]
            self._unsaid = np.setdiff1d(self._unsaid, part)
            self._settle_unsaid()
            with self._file.transaction():
                self._put_lent()
                self._file.words.put(homes, word.MOVING, self._lender.number, part)
            self._unsaid = self._unsaid[:0]
            self._mover.bring_back(homes, part)
            self._put_home(homes)
            self._home[part] = _NOWHERE

    def _put_home(self, homes: Ints) -> None:
        self._fence()  # the block must be whole here before nobody remembers where it was
        with self._file.transaction():
            self._file.words.put_held(homes)

    def _finish_unsaid(self) -> None:
        """Finish lending blocks that hold pages; a batch at a time."""
        theirs = self._unsaid
        for start in range(0, len(theirs), self._file.batch):
            self._unsaid = theirs[start : start + self._file.batch]
            self._punch_homes(self._unsaid)
            self._say_lent()

    def _say_lent(self) -> None:
        self._settle_unsaid()
        with self._file.transaction():
            self._put_lent()
        self._unsaid = self._unsaid[:0]

    def _settle_unsaid(self) -> None:
        if len(self._unsaid):
            self._fence()  # what is said to be lent must be so

    def _put_lent(self) -> None:
        """Say with the open transaction that the last blocks are lent, which `_settle_unsaid` made durable."""
        self._file.words.put(self._home[self._unsaid], word.LENT, self._lender.number, self._unsaid)

    def _punch_homes(self, blocks: Ints) -> None:
        for first, count in runs(np.sort(self._home[blocks])):
            self._file.area.punch(first, count)

    def _kinds(self, blocks: Ints) -> NDArray[np.uint8]:
        return self._file.words.get(self._home[blocks]).kinds

    def _fence(self) -> None:
        # The reservation first: what came home must not be lost because what left the swap file is durable already.
        self._file.pages.fence()
        self._area.pages.fence()

    def _bytes(self, nblocks: int) -> str:
        return human(nblocks * self._file.block_bytes)


def _require_lender(file: ReservationFile, swap_uuid: bytes, swap_path: Path) -> Lender:
    lender = file.lenders.find(swap_uuid)
    if lender is None:
        raise RefusedError(f"{file.path}: does not know {swap_path}, it was promised nothing")
    return lender


def _note_place(file: ReservationFile, lender: Lender, swap_path: Path) -> Lender:
    stored = file.lenders.stored_path(swap_path)
    if stored == lender.stored_path:
        return lender
    refuse_copy(file, lender, swap_path)
    moved = replace(lender, stored_path=stored)
    with file.transaction():
        file.lenders.store(moved)
    return moved


def refuse_copy(file: ReservationFile, lender: Lender, swap_path: Path) -> None:
    """Raise RefusedError while the file at the known place is this swap file too: one promise cannot serve two."""
    known = file.lenders.location(lender)
    try:
        other = open_file(known, writable=False)
    except NvmtoolError:
        return
    try:
        is_copy = not _is_open_file(swap_path, other) and SWAP_FORMAT.read(known, other)["uuid"] == lender.uuid
    except NvmtoolError:
        return
    finally:
        os.close(other)
    if is_copy:
        raise RefusedError(f"{swap_path}: has the uuid of {known}, which borrows from {file.path} already; one of them is a copy")


def _is_open_file(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except OSError:
        return False
