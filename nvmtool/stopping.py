"""Ending in order what runs until it is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


class Stop:
    """Tells a run to end; `reason` says who asked first."""

    def __init__(self) -> None:
        """Nobody asked yet."""
        self.reason = ""
        self.times_asked = 0
        self._asked = threading.Event()
        self._listeners: list[Callable[[], None]] = []

    def ask(self, reason: str) -> None:
        """Let the run end in order as soon as it can."""
        self.reason = self.reason or reason
        self.times_asked += 1
        self._asked.set()
        for listener in self._listeners:
            listener()

    def on_ask(self, listener: Callable[[], None]) -> None:
        """Call somebody whenever somebody asks, perhaps in a signal handler."""
        self._listeners.append(listener)

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until somebody asks; return whether somebody did."""
        return self._asked.wait(max(0.0, seconds))


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Let SIGTERM, SIGINT and SIGHUP end a run in order, in the main thread; in another one signals stay as they are.

    A SIGHUP that is ignored, as nohup wants it, stays so.
    """
    stop = Stop()

    def handler(number: int, _frame: FrameType | None) -> None:
        stop.ask(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
