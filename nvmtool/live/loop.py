"""The event loop of a serving process: epoll, one handler per descriptor, and what is to be done after each turn."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_SLEEP = 1.0


class Loop:
    """Calls handlers of descriptors that are ready; in one thread, but for `wake`."""

    def __init__(self) -> None:
        """Have no descriptors yet."""
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], object]] = {}
        # Each is called after the events of a turn, and returns for how many seconds the loop may sleep at most, or None.
        self.after_turn: list[Callable[[], float | None]] = []
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.register(self._wake_fd, lambda _: os.eventfd_read(self._wake_fd))

    @property
    def fd(self) -> int:
        """The descriptor that is ready when a handler is to be called: for whoever waits for other things too."""
        return self._epoll.fileno()

    def register(self, fd: int, handler: Callable[[int], object], mask: int = select.EPOLLIN) -> None:
        """Call the handler with what happened whenever the descriptor is ready."""
        self._handlers[fd] = handler
        self._epoll.register(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        """Wait for something else."""
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        """Wait for a descriptor no longer; harmless when it is not waited for."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def wake(self) -> None:
        """End a sleep; from any thread or signal handler."""
        os.eventfd_write(self._wake_fd, 1)

    def turn(self, sleep: float) -> float:
        """Handle what is ready, after at most so many seconds, and return how long the next turn may sleep."""
        handlers = self._handlers
        for fd, mask in self._epoll.poll(sleep):
            handler = handlers.get(fd)  # a handler before it may have taken this one out
            if handler is not None:
                handler(mask)
        longest = _LONGEST_SLEEP
        for action in self.after_turn:
            wanted = action()
            if wanted is not None and wanted < longest:
                longest = wanted
        return longest

    def close(self) -> None:
        """Release the descriptors."""
        self._epoll.close()
        os.close(self._wake_fd)
