"""Who has the device: the event loop, or the one thread that does long jobs, which hands it back between two commits.

A baton, not a lock: the loop has it, lends it when the job wants it and it suits its clients, and waits until it comes back. While the job
copies (`aside`) or waits, the loop serves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..region.device import Device
    from .loop import Loop

# One request in so many may meet a pause that a job makes.
_REQUESTS_PER_PAUSE = 200
_LONGEST_WAIT = 0.25
_IDLE_SECONDS = 0.002
_LOOK_SECONDS = 0.001
STEP_BLOCKS = 512


class Turns:
    """Lends a device to one job at a time. `offer` is the loop's side, all else the job's."""

    def __init__(self, loop: Loop, device: Device, served: Callable[[], int]) -> None:
        """Let the device's long jobs pause for the loop; `served()` says how many requests clients have made so far."""
        self._loop, self._device, self._served = loop, device, served
        self._wanted = threading.Event()
        self._lent = threading.Semaphore(0)
        self._returned = threading.Semaphore(0)
        self._cancelled = self._ending = ""
        # A job that clients wait for is not paced.
        self.urgent = False
        self._last_turn = self._last_request = self._lent_at = 0.0
        self._count = self._due = 0
        self._met_known = True
        self.longest_pause = 0.0
        device.step_blocks = STEP_BLOCKS
        device.pause = self.pause
        device.aside = self.aside
        self._thread: int | None = None
        loop.after_turn.append(self.offer)

    # --- the job's side

    @contextmanager
    def job(self) -> Iterator[None]:
        """Have the device inside, but for pauses; raises BusyError when it is cancelled."""
        self._thread = threading.get_ident()
        self._cancelled = ""
        self._take(cancel=False)
        try:
            yield
        finally:
            self._give()
            self._thread = None

    def pause(self) -> bool:
        """Let the loop serve; return whether that has changed the image. Raises BusyError when the job is cancelled."""
        if threading.get_ident() != self._thread:  # the loop's own short work
            return False
        journal = self._device.journal
        before = journal.generation, journal.sequence
        self._give()
        self._take()
        return before != (journal.generation, journal.sequence)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Do inside what needs nothing of the device that changes, while the loop serves."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._give()
        try:
            yield
        finally:
            self._take(cancel=False)

    def _take(self, *, cancel: bool = True) -> None:
        self._wanted.set()
        self._loop.wake()
        self._lent.acquire()
        if cancel and (self._cancelled or self._ending):
            raise BusyError(self._cancelled or self._ending)  # with the device in hand, which rolling back needs

    def _give(self) -> None:
        self._returned.release()

    # --- the loop's side

    def cancel(self, why: str) -> None:
        """Let the job end at its next pause with BusyError."""
        self._cancelled = why

    def end(self, why: str) -> None:
        """Let the job, and any that comes later, end at its next pause with BusyError."""
        self._ending = why

    def offer(self) -> float | None:
        """Lend the device if a job wants it and clients can spare it; return when to ask again."""
        now = time.monotonic()
        count = self._served()
        if count != self._count:
            if not self._met_known:
                # What came in the first turn after a pause had waited for its end.
                self._due = count + (count - self._count) * _REQUESTS_PER_PAUSE
                self._met_known = True
            self._count, self._last_request = count, now
        if not self._wanted.is_set():
            return None
        idle = now - self._last_request > _IDLE_SECONDS
        if not (self.urgent or self._cancelled or idle or count >= self._due or now - self._lent_at > _LONGEST_WAIT):
            return _LOOK_SECONDS
        self._wanted.clear()
        self._lent.release()
        self._returned.acquire()
        self._lent_at = time.monotonic()
        self.longest_pause = max(self.longest_pause, self._lent_at - now)
        self._met_known = idle
        return _LOOK_SECONDS if self._wanted.is_set() else None

    def lend_until(self, done: Callable[[], bool]) -> None:
        """Lend the device until something is so: when the loop has nothing else to do any more."""
        while not done():
            if self._wanted.wait(_LOOK_SECONDS):
                self._wanted.clear()
                self._lent.release()
                self._returned.acquire()
