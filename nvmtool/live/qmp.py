"""One QEMU's monitor (QMP), as a library call with a time limit; `qemu.qmp` speaks the protocol in an event loop of its own."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, QMPError, StateError

from ..errors import NotFoundError, StorageError

ANSWER_SECONDS = 3.0

_T = TypeVar("_T")


class CommandError(StorageError):
    """QEMU refused a command; `reason` is its error class, for example DeviceNotActive."""

    def __init__(self, message: str, reason: str = "") -> None:
        """Carry QEMU's word for it."""
        super().__init__(message)
        self.reason = reason


class Loop:
    """An event loop in a thread, for all monitors of a world."""

    def __init__(self) -> None:
        """Start it."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T], seconds: float) -> _T:
        """Return what work returns; raises TimeoutError when that takes too long."""
        waiting: Future[_T] = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, seconds), self._loop)
        return waiting.result(seconds + 1)

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()


def peer_of(path: str) -> int:
    """Return the process that listens at a Unix socket; raises NotFoundError or StorageError. Nothing is said to it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotFoundError(f"{path}: no QEMU listens here: {error.strerror}") from error
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror or error}") from error
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]
        return pid


class Monitor:
    """A connection to a guest's monitor."""

    def __init__(self, loop: Loop, name: str, path: str) -> None:
        """Connect; raises NotFoundError for a guest that is gone, StorageError for one that does not answer."""
        self._loop, self._name, self._path = loop, name, path
        self._client = QMPClient(name)
        if not Path(path).exists():
            raise NotFoundError(f"{name}: {path}: no such socket")
        try:
            loop.run(self._client.connect(path), ANSWER_SECONDS)
        except TimeoutError as error:
            raise StorageError(f"{name}: {path}: no greeting in {ANSWER_SECONDS:.0f} s; is another program connected?") from error
        except ConnectError as error:
            raise NotFoundError(f"{name}: {path}: {error}") from error

    def ask(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Return a command's answer; raises CommandError, NotFoundError when the guest is gone, or StorageError without an answer."""
        try:
            return self._loop.run(self._client.execute(command, arguments), ANSWER_SECONDS)
        except TimeoutError as error:
            raise StorageError(f"{self._name}: no answer to {command} in {ANSWER_SECONDS:.0f} s") from error
        except ExecuteError as error:
            raise CommandError(f"{self._name}: {command}: {error}", error.error_class) from error
        except (ExecInterruptedError, StateError, QMPError, OSError) as error:
            raise NotFoundError(f"{self._name}: {self._path}: the guest is gone") from error

    def close(self) -> None:
        """Disconnect; a guest that does not answer is left."""
        try:
            self._loop.run(self._client.disconnect(), 1.0)
        except (TimeoutError, QMPError, OSError, EOFError):
            return
