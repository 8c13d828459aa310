"""Management of an image that another process serves: a command asks over a local socket, and the server does what it would have done.

The socket has no name in the file system: its abstract one is made of the image's device and inode numbers, and goes with the process.
Each side checks who is at the other end. A request and all answers are messages of JSON:

    command                                            server
    {"operation": "purge", "arguments": {...}}    ->
                                                  <-   {"progress": [done, total, unit]}, now and then
                                                  <-   {"facts": {...}} or {"error": "BusyError", "message": "..."}

A command that hangs up, as after Ctrl-C, ends its operation between two commits.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import stat
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .. import errors
from ..errors import BusyError, NvmtoolError, RefusedError, StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ..region.sweep import Progress
    from .loop import Loop
    from .turns import Turns

    Facts = dict[str, Any]
    # Runs an operation in the thread of jobs, with the device in hand.
    Run = Callable[[str, Mapping[str, Any], Progress], Facts]

_CREDENTIALS = struct.Struct("iII")
_MOST_MESSAGE_BYTES = 1 << 18
_MOST_CALLERS = 16
_SEND_SECONDS = 10.0


def address_of(path: str | Path) -> str:
    """Return the name at which the process that serves an image listens; raises OSError."""
    status = os.stat(path)
    if stat.S_ISBLK(status.st_mode):  # whatever node leads to it
        return f"\0nvmtool-serve-block-{status.st_rdev:x}"
    return f"\0nvmtool-serve-{status.st_dev:x}-{status.st_ino:x}"


def peer_uid(connection: socket.socket) -> int:
    """Return the effective user of whoever is at the other end."""
    return int(_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1])


class Job:
    """One operation that somebody asked for, or the server itself (no connection)."""

    def __init__(self, operation: str, arguments: Mapping[str, Any], caller: socket.socket | None, done: Callable[[Job], None]) -> None:
        """Describe it; `done` is called in the thread of jobs."""
        self.operation, self.arguments, self.caller, self._done = operation, arguments, caller, done
        self.abandoned = False
        self.facts: Facts | None = None
        self.error: BaseException | None = None

    def finish(self) -> None:
        """Say how it went."""
        if self.facts is not None:
            self._send({"facts": self.facts}, wait=True)
        elif isinstance(self.error, NvmtoolError):
            self._send({"error": type(self.error).__name__, "message": str(self.error)}, wait=True)
        self._done(self)

    def progress(self, done: int, total: int, unit: str) -> None:
        """Tell how far it is, if the caller takes it."""
        self._send({"progress": [done, total, unit]}, wait=False)

    def _send(self, answer: Mapping[str, Any], *, wait: bool) -> None:
        if self.caller is not None:
            with suppress(OSError):  # the caller has gone, which the loop notices
                if wait:
                    self.caller.settimeout(_SEND_SECONDS)
                self.caller.send(json.dumps(answer).encode(), 0 if wait else socket.MSG_DONTWAIT)


class Jobs:
    """The one thread in which operations run, one after the other."""

    def __init__(self, turns: Turns, run: Run, loop: Loop) -> None:
        """Start the thread; it sleeps until there is something to do."""
        self.turns, self._run, self._loop = turns, run, loop
        self.current: Job | None = None
        self.failure: BaseException | None = None
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether no job runs or waits."""
        return self.current is None and self._queue.empty()

    def add(self, job: Job) -> None:
        """Let a job run when those before it have."""
        self._queue.put(job)

    def close(self) -> None:
        """End the running job at its next pause, all others at once, and the thread; the loop serves no longer."""
        self.turns.end("the server is ending; what was finished is kept, run the same command again for the rest")
        self._queue.put(None)
        self.turns.lend_until(lambda: not self._thread.is_alive())

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            self.current = job
            try:
                if job.abandoned:
                    continue
                with self.turns.job():
                    job.facts = self._run(job.operation, job.arguments, job.progress)
            except NvmtoolError as error:
                job.error = error
            except BaseException as error:  # a bug must end the server, not a thread that nobody looks at
                self.failure = error
                self._loop.wake()
                raise
            finally:
                self.current = None
                job.finish()
                self._loop.wake()


class Control:
    """The server's side: takes requests in the loop, and gives them to the thread of jobs."""

    def __init__(self, loop: Loop, jobs: Jobs, image: Path) -> None:
        """Listen; raises BusyError when the name is taken."""
        self._loop, self._jobs = loop, jobs
        self._callers: dict[int, socket.socket] = {}
        self._jobs_of: dict[int, Job] = {}
        self._finished: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(address_of(image))
        except OSError as error:
            self._listener.close()
            raise BusyError(f"{image}: another process listens for its management: {error.strerror}") from error
        self._listener.listen(_MOST_CALLERS)
        loop.register(self._listener.fileno(), self._accept)
        loop.after_turn.append(self._close_finished)

    def close(self) -> None:
        """Stop to listen, and hang up."""
        self._loop.after_turn.remove(self._close_finished)
        self._loop.unregister(self._listener.fileno())
        self._listener.close()
        for fd in list(self._callers):
            self._drop(fd)

    def _accept(self, _mask: int) -> None:
        try:
            caller, _ = self._listener.accept()
        except OSError:  # gone already, or no descriptor to spare
            return
        caller.setblocking(False)
        foreign = peer_uid(caller) not in (0, os.geteuid())
        if foreign or len(self._callers) >= _MOST_CALLERS:
            why = "the server belongs to another user" if foreign else "the server has too many commands to do"
            Job("", {}, caller, lambda _: None)._send({"error": "BusyError", "message": why}, wait=False)
            caller.close()
            return
        fd = caller.fileno()
        self._callers[fd] = caller
        self._loop.register(fd, lambda _: self._receive(fd))

    def _receive(self, fd: int) -> None:
        try:
            request = self._callers[fd].recv(_MOST_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            request = b""
        job = self._jobs_of.get(fd)
        if request and job is None:
            self._begin(fd, request)
        elif job is None:
            self._drop(fd)
        else:  # it has hung up; closed when the job has ended
            self._loop.unregister(fd)
            job.abandoned = True
            if self._jobs.current is job:
                self._jobs.turns.cancel("interrupted")

    def _begin(self, fd: int, message: bytes) -> None:
        from ..region.operations import require_sound  # a command that finds a server needs none of it

        job = self._jobs_of[fd] = Job("", {}, self._callers[fd], self._finished.put)
        try:
            request = json.loads(message)
            job.operation, job.arguments = str(request["operation"]), dict(request["arguments"])
            require_sound(job.operation, job.arguments)
        except (ValueError, KeyError, TypeError, RecursionError, UsageError) as error:
            job.error = error if isinstance(error, UsageError) else UsageError(f"not a request: {error}")
            job.finish()
            return
        self._jobs.add(job)

    def _close_finished(self) -> float | None:
        while not self._finished.empty():
            done = self._finished.get()
            for fd in [fd for fd, job in self._jobs_of.items() if job is done]:
                self._drop(fd)
        return None

    def _drop(self, fd: int) -> None:
        self._jobs_of.pop(fd, None)
        found = self._callers.pop(fd, None)
        if found is not None:
            self._loop.unregister(fd)
            found.close()


class Server:
    """The command's side: the process that serves an image, found by `find_server`."""

    def __init__(self, path: str | Path, connection: socket.socket) -> None:
        """Stand on a connection."""
        self._path, self._connection = path, connection

    def run(self, operation: str, arguments: Mapping[str, Any], progress: Progress = None) -> Facts:
        """Let the server run an operation, and return the facts; raises what it raised there, or BusyError when the server goes."""
        with self._connection:
            try:
                self._connection.send(json.dumps({"operation": operation, "arguments": arguments}).encode())
            except OSError as error:
                raise UsageError(f"{self._path}: the server does not take the request: {error.strerror}") from error
            while message := self._receive():
                answer = json.loads(message)
                if "facts" in answer:
                    return dict(answer["facts"])
                if "error" in answer:
                    raise _error(answer["error"], answer["message"])
                if progress is not None:
                    progress(*answer["progress"])
        raise BusyError(f"{self._path}: the server has gone; run the same command again")

    def _receive(self) -> bytes:
        try:
            return self._connection.recv(_MOST_MESSAGE_BYTES)
        except OSError:  # it was killed
            return b""


def find_server(path: str | Path) -> Server | None:
    """Return the process that serves an image, or None; raises RefusedError when it is somebody who may not."""
    try:
        address = address_of(path)
    except OSError:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        return None
    # Anybody may take the name, and would then say what was done.
    if (uid := peer_uid(connection)) not in (0, os.geteuid(), os.stat(path).st_uid):
        connection.close()
        raise RefusedError(f"{path}: user {uid} listens for the management of this image, and is not its owner")
    return Server(path, connection)


def _error(name: str, message: str) -> NvmtoolError:
    cls = getattr(errors, name, StorageError)
    return cls(message) if isinstance(cls, type) and issubclass(cls, NvmtoolError) else StorageError(message)
