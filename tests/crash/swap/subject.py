"""Swap files for the enumeration: frame and storage words with their log, and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nvmtool.media import word

from ..recovered import Log, Logs
from ..subject import PER_BLOCK, Layout
from .media import FILE, PAGES, open_recorded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..subject import Mask, Words
    from ..trace import Event, Media, Trace


class SwapSubject:
    """Swap files of one geometry."""

    # A slot is free once the record that frees it is durable: no older record brings it back.
    sticky = False

    def __init__(self, fields: dict[str, Any]) -> None:
        """Take the areas from a header."""
        self._fields = fields
        self._nslots = fields["nblocks"] * fields["slots_per_block"]
        marks = -(-fields["nblocks"] // PER_BLOCK)
        self.layout = Layout({FILE: fields["data_start"], PAGES: self._nslots + marks})
        log = Log(self.layout.slices[FILE], fields["log_start"], fields["log_blocks"])
        self.logs = Logs(log)
        self.home = self.layout.mask(self.layout.slices[FILE])
        self.commits = self.layout.mask(log.area, slice(0, 2 * PER_BLOCK))
        self._read = self.home & ~self.layout.mask(log.area)
        self._pages = self.layout.slices[PAGES].start
        self._marks = self._pages + self._nslots * PER_BLOCK

    def read_at_home(self, words: Words) -> Mask:
        """Return all words but the log's."""
        return self._read

    def read_far(self, words: Words) -> Mask:
        """Return the pages of slots that a frame word names, and the storage of blocks that hold any."""
        found = np.zeros(self.layout.nwords, bool)
        first = self._fields["frame_start"] * PER_BLOCK
        frames = words[first : first + self._fields["nframes"]]
        named = _values(frames[frames >> np.uint64(60) == word.SLOT]) - 1
        named = named[(named >= 0) & (named < self._nslots)]
        found[self._pages : self._marks].reshape(-1, PER_BLOCK)[named] = True
        found[self._marks : self._marks + self._fields["nblocks"]] = _values(self._storage(words)) > 1
        return found

    def leaks(self, words: Words) -> Mask:
        """Return what storage blocks hold that have no storage by their words."""
        found = np.zeros(self.layout.nwords, bool)
        absent = self._storage(words) == 0
        found[self._pages : self._marks].reshape(len(absent), -1)[absent] = True
        found[self._marks : self._marks + len(absent)] = absent
        return found

    def decides(self, at: NDArray[np.int64]) -> Mask:
        """Return nothing: every home word is read always."""
        return np.zeros(len(at), bool)

    def opens(self, words: Words) -> str:
        """Return nothing: headers are never stored to again."""
        return ""

    def exempt(self, event: Event, durable: Words) -> bool:
        """Return nothing: there are no exceptions."""
        return False

    def contents(self, words: Words, lengths: dict[str, int]) -> Media:
        """Return the media, which never change their sizes."""
        return {name: words[each].tobytes() for name, each in self.layout.slices.items()}

    def recover(self, trace: Trace, media: Media) -> None:
        """Open a swap file for writing and close it."""
        open_recorded(trace, media).close()

    def _storage(self, words: Words) -> Words:
        first = self._fields["storage_start"] * PER_BLOCK
        return words[first : first + self._fields["nblocks"]]


def _values(words: Words) -> NDArray[np.int64]:
    return (words >> np.uint64(8) & np.uint64(word.VALUE_MASK)).astype(np.int64)
