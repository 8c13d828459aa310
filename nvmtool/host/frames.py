"""The frame table: one word per machine frame says who has it. It is volatile, and follows from the VMs' maps (rebuild.py).

A frame is free, private to a VM, shared by the running VMs that its count counts, held by a suspended VM (in its saved map, without the
shared flag), or parked: no running VM names it, but a suspended one may (T3). Frames behind RAM's are the device image's; those that are
lent and free have a kind of their own, so that a word of 0 there is a page that was not lent (T6).

All changes happen in a turn of `Host.frames_turn`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError
from ..media.mapping import WordFile, create_mapped
from . import layout as lay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ..media.word import Words

    Ints = NDArray[np.int64]

_HEAD = {name: int(field[1]) // 8 for name, field in (lay.FRAMES_HEAD.fields or {}).items()}
_WINDOW = 1 << 20
_KIND_SHIFT = np.uint64(lay.KIND_SHIFT)
_MASK = np.uint64(lay.COUNT_MASK)


def frame_word(kind: int, value: int = 0) -> int:
    """Return the word of a frame."""
    return kind << lay.KIND_SHIFT | value


class FrameTable:
    """The words of all machine frames. MPNs are int64 arrays, distinct unless said."""

    def __init__(self, path: Path, nram: int, nnvm: int, *, writable: bool) -> None:
        """Map an existing table; raises NotFoundError or DamagedError."""
        self.nram = nram
        self.nmpn = nram + nnvm
        self._first = lay.first_frame_word(nram)
        self._ngroups = lay.ngroups_of(nram)
        self._file = WordFile(path, writable=writable)
        if self._file.nwords < self._first + self.nmpn:
            raise DamagedError(f"{path}: truncated: {self._file.nwords * 8} bytes, {(self._first + self.nmpn) * 8} are needed")
        self._words = self._file.array[self._first : self._first + self.nmpn]

    @staticmethod
    def create(path: Path, nram: int, nnvm: int, life: int, *, sparse: bool) -> None:
        """Create a table in which all of RAM is free and nothing is lent; raises NoSpaceError."""
        nwords = lay.first_frame_word(nram)
        size = -(-(nwords + nram + nnvm) // lay.WORDS_PER_PAGE) * lay.PAGE
        create_mapped(path, size)
        table = WordFile(path, writable=True)
        if not sparse:
            table.allocate(0, nwords + nram)
        table.store_range(lay.GROUP_START, _full_groups(nram))
        # Last: a table of another life is made anew.
        table.store(_HEAD["life"], life)
        table.close()

    def get(self, name: str) -> int:
        """Return a number of the head."""
        return self._file.words[_HEAD[name]]

    def put(self, name: str, value: int) -> None:
        """Change a number of the head; raises DamagedError for one that cannot be, and then the table is made anew by the next turn."""
        if not 0 <= value < 1 << 63:
            raise DamagedError(f"{self._file.path}: {name} would be {value}; the next command makes the table anew")
        self._file.store(_HEAD[name], value)

    @property
    def free_ram(self) -> int:
        """How many frames of RAM are free."""
        return int(self._groups().sum())

    @property
    def free_pages(self) -> int:
        """How many frames are free, in RAM or lent."""
        return self.free_ram + self.get("lent_free")

    @property
    def capacity(self) -> int:
        """How many frames there are: RAM's and those that are lent."""
        return self.nram + self.get("lent")

    def word(self, mpn: int) -> int:
        """Return one frame's word; raises DamagedError for a frame that is not there."""
        self.require(np.array([mpn]))
        return int(self._words[mpn])

    def kinds(self, mpns: Ints) -> NDArray[np.uint64]:
        """Return the kinds of frames."""
        return self._words[mpns] >> _KIND_SHIFT

    def values(self, mpns: Ints) -> NDArray[np.uint64]:
        """Return the owners or counts of frames."""
        return self._words[mpns] & _MASK

    def require(self, mpns: Ints) -> None:
        """Raise DamagedError unless all of these numbers, which may repeat, are frames."""
        if len(mpns) and (int(mpns.max()) >= self.nmpn or int(mpns.min()) < 0):
            bad = int(mpns[(mpns >= self.nmpn) | (mpns < 0)][0])
            raise DamagedError(f"{self._file.path}: machine frame {bad} is named, past the end ({self.nmpn})")

    def take(self, count: int, owner: int) -> Ints:
        """Make up to `count` free frames, RAM's first, private to a VM; return them in ascending order, fewer where there are no more."""
        parts: list[Ints] = []
        left = count
        for first, behind in self._windows_with_room():
            found = np.flatnonzero(self._words[first:behind] == 0)[:left] + first
            parts.append(found)
            left -= len(found)
            if left == 0:
                break
        if left and self.get("lent_free"):
            parts.append(self.lent_frames(only_free=True)[:left])
        mpns = np.concatenate(parts) if parts else np.empty(0, np.int64)
        if len(mpns):
            self._set(mpns, np.full(len(mpns), frame_word(lay.PRIVATE, owner), np.uint64))
        return mpns

    def set_all(self, mpns: Ints, kind: int, value: int = 0) -> None:
        """Give frames one kind and value; FREE means free wherever they are."""
        self._set(mpns, self._free_words(mpns) if kind == lay.FREE else np.full(len(mpns), frame_word(kind, value), np.uint64))

    def add_shares(self, mpns: Ints) -> None:
        """Count each number, which may repeat, as one more running VM's shared frame: absent, it is entered with count 1 (T3)."""
        self.require(mpns)
        distinct, times = np.unique(mpns, return_counts=True)
        before = self._words[distinct]
        kinds = before >> _KIND_SHIFT
        wrong = ~np.isin(kinds, (lay.FREE, lay.SHARED, lay.PARKED, lay.LENT_FREE))
        if wrong.any():
            raise DamagedError(f"{self._file.path}: machine frame {int(distinct[wrong][0])} is shared, but somebody has it alone")
        counts = np.where(kinds == lay.SHARED, before & _MASK, np.uint64(0)) + times.astype(np.uint64)
        self._set(distinct, counts | np.uint64(frame_word(lay.SHARED)))

    def drop_shares(self, mpns: Ints, *, park: bool) -> Ints:
        """Take one off for each number, which may repeat; frames whose count becomes 0 are parked, or freed. Return those.

        Raises DamagedError for one that is not shared so often.
        """
        distinct, times = np.unique(mpns, return_counts=True)
        self.require(distinct)
        before = self._words[distinct]
        counts = (before & _MASK).astype(np.int64) - times
        wrong = (before >> _KIND_SHIFT != lay.SHARED) | (counts < 0)
        if wrong.any():
            raise DamagedError(f"{self._file.path}: machine frame {int(distinct[wrong][0])} is not shared so often as it is named")
        kept = counts > 0
        self._set(distinct[kept], counts[kept].astype(np.uint64) | np.uint64(frame_word(lay.SHARED)))
        gone = distinct[~kept]
        self.set_all(gone, lay.PARKED if park else lay.FREE)
        return gone

    def copy_words(self, sources: Ints, targets: Ints) -> None:
        """Let frames be to their users what others are."""
        self._set(targets, self._words[sources])

    def lend(self, mpns: Ints) -> None:
        """Let pages of the device image be frames, free ones; those that are already stay as they are."""
        fresh = mpns[self._words[mpns] == 0]
        self._file.allocate_for(fresh + self._first)
        self._set(fresh, np.full(len(fresh), frame_word(lay.LENT_FREE), np.uint64))
        self.put("lent", self.get("lent") + len(fresh))

    def unlend(self, mpns: Ints) -> None:
        """Let free lent frames be frames no more."""
        if (self.kinds(mpns) != lay.LENT_FREE).any():
            raise DamagedError(f"{self._file.path}: a lent frame that is to go back is in use")
        self._set(mpns, np.zeros(len(mpns), np.uint64))
        self.put("lent", self.get("lent") - len(mpns))

    def lent_frames(self, *, only_free: bool = False) -> Ints:
        """Return the frames that the device image lends, ascending."""
        parts: list[Ints] = [np.empty(0, np.int64)]
        if self.get("lent"):
            for first, words in self.iter_words(self.nram):
                chosen = words == np.uint64(frame_word(lay.LENT_FREE)) if only_free else words != 0
                parts.append(np.flatnonzero(chosen) + first)
        return np.concatenate(parts)

    def of_kind(self, kind: int, owner: int | None = None) -> Ints:
        """Return the frames of a kind, or those of an owner, ascending."""
        parts: list[Ints] = [np.empty(0, np.int64)]
        for first, words in self.iter_words():
            same = words >> _KIND_SHIFT == kind if owner is None else words == np.uint64(frame_word(kind, owner))
            parts.append(np.flatnonzero(same) + first)
        return np.concatenate(parts)

    def iter_words(self, start: int = 0) -> Iterator[tuple[int, Words]]:
        """Yield (first MPN, words) of the stretches that were ever written, a window at a time."""
        for first, count in self._file.iter_written(self._first + start, self.nmpn - start):
            for at in range(first, first + count, _WINDOW):
                begin = max(at - self._first, start)
                end = min(at + _WINDOW, first + count) - self._first
                if begin < end:
                    yield begin, self._words[begin:end]

    def reset(self, keep: Ints) -> None:
        """Let all frames be free, and lent ones lent and free, but those of the owners in `keep`, which stay private to them."""
        for first, words in self.iter_words():
            kinds = words >> _KIND_SHIFT
            kept = (kinds == lay.PRIVATE) & np.isin(words & _MASK, keep.astype(np.uint64))
            fresh = np.where(words != 0, self._free_words(np.arange(first, first + len(words))), np.uint64(0))
            self._file.store_range(self._first + first, np.where(kept, words, fresh))
        self.recount()

    def recount(self) -> None:
        """Count free frames anew."""
        groups = _full_groups(self.nram)
        lent = lent_free = parked = 0
        for first, words in self.iter_words():
            in_ram = max(min(self.nram - first, len(words)), 0)
            used = np.flatnonzero(words[:in_ram]) + first
            groups -= np.bincount(used // lay.FRAME_GROUP, minlength=self._ngroups).astype(np.uint64)
            lent += int(np.count_nonzero(words[in_ram:]))
            lent_free += int(np.count_nonzero(words[in_ram:] == np.uint64(frame_word(lay.LENT_FREE))))
            parked += int(np.count_nonzero(words == np.uint64(frame_word(lay.PARKED))))
        self._file.store_range(lay.GROUP_START, groups)
        self.put("parked", parked)
        self.put("lent", lent)
        self.put("lent_free", lent_free)

    def close(self) -> None:
        """Unmap."""
        self._words = np.empty(0, np.uint64)
        self._file.close()

    def _set(self, mpns: Ints, words: Words) -> None:
        """Store words of distinct frames and keep the counts of free ones."""
        before = self._words[mpns]
        in_ram = mpns < self.nram
        self._file.store_many(mpns + self._first, words)
        change = (words == 0).astype(np.int64) - (before == 0).astype(np.int64)
        changed = in_ram & (change != 0)
        if changed.any():
            totals = np.bincount(mpns[changed] // lay.FRAME_GROUP, change[changed], self._ngroups).astype(np.int64)
            self._file.store_range(lay.GROUP_START, (self._groups().astype(np.int64) + totals).astype(np.uint64))
        parked = np.uint64(frame_word(lay.PARKED))
        delta = int(np.count_nonzero(words == parked)) - int(np.count_nonzero(before == parked))
        if delta:
            self.put("parked", self.get("parked") + delta)
        if not in_ram.all():
            free = np.uint64(frame_word(lay.LENT_FREE))
            delta = int(np.count_nonzero(words[~in_ram] == free)) - int(np.count_nonzero(before[~in_ram] == free))
            self.put("lent_free", self.get("lent_free") + delta)

    def _free_words(self, mpns: Ints) -> Words:
        return np.where(mpns < self.nram, np.uint64(0), np.uint64(frame_word(lay.LENT_FREE)))

    def _groups(self) -> Words:
        return self._file.array[lay.GROUP_START : lay.GROUP_START + self._ngroups]

    def _windows_with_room(self) -> Iterator[tuple[int, int]]:
        for group in np.flatnonzero(self._groups()).tolist():
            yield group * lay.FRAME_GROUP, min((group + 1) * lay.FRAME_GROUP, self.nram)


def _full_groups(nram: int) -> Words:
    ngroups = lay.ngroups_of(nram)
    groups = np.full(ngroups, lay.FRAME_GROUP, np.uint64)
    groups[-1] = nram - (ngroups - 1) * lay.FRAME_GROUP
    return groups
