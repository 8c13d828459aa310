"""The tasks of a mount: what pyfuse3 needs of trio, on the event loop that the serving process has anyway.

pyfuse3 looks up what it uses of trio in `pyfuse3.trio`, which may be replaced (so its asyncio mode works). Trio goes
twice through epoll for each request; here a task that is to wait for the kernel's next request goes on at once when there is one.
"""

from __future__ import annotations

import select
import time
from collections import deque
from types import coroutine
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from .loop import Loop

    Task = Coroutine[Any, None, object]

# So many requests are answered before the loop has its turn.
_MOST_REQUESTS = 64


class ClosedResourceError(Exception):
    """What somebody waits for will not be there any more."""


@coroutine
def _suspend() -> Generator[None, None, None]:
    yield


class Tasks:
    """Coroutines of one thread, run when the loop turns. `pyfuse3.trio` and its `lowlevel` are one of these."""

    ClosedResourceError = ClosedResourceError

    def __init__(self, loop: Loop) -> None:
        """Have no tasks yet."""
        self.lowlevel = self
        # pyfuse3 asks for the name of a task, for its log.
        self.name = "pyfuse"
        self._loop = loop
        self._poll = select.poll()
        self._registered = False
        self._ready: deque[Task] = deque()
        self._current: Task | None = None
        self._reader: Task | None = None
        self._sleeping: list[tuple[float, Task]] = []
        self._ntasks = self._budget = 0
        self._closing = False
        loop.after_turn.append(self._run)

    @property
    def is_done(self) -> bool:
        """Whether all tasks have ended."""
        return self._ntasks == 0

    def start(self, task: Task) -> None:
        """Run a coroutine from the next turn on; what it raises comes out of that turn of the loop."""
        self._ntasks += 1
        self._ready.append(task)

    def close(self) -> None:
        """Run nothing any more."""
        self._loop.after_turn.remove(self._run)

    async def sleep(self, seconds: float) -> None:
        """Let others run for at least so long."""
        assert self._current is not None
        self._sleeping.append((time.monotonic() + seconds, self._current))
        await _suspend()

    # --- what pyfuse3 calls

    async def wait_readable(self, fd: int) -> None:
        """Return when the descriptor, always the same one, can be read."""
        if not self._registered:
            self._registered = True
            self._poll.register(fd, select.POLLIN)
            self._loop.register(fd, self._wake_reader)
        if self._budget > 0 and self._poll.poll(0):
            self._budget -= 1
        elif not self._closing:
            self._reader = self._current
            await _suspend()
        if self._closing:
            raise ClosedResourceError

    def notify_closing(self, _fd: int) -> None:
        """Let whoever waits for the descriptor know that it will be closed."""
        self._closing = True
        self._wake_reader()

    def current_task(self) -> Self:
        """Return what has a name."""
        return self

    def current_trio_token(self) -> str:
        """Return what nobody uses."""
        return "nvmtool"

    def open_nursery(self) -> _Nursery:
        """Return a context whose end waits for the tasks that were started in it."""
        return _Nursery(self)

    def Lock(self) -> _Lock:
        """Return a lock of tasks."""
        return _Lock(self)

    # --- running

    def _wake_reader(self, _mask: int = 0) -> None:
        if self._reader is not None:
            self._ready.append(self._reader)
            self._reader = None

    def _run(self) -> float | None:
        if self._sleeping:
            now = time.monotonic()
            self._ready.extend(task for due, task in self._sleeping if due <= now)
            self._sleeping = [(due, task) for due, task in self._sleeping if due > now]
        self._budget = _MOST_REQUESTS
        while self._ready:
            self._current = self._ready.popleft()
            try:
                self._current.send(None)
            except StopIteration:
                self._ntasks -= 1
        return max(0.0, min(due for due, _ in self._sleeping) - time.monotonic()) if self._sleeping else None


class _Nursery:
    """Tasks that were started together."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._nrunning = 0
        self._parent: Task | None = None

    async def __aenter__(self) -> Self:
        return self

    def start_soon(self, function: Callable[..., Task], *arguments: object, name: str = "") -> None:
        self._nrunning += 1
        self._tasks.start(self._child(function(*arguments)))

    async def _child(self, task: Task) -> None:
        await task
        self._nrunning -= 1
        if self._nrunning == 0 and self._parent is not None:
            self._tasks._ready.append(self._parent)

    async def __aexit__(self, *error: object) -> None:
        if self._nrunning:
            self._parent = self._tasks._current
            await _suspend()


class _Lock:
    """Handed on in the order in which it was asked for."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._held = False
        self._waiting: deque[Task] = deque()

    async def __aenter__(self) -> None:
        if self._held:
            assert self._tasks._current is not None
            self._waiting.append(self._tasks._current)
            await _suspend()
        self._held = True

    async def __aexit__(self, *error: object) -> None:
        if self._waiting:
            self._tasks._ready.append(self._waiting.popleft())
        else:
            self._held = False
