"""Where a VM's page frames are: the map of a running one, in volatile words, and the saved map of a suspended one, in sealed words (T3).

Both say for each page frame (PPN) which machine frame (MPN) it is in, and whether it may share it; 0 says that it is not in memory: then
its swap file tells. Memory used is a batch at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, FormatError
from ..media import sysio, word
from ..media.header import COPIES
from ..media.imagefile import open_file
from ..media.mapping import WordFile, create_mapped
from ..media.pagefile import PageFile, page_buffer
from ..media.store import translated
from . import layout as lay

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..media.word import Words

    Ints = NDArray[np.int64]

BATCH = 1 << 16
_HEAD = {name: int(field[1]) // 8 for name, field in (lay.VM_HEAD.fields or {}).items()}
_FLAG = np.uint64(lay.SHARED_FLAG)
_ONE = np.uint64(1)
_WINDOW = 1 << 18


class VmMap:
    """The map of a running VM. Words are 0, or MPN + 1 with the shared flag."""

    def __init__(self, path: Path, nframes: int, *, writable: bool) -> None:
        """Map an existing one; raises NotFoundError or DamagedError."""
        self.path = path
        self.nframes = nframes
        self._file = WordFile(path, writable=writable)
        if self._file.nwords < lay.VM_MAP_START + nframes:
            raise DamagedError(f"{path}: truncated: {self._file.nwords * 8} bytes, for {nframes} page frames")
        # By page frame, Python's own integers.
        self.words = self._file.words[lay.VM_MAP_START : lay.VM_MAP_START + nframes]
        self.array: Words = self._file.array[lay.VM_MAP_START : lay.VM_MAP_START + nframes]

    @staticmethod
    def create(path: Path, nframes: int, life: int) -> None:
        """Create an empty map; one that an earlier life left is replaced. Takes the same time for any size."""
        path.unlink(missing_ok=True)
        head = np.zeros(1, lay.VM_HEAD)
        head["life"] = life
        size = (lay.VM_MAP_START + -(-nframes // lay.WORDS_PER_PAGE) * lay.WORDS_PER_PAGE) * 8
        create_mapped(path, size, head.tobytes().ljust(lay.PAGE, b"\0"))

    def get(self, name: str) -> int:
        """Return a number of the head."""
        return self._file.words[_HEAD[name]]

    def put(self, name: str, value: int) -> None:
        """Change a number of the head."""
        self._file.store(_HEAD[name], value)

    def allocate(self, ppns: Ints) -> None:
        """See to it that words of page frames can be stored; raises NoSpaceError."""
        self._file.allocate_for(ppns + lay.VM_MAP_START)

    def put_all(self, ppns: Ints, mpns: Ints, *, shared: bool) -> None:
        """Let page frames name machine frames; their words were allocated."""
        words = mpns.astype(np.uint64) + _ONE
        self._file.store_many(ppns + lay.VM_MAP_START, words | _FLAG if shared else words)

    def put_words(self, first: int, words: Words) -> None:
        """Store the words of consecutive page frames; raises NoSpaceError."""
        if words.any():
            self._file.allocate(first + lay.VM_MAP_START, len(words))
            self._file.store_range(first + lay.VM_MAP_START, words)

    def clear(self, ppns: Ints) -> None:
        """Let page frames name nothing."""
        self._file.store_many(ppns + lay.VM_MAP_START, np.zeros(len(ppns), np.uint64))

    def clear_range(self, first: int, count: int) -> None:
        """The same for consecutive ones, without touching what was never written."""
        for at, length in self._file.iter_written(first + lay.VM_MAP_START, count):
            self._file.fill(at, length, 0)

    def iter_written(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield (first, behind) of the page frames whose words may differ from 0."""
        for at, count in self._file.iter_written(start + lay.VM_MAP_START, stop - start):
            yield at - lay.VM_MAP_START, min(at - lay.VM_MAP_START + count, stop)

    def iter_present(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Ints, Ints, NDArray[np.bool_]]]:
        """Yield (PPNs, MPNs, shared flags) of the page frames that are in memory, ascending, a window at a time."""
        for first, behind in self.iter_written(start, self.nframes if stop is None else stop):
            for begin in range(first, behind, _WINDOW):
                words = self.array[begin : min(begin + _WINDOW, behind)]
                ppns = np.flatnonzero(words)
                if len(ppns):
                    yield ppns + begin, *split_words(words[ppns])

    def close(self) -> None:
        """Unmap."""
        self.words = memoryview(b"").cast("Q")
        self.array = np.empty(0, np.uint64)
        self._file.close()


def split_words(words: Words) -> tuple[Ints, NDArray[np.bool_]]:
    """Return (MPNs, shared flags) of map words that are not 0."""
    return (words & ~_FLAG).astype(np.int64) - 1, (words & _FLAG) != 0


class SavedMap:
    """The saved map of a VM: plain bytes behind two headers. Words are made durable before the VM's cursor says that they count."""

    def __init__(self, path: Path, fd: int, number: int, nframes: int, *, writable: bool) -> None:
        """Stand on an open file."""
        self.path = path
        self.nframes = nframes
        self._number = number
        self._fd = fd
        self._pages = PageFile(path, fd, writable=writable)

    @classmethod
    def create(cls, path: Path, *, host_uuid: bytes, vm_uuid: bytes, number: int, nframes: int) -> SavedMap:
        """Create an empty map; one that is there already is emptied. Takes the same time for any size."""
        with translated(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(fd, 0)
            os.ftruncate(fd, (lay.MAP_START + -(-nframes // lay.WORDS_PER_PAGE)) * lay.PAGE)
        saved = cls(path, fd, number, nframes, writable=True)
        header = lay.MAP_FORMAT.encode({"host_uuid": host_uuid, "vm_uuid": vm_uuid, "generation": 1, "nframes": nframes})
        saved._pages.write(0, [header] * len(COPIES))
        return saved

    @classmethod
    def open(cls, path: Path, *, host_uuid: bytes, vm_uuid: bytes, number: int, nframes: int, writable: bool = False) -> SavedMap:
        """Open the map of one VM; raises NotFoundError, FormatError for another VM's, or DamagedError."""
        fd = open_file(path, writable=writable)
        try:
            fields = lay.MAP_FORMAT.read(path, fd)
            if (fields["host_uuid"], fields["vm_uuid"]) != (host_uuid, vm_uuid):
                raise FormatError(f"{path}: is the saved map of another VM")
            if fields["nframes"] != nframes:
                raise DamagedError(f"{path}: header field nframes is {fields['nframes']}, the VM has {nframes}")
            size, wanted = sysio.file_size(fd), (lay.MAP_START + -(-nframes // lay.WORDS_PER_PAGE)) * lay.PAGE
            if size < wanted:
                raise DamagedError(f"{path}: truncated: {size} bytes, {wanted} are needed")
        except BaseException:  # an interrupt too must not keep the file open
            os.close(fd)
            raise
        return cls(path, fd, number, nframes, writable=writable)

    def write(self, first: int, words: Words) -> None:
        """Save the map words (see VmMap) of consecutive page frames, durable with the next fence."""
        ppns = np.arange(first, first + len(words))
        present = words != 0
        mpns, shared = split_words(words)
        payloads = (mpns.astype(np.uint64) << _ONE) + shared.astype(np.uint64) + np.uint64(word.MEMORY << word.VALUE_BITS | 1)
        sealed = np.where(present, word.seal_array(payloads, word.places_array(lay.MAP_PLACE, self._number, ppns)), np.uint64(0))
        self._pages.write(lay.MAP_START * lay.PAGE + first * 8, [np.ascontiguousarray(sealed).view(np.uint8).data])

    def fence(self) -> None:
        """Return when what was written is durable."""
        self._pages.fence()

    def read(self, first: int, behind: int) -> Words:
        """Return the map words (see VmMap) of consecutive page frames; raises DamagedError for one that is not sound."""
        count = behind - first
        buffer = page_buffer(-(-count * 8 // lay.PAGE)).reshape(-1)[: count * 8]
        with translated(self.path):
            if os.preadv(self._fd, [buffer.data], lay.MAP_START * lay.PAGE + first * 8) != count * 8:
                raise DamagedError(f"{self.path}: truncated: no map words of page frames {first} to {behind - 1}")
        sealed = buffer.view("<u8")
        words = np.zeros(count, np.uint64)
        present = np.flatnonzero(sealed)
        ppns = present + first
        offsets = ((lay.MAP_START * lay.WORDS_PER_PAGE + ppns) * 8).astype(np.uint64)
        places = word.places_array(lay.MAP_PLACE, self._number, ppns)
        payloads = word.unseal_array(sealed[present], places, f"{self.path}: map word", offsets)
        values = payloads & np.uint64(word.VALUE_MASK)
        wrong = (payloads >> np.uint64(word.VALUE_BITS) != word.MEMORY) | (values == 0) | (values > 2 * lay.MAX_PAGES * 2)
        if wrong.any():
            bad = int(np.flatnonzero(wrong)[0])
            word.damaged(f"{self.path}: map word", int(offsets[bad]), int(sealed[present[bad]]), "names no machine frame")
        values -= _ONE
        words[present] = ((values >> _ONE) + _ONE) | np.where(values & _ONE, _FLAG, np.uint64(0))
        return words

    def iter_present(self, start: int, stop: int) -> Iterator[tuple[Ints, Ints, NDArray[np.bool_]]]:
        """Yield (PPNs, MPNs, shared flags) of the page frames that are in memory, ascending, a window at a time; raises DamagedError."""
        for first, behind in self.iter_data(start, stop):
            for begin in range(first, behind, _WINDOW):
                words = self.read(begin, min(begin + _WINDOW, behind))
                ppns = np.flatnonzero(words)
                if len(ppns):
                    yield ppns + begin, *split_words(words[ppns])

    def iter_data(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield (first, behind) of the page frames whose words may differ from 0."""
        base = lay.MAP_START * lay.PAGE
        for offset, length in sysio.iter_data(self._fd, base + start * 8, (stop - start) * 8):
            yield (offset - base) // 8, (offset - base + length) // 8

    def replace(self, ppns: Ints, words: Words) -> None:
        """Save other map words for page frames (ascending) of a suspended VM, durable on return. Killed in between, each is old or new."""
        for start in range(0, self.nframes, _WINDOW):
            inside = (ppns >= start) & (ppns < start + _WINDOW)
            if inside.any():
                first, behind = int(ppns[inside][0]), int(ppns[inside][-1]) + 1
                window = self.read(first, behind)
                window[ppns[inside] - first] = words[inside]
                self.write(first, window)
        self.fence()

    def close(self) -> None:
        """Close the file."""
        self._pages.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def remove_map(path: Path) -> None:
    """Remove a map that may not be there."""
    with translated(path):
        path.unlink(missing_ok=True)
