"""The pages that a running VM keeps in memory, and which of them to swap out next (second-chance clock)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..media.pagefile import page_buffer
from .layout import PAGE

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Resident:
    """Rows of 4 KiB, each free or holding one page frame's page. Beside the pages, about 150 bytes a row.

    `rows` names the row of each frame that is here, `frame_of` the frame of each row; `referenced` has a byte per row, which an access
    sets and the clock's hand clears: a page whose byte is still clear when the hand comes round again is taken.
    """

    def __init__(self, nrows: int) -> None:
        """Begin with all rows free; no memory is used before a row is."""
        self.nrows = nrows
        self.pages: NDArray[np.uint8] = page_buffer(nrows)
        self.words: NDArray[np.uint64] = self.pages.view("<u8")
        self.rows: dict[int, int] = {}
        self.frame_of = [-1] * nrows
        self.referenced = bytearray(nrows)
        self.free = list(range(nrows - 1, -1, -1))
        self._bytes = self.pages.reshape(-1).data
        self._hand = 0

    def buffer(self, row: int) -> memoryview:
        """Return the 4096 bytes of a row, to read and to write; they begin at a page of memory."""
        return self._bytes[row * PAGE : (row + 1) * PAGE]

    def put(self, frame: int, row: int) -> None:
        """Let a row, taken off `free`, hold a frame."""
        self.rows[frame] = row
        self.frame_of[row] = frame
        self.referenced[row] = 1

    def drop(self, frames: list[int]) -> None:
        """Free the rows of frames that have left."""
        for frame in frames:
            row = self.rows.pop(frame)
            self.frame_of[row] = -1
            self.free.append(row)

    def choose(self, count: int) -> list[int]:
        """Return the frames to swap out next, in their order; they stay here. Every row must hold one, and count be at most nrows."""
        referenced, nrows = self.referenced, self.nrows
        taken: list[int] = []
        while len(taken) < count:
            row = referenced.find(0, self._hand)
            if row < 0:
                referenced[self._hand :] = bytes(nrows - self._hand)
                self._hand = 0
                continue
            referenced[self._hand : row] = bytes(row - self._hand)
            # Set, so that a second turn does not take it again.
            referenced[row] = 1
            taken.append(self.frame_of[row])
            self._hand = row + 1
        return sorted(taken)
