"""A side file that says what each page of a swap file must hold, for a VM that may be killed at any moment.

It survives the death of its process, also by kill -9: stores through a shared mapping are in the page cache at once, in the order in which
they were made, as are those to the swap file. It does not survive the host's: nothing is flushed before the end.

The order that makes a page's version certain after a kill, `version` being what the page holds when it is swapped out:

1. PENDING = version; 2. the swap-out, durable when it returns; 3. COMMITTED = version, state SWAPPED; ...
4. state MEMORY; 5. the swap-in, durable with some later commit.

So a page in a slot is the committed or the pending version, whenever the kill came, and one that is in no slot was in state MEMORY.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, RefusedError
from ..media.imagefile import close_file, open_file
from ..media.newfile import NewFile
from ..media.store import PAGE, FileStore
from ..media.sysio import file_size
from .stamps_layout import (
    ANY,
    COMMITTED,
    FIRST_WORD,
    MEMORY,
    PENDING,
    STAMPS_FORMAT,
    STATE_SHIFT,
    SWAPPED,
    VERSION_MASK,
    WORDS_PER_FRAME,
    stamps_bytes,
)
from .verify import Expected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Frames = NDArray[np.int64]
    Words = NDArray[np.uint64]


class Stamps:
    """An open stamps file; the swap file's own lock keeps a second process away. Takes 16 bytes of file per page frame."""

    def __init__(self, path: Path, fd: int, nframes: int) -> None:
        """Map an open file that has been checked; use `open` or `create`."""
        self.path = path
        self.nframes = nframes
        self._fd = fd
        self._store = FileStore(path, fd, stamps_bytes(nframes), writable=True)
        # The private mapping shows what the shared one stores, for nothing is ever changed in it.
        self._words = self._store.view.data.cast("B").cast("Q")

    @classmethod
    def open(cls, path: Path, uuid: bytes, nframes: int) -> Stamps:
        """Open the stamps of a swap file.

        Raises NotFoundError, FormatError for what is none, RefusedError for another swap file's, DamagedError for what is damaged
        or too short.
        """
        fd = open_file(path, writable=True)
        try:
            fields = STAMPS_FORMAT.read(path, fd)
            if fields["swap_uuid"] != uuid or fields["nframes"] != nframes:
                raise RefusedError(f"{path}: stamps of another swap file (UUID {fields['swap_uuid'].hex()}, not {uuid.hex()})")
            if file_size(fd) < stamps_bytes(nframes):
                raise DamagedError(f"{path}: truncated: {file_size(fd)} bytes, {nframes} page frames need {stamps_bytes(nframes)}")
            return cls(path, fd, nframes)
        except BaseException:
            close_file(fd)
            raise

    @classmethod
    def create(cls, path: Path, uuid: bytes, nframes: int, swapped: Iterable[Frames]) -> Stamps:
        """Create the stamps of a swap file whose frames in `swapped` (arrays) are in the file already, with contents that nobody recorded.

        The file appears whole or not at all, with all its storage allocated. Raises NoSpaceError or StorageError.
        """
        new = NewFile(path)
        try:
            new.allocate(stamps_bytes(nframes), sparse=False)
            store = FileStore(path, new.fd, stamps_bytes(nframes), writable=True)
            header = STAMPS_FORMAT.encode({"swap_uuid": uuid, "nframes": nframes, "generation": 1})
            store.store_bytes(0, [header, header])
            for frames in swapped:
                store.store_words(_indexes(frames, COMMITTED), np.full(frames.size, ANY << STATE_SHIFT, np.uint64))
            store.close()
            new.publish(durable=False)
        finally:
            new.close()
        return cls.open(path, uuid, nframes)

    def __enter__(self) -> Stamps:
        return self

    def __exit__(self, *exc: object) -> None:
        """Flush, so that after an orderly end the host may crash too; close."""
        try:
            self._store.fence()
        finally:
            self.close()

    def close(self) -> None:
        """Release the mapping and the descriptor."""
        self._words = memoryview(b"")
        self._store.close()
        close_file(self._fd)

    def expected(self, start: int, stop: int) -> Expected:
        """Return what the pages of frames from `start` to below `stop` must hold."""
        first, behind = ((FIRST_WORD + frame * WORDS_PER_FRAME) * 8 for frame in (start, stop))
        words = self._store.view[first:behind].view("<u8").reshape(-1, WORDS_PER_FRAME)
        states = (words[:, COMMITTED] >> np.uint64(STATE_SHIFT)).astype(np.uint8)
        return Expected(states, words[:, COMMITTED] & np.uint64(VERSION_MASK), words[:, PENDING] & np.uint64(VERSION_MASK))

    def enter_memory(self, frame: int) -> None:
        """Say that a page is going to be in memory; before its swap-in or its first touch can become durable."""
        index = FIRST_WORD + frame * WORDS_PER_FRAME + COMMITTED
        word = self._words[index]
        if word >> STATE_SHIFT != ANY:  # nobody knows its version before it is swapped out for the first time
            self._store.store_word(index * 8, MEMORY << STATE_SHIFT | word & VERSION_MASK)

    def pend(self, frames: Frames, versions: Words) -> None:
        """Say that these versions may be in the file from now on; before the swap-out."""
        self._store.store_words(_indexes(frames, PENDING), versions)

    def commit(self, frames: Frames, versions: Words) -> None:
        """Say that these versions are in the file; after the swap-out."""
        self._store.store_words(_indexes(frames, COMMITTED), versions | np.uint64(SWAPPED << STATE_SHIFT))

    def settle(self, frames: Frames, states: NDArray[np.uint8], versions: Words) -> None:
        """Set states and versions as they were found after a kill; killed meanwhile, the next run finds the same."""
        words = versions | states.astype(np.uint64) << np.uint64(STATE_SHIFT)
        # A frame that begins anew must not be taken for one in the file; one in the file may be either version until both are stored.
        self._store.store_words(_indexes(frames, COMMITTED), words)
        self._store.store_words(_indexes(frames, PENDING), versions)


def _indexes(frames: Frames, which: int) -> Frames:
    return FIRST_WORD + frames * WORDS_PER_FRAME + which


assert FIRST_WORD * 8 == 2 * PAGE
