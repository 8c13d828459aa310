"""A swap file as its reservation sees it: whose it is, which storage blocks hold pages, and whether a VM runs on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import DamagedError, NotFoundError
from ..media import lock
from ..media.imagefile import close_file, open_file, take_lock
from ..media.journal import Journal
from ..media.pagefile import PageFile
from ..media.store import open_store
from . import layout as lay
from .borrower import Borrower
from .frames import storage_states


class SwapSide:
    """An open swap file. Its words are read, never written: only its storage moves."""

    def __init__(self, path: Path, fd: int, fields: dict[str, Any], *, writable: bool) -> None:
        """Stand on an open file whose header says `fields`; `open` is the usual way."""
        self.path = path
        self._fd = fd
        self._fields = fields
        self.reservation_uuid: bytes = fields["reservation_uuid"]
        self.nblocks: int = fields["nblocks"]
        self.data_offset: int = fields["data_start"] * lay.PAGE
        self.block_bytes: int = fields["slots_per_block"] * lay.PAGE
        self.pages = PageFile(path, fd, writable=writable)

    @classmethod
    def open(cls, path: Path, swap_uuid: bytes, *, writable: bool) -> SwapSide:
        """Open the swap file with this UUID.

        Raises NotFoundError where nothing or another swap file is, FormatError for what is none of this version, DamagedError.
        """
        fd = open_file(path, writable=writable)
        try:
            fields = lay.SWAP_FORMAT.read(path, fd)
            if fields["uuid"] != swap_uuid:
                raise NotFoundError(f"{path}: another swap file than the one that blocks are lent to")
            size, wanted = os.fstat(fd).st_size, (fields["data_start"] + fields["nblocks"] * fields["slots_per_block"]) * lay.PAGE
            if size < wanted:
                raise DamagedError(f"{path}: truncated: {size} bytes, its header says {wanted}")
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, fields, writable=writable)

    def keep_writers_away(self, *, exclusive: bool) -> bool:
        """Take the swap file's WRITER lock until the end; False while a VM, or `defrag`, holds it."""
        return lock.try_lock(self._fd, lock.WRITER, exclusive=exclusive)

    def occupied(self) -> NDArray[np.bool_]:
        """Return of each storage block whether it holds pages, as the last committed transaction says; raises DamagedError."""
        take_lock(self._fd, self.path, writable=False)
        try:
            store = open_store(self.path, self._fd, self.data_offset, writable=False)
            journal = Journal(store, self._fields["log_start"], self._fields["log_blocks"], writable=False)
            base = self._fields["storage_start"] * lay.WORDS_PER_PAGE
            used = storage_states(journal.array[base : base + self.nblocks], self._fields["slots_per_block"], base * 8)
            store.close()
        finally:
            lock.unlock(self._fd, lock.CHECKPOINT)
        # One that counts no page is being given back: its storage may be gone already.
        occupied: NDArray[np.bool_] = used > 0
        return occupied

    def bring_in_order(self, reservation_path: Path, reservation_uuid: bytes, occupied: NDArray[np.bool_]) -> None:
        """Let the reservation settle each of the file's blocks, as a VM does when it starts; see `Storage.recover`."""
        borrower = Borrower.open(
            reservation_path,
            reservation_uuid=reservation_uuid,
            swap_uuid=self._fields["uuid"],
            swap_path=self.path,
            pages=self.pages,
            data_offset=self.data_offset,
            block_bytes=self.block_bytes,
            writable=True,
        )
        try:
            borrower.recover(occupied)
        finally:
            borrower.close()

    def __enter__(self) -> Self:
        """Return the swap file."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Release everything."""
        self.close()

    def close(self) -> None:
        """Release everything."""
        self.pages.close()
        close_file(self._fd)
