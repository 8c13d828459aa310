"""Storing in the background what clients wrote, so that a flush finds little left to do."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..media.store import Store

# Begun again for each of so many blocks that were written.
_STEP_BLOCKS = 1024


class Writeback:
    """A thread that tells the kernel to begin; it alone waits where the disk is busy."""

    def __init__(self, store: Store) -> None:
        """Start the thread; it sleeps until enough was written."""
        self._store = store
        self._begun_at = 0
        self._wanted = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="writeback", daemon=True)
        self._thread.start()

    def look(self, pending_blocks: int) -> None:
        """Begin when enough blocks wait for a flush that did not the last time."""
        if pending_blocks < self._begun_at:
            self._begun_at = 0
        if pending_blocks - self._begun_at >= _STEP_BLOCKS:
            self._begun_at = pending_blocks
            self._wanted.set()

    def close(self) -> None:
        """End the thread."""
        self._ending = True
        self._wanted.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._ending:
                return
            self._store.start_writeback()
