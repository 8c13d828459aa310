"""An open file of one of our formats: descriptor, locks, store and journal, which device images, swap files and reservations share."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BusyError, NotFoundError, StorageError
from . import lock
from .journal import Journal
from .store import translated

if TYPE_CHECKING:
    from .store import Store

_WRITER_WAIT_SECONDS = 1.0
_READER_WAIT_SECONDS = 10.0
_CHECKPOINT_WAIT_SECONDS = 60.0


class ImageFile:
    """A store with its journal and its locks. A writable one is this process's alone among writers, until its first `end_turn`.

    Of some files the writers take turns: each opens, ends the turn it has from opening, and does short pieces of work in further ones.
    """

    def __init__(self, store: Store, log_start: int, log_blocks: int, *, writable: bool, fd: int = -1) -> None:
        """Replay the log of an open store; without a descriptor there are no other processes."""
        self.path = store.path
        self.store = store
        self.writable = writable
        self.fd = fd
        # So many seconds a checkpoint that cannot be put off waits for readers.
        self.reader_patience = _CHECKPOINT_WAIT_SECONDS
        # After so many seconds of trying again and again it is not put off any longer; None is never.
        self._evict_after: float | None = None
        self._refused_since = 0.0
        self.journal = Journal(store, log_start, log_blocks, writable=writable, no_readers=self.no_readers)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what happens inside; roll it back when an exception passes."""
        self.journal.make_room()
        try:
            yield
            self.journal.commit()
        except BaseException:  # an interrupt too must not leave half a transaction open
            self.journal.rollback()
            raise

    @contextmanager
    def turn(self, seconds: float) -> Iterator[None]:
        """Be the one writer inside, with what others committed in view; raises BusyError while another is, after so many seconds."""
        if self.fd >= 0:
            lock.lock(self.fd, self.path, lock.WRITER, exclusive=True, seconds=seconds)
        try:
            self.journal.reload()
            yield
        finally:
            self.end_turn()

    def end_turn(self) -> None:
        """Let others write."""
        if self.fd >= 0:
            lock.unlock(self.fd, lock.WRITER)

    def end_reading(self) -> None:
        """Let writers empty the log; what this reader sees may change from now on."""
        if self.fd >= 0:
            lock.unlock(self.fd, lock.CHECKPOINT)

    @contextmanager
    def no_readers(self, patient: bool) -> Iterator[None]:
        """Keep readers away; raises BusyError while there are some, after `reader_patience` when patient.

        Readers that are to be evicted stay, and find out by `is_outdated`.
        """
        if self.fd < 0:
            yield
            return
        try:
            lock.lock(self.fd, self.path, lock.CHECKPOINT, exclusive=True, seconds=self.reader_patience if patient else 0)
        except BusyError:
            if not self._evicts_now(patient):
                raise
        self._refused_since = 0.0
        try:
            yield
        finally:
            lock.unlock(self.fd, lock.CHECKPOINT)

    def evict_readers_after(self, seconds: float) -> None:
        """Never wait for readers; after so long of being refused, go on without them."""
        self.reader_patience = 0.0
        self._evict_after = seconds

    def _evicts_now(self, patient: bool) -> bool:
        if self._evict_after is None:
            return False
        now = time.monotonic()
        if patient:  # the log is half full: from now on it counts
            self._refused_since = self._refused_since or now
        return self._refused_since > 0 and now - self._refused_since >= self._evict_after

    @property
    def is_outdated(self) -> bool:
        """Whether a writer went on without this reader: then what was read may be of two states."""
        return not self.writable and self.fd >= 0 and self.journal.is_outdated

    def close(self) -> None:
        """Release store, locks and descriptor; nothing is flushed."""
        self.store.close()
        if self.fd >= 0:
            close_file(self.fd)
            self.fd = -1


def open_file(path: Path, *, writable: bool) -> int:
    """Return a descriptor of a regular file or block device; raises NotFoundError or StorageError."""
    with translated(path):
        # A pipe must not make it wait for somebody at the other end.
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(fd)
        raise StorageError(f"{path}: neither a regular file nor a block device (device DAX has no private mappings; use fsdax)")
    return fd


def take_lock(fd: int, path: Path, *, writable: bool, seconds: float = _WRITER_WAIT_SECONDS) -> None:
    """Take a writer's or a reader's place at a file; raises BusyError, or NotFoundError when it was deleted meanwhile."""
    if writable:
        lock.lock(fd, path, lock.WRITER, exclusive=True, seconds=seconds)
        if not (path.exists() and os.path.samestat(path.stat(), os.fstat(fd))):
            raise NotFoundError(f"{path}: was deleted just now")
    else:
        lock.lock(fd, path, lock.CHECKPOINT, exclusive=False, seconds=_READER_WAIT_SECONDS)


def close_file(fd: int) -> None:
    """Give the locks back and close a descriptor."""
    # A mapping keeps the open file description alive, and with it the locks: give them back by name.
    with suppress(OSError):
        lock.unlock(fd, lock.WRITER)
        lock.unlock(fd, lock.CHECKPOINT)
        lock.unlock(fd, lock.RESIZER)
        lock.unlock(fd, lock.HELPER)
    os.close(fd)
