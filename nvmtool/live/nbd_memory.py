"""Memory that all clients of an NBD server share: for large requests, and for answers that wait to be taken."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_LARGE = 8
_LARGE_SECONDS = 30.0
MOST_UNTAKEN_BYTES = 256 << 20

_T = TypeVar("_T")


class LargeRequests(Generic[_T]):
    """Who has room for a request that is larger than the usual buffer: a few at a time, in the order in which they came."""

    def __init__(self, granted: Callable[[_T], None]) -> None:
        """Call `granted` with whoever waited, when it may go on."""
        self._granted = granted
        self._holders: dict[_T, float] = {}
        self._waiting: dict[_T, None] = {}

    def take(self, client: _T) -> bool:
        """Tell whether a client has its room now; else it waits."""
        if client in self._holders:
            return True
        if len(self._holders) < MOST_LARGE:
            self._holders[client] = time.monotonic()
            return True
        self._waiting[client] = None
        return False

    def is_waiting(self, client: _T) -> bool:
        """Tell whether a client waits for room."""
        return client in self._waiting

    def give_back(self, client: _T) -> None:
        """Let the next one have the room of a client, which needs it no longer, nor waits."""
        self._waiting.pop(client, None)
        if self._holders.pop(client, None) is not None and self._waiting:
            following = next(iter(self._waiting))
            del self._waiting[following]
            self._holders[following] = time.monotonic()
            self._granted(following)

    def overdue(self, now: float) -> list[_T]:
        """Return who has had room for too long while others wait."""
        if not self._waiting:
            return []
        return [client for client, since in self._holders.items() if now - since > _LARGE_SECONDS]


class Untaken(Generic[_T]):
    """How many bytes wait for clients to take them, and who has to go when these are too many."""

    def __init__(self) -> None:
        """Know of nobody."""
        self._sizes: dict[_T, int] = {}
        self._total = 0

    def note(self, client: _T, size: int) -> list[_T]:
        """Remember how much waits for a client, and return those to drop: whoever took nothing for longest first."""
        before = self._sizes.get(client, 0)
        if size == before:
            return []
        self.forget(client)
        if size:
            self._sizes[client] = size
            self._total += size
        late: list[_T] = []
        rest = self._total
        for each, waits in self._sizes.items():
            if rest <= MOST_UNTAKEN_BYTES:
                break
            late.append(each)
            rest -= waits
        return late

    def forget(self, client: _T) -> None:
        """Forget a client."""
        self._total -= self._sizes.pop(client, 0)
