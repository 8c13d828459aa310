"""A swap file whose words nobody has believed yet: what check and repair stand on, where SwapFile would refuse to open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from ..media import lock
from ..media.imagefile import ImageFile, close_file, open_file, take_lock
from ..media.pagefile import PageFile
from ..media.root import Root
from ..media.store import FileStore
from . import layout as lay
from .opening import read_fields

if TYPE_CHECKING:
    from ..media.word import Words


class RawSwap:
    """An open swap file's header fields, journal and pages. `is_idle`: no process has it open for writing.

    One that is opened for reading keeps writers away from an idle file until `let_writers_in`, so that words and storage are of one moment.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Open the file; raises FormatError, DamagedError (header, log), BusyError, NotFoundError or StorageError."""
        self.path = path
        fd = open_file(path, writable=writable)
        try:
            self.fields = read_fields(path, fd)
            if writable:
                take_lock(fd, path, writable=True)
            self.is_idle = writable or lock.try_lock(fd, lock.WRITER, exclusive=False)
            if not writable:
                take_lock(fd, path, writable=False)
            self.store = FileStore(path, fd, self.fields["data_start"] * lay.PAGE, writable=writable)
            self.pages = PageFile(path, fd, writable=False)
            self.file = ImageFile(self.store, self.fields["log_start"], self.fields["log_blocks"], writable=writable, fd=fd)
        except BaseException:  # an interrupt too must not keep the locks
            close_file(fd)
            raise
        self.journal = self.file.journal
        self.root = Root(self.journal, lay.SWAP_ROOT, lay.SWAP_ROOT_PLACE)
        self.nframes: int = self.fields["nframes"]
        self.nblocks: int = self.fields["nblocks"]
        self.slots_per_block: int = self.fields["slots_per_block"]
        self.nslots = self.nblocks * self.slots_per_block
        self.frame_base: int = self.fields["frame_start"] * lay.WORDS_PER_PAGE
        self.storage_base: int = self.fields["storage_start"] * lay.WORDS_PER_PAGE
        self.data_offset: int = self.fields["data_start"] * lay.PAGE

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file; nothing is flushed."""
        self.pages.close()
        self.file.close()

    @property
    def storage_words(self) -> Words:
        """The words of all storage blocks, a view."""
        return self._words(self.storage_base, self.nblocks)

    def frame_words(self, first: int, behind: int) -> Words:
        """Return the words of consecutive frames, a view."""
        return self._words(self.frame_base + first, behind - first)

    def let_writers_in(self) -> None:
        """Keep writers away no longer; what was read stays as it was."""
        if not self.file.writable:
            lock.unlock(self.file.fd, lock.WRITER)

    def _words(self, first: int, count: int) -> Words:
        return self.journal.array[first : first + count]
