"""A limit on time: what takes longer hangs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

HANG_SECONDS = 2.0


class Hang(BaseException):
    """More time went by than there was."""


@contextmanager
def limited(seconds: float = HANG_SECONDS) -> Iterator[None]:
    """Raise Hang when the block takes too long, even inside a loop that never ends."""

    def ring(*_: object) -> None:
        raise Hang

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
