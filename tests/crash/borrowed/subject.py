"""A swap file and its reservation for the enumeration: two logs, and the words that say what storage each block has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.media.root import ROOT_BLOCK
from nvmtool.swap.layout import PAGE
from nvmtool.swap.swapfile import SwapFile

from ..recovered import Log, Logs
from ..subject import PER_BLOCK, Layout
from ..swap.media import FILE as SWAP_FILE
from ..swap.media import PAGES as SWAP_PAGES
from ..swap.media import fields_of
from ..swap.subject import SwapSubject
from .ground import FILE, PAGES, RESERVATION, RESERVED_BLOCKS, RESERVED_FILE, SWAP, Ground, standing_on
from .workloads import folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..subject import Mask, Words
    from ..trace import Event, Media, Trace


class BorrowedSubject:
    """Swap files and reservations of one geometry."""

    sticky = False

    def __init__(self, media: Media, *, clones: bool) -> None:
        """Take the areas from files like these."""
        assert (FILE, PAGES) == (SWAP_FILE, SWAP_PAGES)
        fields = fields_of(media[FILE])
        self._clones = clones
        self._swap = SwapSubject(fields)
        self.layout = Layout({name: len(media[name]) // PAGE for name in (FILE, PAGES, RESERVED_FILE, RESERVED_BLOCKS)})
        slices = self.layout.slices
        logs = [
            Log(slices[FILE], fields["log_start"], fields["log_blocks"]),
            Log(slices[RESERVED_FILE], ROOT_BLOCK + 1, fields["log_blocks"]),
        ]
        self.logs = Logs(*logs)
        self.home = self.layout.mask(slices[FILE], slices[RESERVED_FILE])
        self.commits = self.layout.mask(*(log.area for log in logs))
        self._read = self.home & ~self.commits
        self._marks = self.layout.mask(*(slice(slices[name].stop - PER_BLOCK, slices[name].stop) for name in (PAGES, RESERVED_BLOCKS)))

    def read_at_home(self, words: Words) -> Mask:
        """Return all words but the logs'."""
        return self._read

    def read_far(self, words: Words) -> Mask:
        """Return the pages of slots that a frame word names, and what storage each block has, wherever it is."""
        found = self._marks.copy()
        nwords = self._swap.layout.nwords
        found[:nwords] |= self._swap.read_far(words[:nwords])
        return found

    def leaks(self, words: Words) -> Mask:
        """Return nothing: what storage each block has is read."""
        return np.zeros(self.layout.nwords, bool)

    def decides(self, at: NDArray[np.int64]) -> Mask:
        """Return nothing: every home word is read always."""
        return np.zeros(len(at), bool)

    def opens(self, words: Words) -> str:
        """Return nothing: headers are never stored to again."""
        return ""

    def exempt(self, event: Event, durable: Words) -> bool:
        """Return nothing: the rules of one file do not hold for two."""
        return False

    def contents(self, words: Words, lengths: dict[str, int]) -> Media:
        """Return the media; how long the reservation's file is stands in one of them."""
        return {name: words[each].tobytes() for name, each in self.layout.slices.items()}

    def recover(self, trace: Trace, media: Media) -> None:
        """Open a swap file for writing and close it."""
        with folder() as where:
            ground = Ground(Path(where), clones=self._clones)
            ground.load(media)
            ground.trace = trace
            with standing_on(ground):
                SwapFile.open(ground.swap, writable=True).close()


__all__ = ["RESERVATION", "SWAP", "BorrowedSubject"]
