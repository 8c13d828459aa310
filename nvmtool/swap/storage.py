"""Where a swap file's storage blocks get their storage: from the file system alone, or from a reservation (borrower.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import NvmtoolError
from ..media.journal import runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..media.pagefile import PageFile


class Storage(Protocol):
    """Gives storage to storage blocks and takes it back. Blocks are numbers in ascending order, each once."""

    def take(self, blocks: NDArray[np.int64]) -> None:
        """Give blocks storage, all of them or none; durable after the next fence of the swap file's pages.

        Raises NoSpaceError, or RefusedError beyond what was promised.
        """

    def give_back(self, blocks: NDArray[np.int64]) -> None:
        """Take the storage of blocks that durably hold no page."""

    def is_unsettled(self) -> bool:
        """Tell whether a process was killed in the middle of a move, whatever the swap file says of itself: `recover` ends it."""

    def recover(self, occupied: NDArray[np.bool_]) -> None:
        """Bring in order what a killed process left; `occupied` tells of each storage block whether it holds pages."""

    def close(self) -> None:
        """Finish; the swap file's descriptor and pages stay the caller's."""


class PlainStorage:
    """Storage of a swap file without a reservation: allocated and punched."""

    def __init__(self, pages: PageFile, data_offset: int, block_bytes: int) -> None:
        """Stand on the pages of a swap file whose storage block 0 begins at `data_offset` bytes."""
        self._pages = pages
        self._data_offset = data_offset
        self._block_bytes = block_bytes

    def take(self, blocks: NDArray[np.int64]) -> None:
        """Give blocks storage, all of them or none; durable after the next fence. Raises NoSpaceError."""
        try:
            for first, count in runs(blocks):
                self._pages.allocate(*self._range(first, count))
        except NvmtoolError:
            self.give_back(blocks)
            raise

    def give_back(self, blocks: NDArray[np.int64]) -> None:
        """Take the storage of blocks that durably hold no page."""
        for first, count in runs(blocks):
            self._pages.punch(*self._range(first, count))

    def is_unsettled(self) -> bool:
        """Nothing but the swap file's own words tells of a killed process."""
        return False

    def recover(self, occupied: NDArray[np.bool_]) -> None:
        """Punch every block that holds no page: a killed process may have left it with storage."""
        self.give_back(np.flatnonzero(~occupied))

    def close(self) -> None:
        """Nothing to do."""

    def _range(self, first: int, count: int) -> tuple[int, int]:
        return self._data_offset + first * self._block_bytes, count * self._block_bytes
