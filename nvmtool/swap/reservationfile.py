"""An open reservation file: its locks, its root words, lenders and block words, and its blocks' storage.

Any number of processes write to one reservation, in turns: each holds WRITER for one short piece of work, and sees at its beginning what
the others did meanwhile (`turn`).
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from ..errors import DamagedError, FormatError
from ..media import lock
from ..media.imagefile import ImageFile, close_file, open_file, take_lock
from ..media.journal import Journal
from ..media.pagefile import PageFile
from ..media.root import Root
from ..media.store import open_store
from . import layout as lay
from .blockmove import BlockArea, Headroom
from .blockwords import BlockWords
from .lenders import LenderTable

# root word `mechanism`
CLONE, ALLOCATE = 1, 2
BLOCK_MOVES = {CLONE: "clone", ALLOCATE: "allocate"}

_TURN_WAIT_SECONDS = 10.0


class ReservationFile:
    """An open reservation. A writable one holds WRITER from the start, until `end_turn`; a reader holds CHECKPOINT shared."""

    def __init__(self, path: Path, fd: int, fields: dict[str, Any], *, writable: bool) -> None:
        """Replay the log of an open, locked file whose header says `fields`; `open` is the usual way."""
        self.path = path
        self.fields = fields
        self.uuid: bytes = fields["uuid"]
        self.block_bytes: int = fields["slots_per_block"] * lay.PAGE
        self.data_offset: int = fields["data_start"] * lay.PAGE
        store = open_store(path, fd, self.data_offset, writable=writable)
        self._file = ImageFile(store, fields["log_start"], fields["log_blocks"], writable=writable, fd=fd)
        self.transaction = self._file.transaction
        self.journal: Journal = self._file.journal
        self.fd = fd
        self.root = Root(self.journal, lay.RESERVATION_ROOT, lay.RESERVATION_ROOT_PLACE)
        self.lenders = LenderTable(self.journal, path, fields["lender_start"])
        self.words = BlockWords(self.journal, path, fields["block_start"])
        self.pages = PageFile(path, fd, writable=writable)
        self.area = BlockArea(self.pages, self.data_offset, self.block_bytes)
        self.headroom = Headroom(self.pages, lay.headroom_pages(fields["slots_per_block"]) * lay.PAGE)

    @classmethod
    def open(cls, path: Path, *, writable: bool, exclusive: bool = False) -> ReservationFile:
        """Open a reservation; `exclusive` keeps writers away from a reader too, so that nothing is in the middle of a move.

        Raises NotFoundError, FormatError, DamagedError, StorageError, or BusyError after ten seconds.
        """
        fd = open_file(path, writable=writable)
        try:
            fields = lay.RESERVATION_FORMAT.read(path, fd)
            _require_size(path, fd, fields["data_start"] * lay.PAGE)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise FormatError(f"{path}: a reservation must be a regular file")
            if exclusive and not writable:
                lock.lock(fd, path, lock.WRITER, exclusive=False, seconds=_TURN_WAIT_SECONDS)
            take_lock(fd, path, writable=writable, seconds=_TURN_WAIT_SECONDS)
            file = cls(path, fd, fields, writable=writable)
            _require_size(path, fd, file.size_of(file.nblocks))
            if writable:
                file.headroom.refill()
        except BaseException:  # an interrupt too must not keep other borrowers waiting
            close_file(fd)
            raise
        return file

    def __enter__(self) -> Self:
        """Return the reservation."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it; what was committed is durable already."""
        self.close()

    @property
    def uuid_text(self) -> str:
        """The reservation's UUID as people write it."""
        return str(uuid.UUID(bytes=self.uuid))

    @property
    def nblocks(self) -> int:
        """Number of blocks; raises DamagedError."""
        number = self.root.get("nblocks")
        if not 0 < number <= lay.MAX_RESERVED_BLOCKS:
            raise DamagedError(f"{self.path}: root word nblocks is {number}, out of range")
        return number

    @property
    def clones(self) -> bool:
        """Whether the file system moves blocks by cloning them; raises DamagedError."""
        number = self.root.get("mechanism")
        if number not in BLOCK_MOVES:
            raise DamagedError(f"{self.path}: root word mechanism is {number}, out of range")
        return number == CLONE

    @property
    def batch(self) -> int:
        """How many blocks one transaction may bring one step further, and as many of an earlier one."""
        return self.journal.max_words // 2

    def size_of(self, nblocks: int) -> int:
        """Return the size in bytes of a file with so many blocks."""
        return self.data_offset + nblocks * self.block_bytes

    @contextmanager
    def turn(self, seconds: float | None = None) -> Iterator[None]:
        """Be the one writer inside, with what others committed in view; raises BusyError after ten seconds, or as many as said."""
        with self._file.turn(_TURN_WAIT_SECONDS if seconds is None else seconds):
            try:
                yield
            finally:
                self.headroom.refill_if_spent()

    def end_turn(self) -> None:
        """Let others write."""
        self._file.end_turn()

    def end_reading(self) -> None:
        """Let writers empty the log; what this reader sees may change from now on."""
        self._file.end_reading()

    def close(self) -> None:
        """Release everything."""
        self.pages.close()
        self._file.close()


def _require_size(path: Path, fd: int, wanted: int) -> None:
    size = os.fstat(fd).st_size
    if size < wanted:
        raise DamagedError(f"{path}: truncated: {size} bytes, its header and root need {wanted}")
