"""Where storage blocks get their storage from: the file system itself, or a reservation (borrower.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..media.journal import runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..media.pagefile import PageFile


class Storage(Protocol):
    """What a swap file asks for when its storage blocks come and go."""

    def take(self, blocks: NDArray[np.int64]) -> None:
        """Give storage blocks (ascending, distinct) storage, all or none; durable after the next fence of the pages.

        Raises NoSpaceError, or RefusedError beyond what was promised.
        """

    def give_back(self, blocks: NDArray[np.int64]) -> None:
        """Take the storage of blocks (ascending, distinct) that durably hold no page."""

    def recover(self, occupied: NDArray[np.bool_]) -> None:
        """Bring in order what a killed process left; `occupied` tells for every storage block whether it holds pages."""

    def close(self) -> None:
        """Release what this object opened."""


class PlainStorage:
    """Storage from the file system: allocated when first needed, punched when empty."""

    def __init__(self, pages: PageFile, data_offset: int, block_bytes: int) -> None:
        """Serve the storage blocks that begin at a byte of the file."""
        self._pages = pages
        self._data_offset = data_offset
        self._block_bytes = block_bytes

    def take(self, blocks: NDArray[np.int64]) -> None:
        """Allocate blocks, all or none; raises NoSpaceError."""
        try:
            for first, count in runs(blocks):
                self._pages.allocate(self._data_offset + first * self._block_bytes, count * self._block_bytes)
        except BaseException:  # whatever stopped it: none of these blocks is named
            self.give_back(blocks)
            raise

    def give_back(self, blocks: NDArray[np.int64]) -> None:
        """Punch blocks."""
        for first, count in runs(blocks):
            self._pages.punch(self._data_offset + first * self._block_bytes, count * self._block_bytes)

    def recover(self, occupied: NDArray[np.bool_]) -> None:
        """Punch all blocks that hold no page."""
        self.give_back(np.flatnonzero(~occupied))

    def close(self) -> None:
        """Do nothing: the pages are their owner's."""
