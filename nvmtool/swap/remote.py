"""Defragmentation of a swap file that another process, its VM's, has open: requests over a local socket.

The VM answers between two faults, so that a request costs it no more than a transaction of a bounded number of words; the copying is the
helper's. The socket has no name in the file system: it goes with its process. When the helper goes, what was held for it is free again.

    helper                            VM
    begin                        ->   which blocks to empty             -> status
    plan n                       ->   slots held for n pages            -> (sources, targets)
       (copies, fence)
    commit                       ->   frames that did not change        -> how many moved
    end                          ->                                     -> status
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import numpy as np

from ..errors import BusyError, NvmtoolError, RefusedError, StorageError
from ..media import lock
from .moves import Mover, Moves, Status

if TYPE_CHECKING:
    from pathlib import Path

    from .swapfile import SwapFile

_REQUEST = struct.Struct("<4sI")
_STATUS = struct.Struct("<qqq")
_COUNT = struct.Struct("<q")
_MOVES = struct.Struct("<q?7x")
_ERROR = struct.Struct("<i")
_CREDENTIALS = struct.Struct("iII")
_BEGIN, _PLAN, _COMMIT, _END = b"begn", b"plan", b"comt", b"end."
_OK, _FAILED = b"+", b"-"
_MOST_MOVES = 4096
_MESSAGE_BYTES = 1 + _MOVES.size + 16 * _MOST_MOVES
_ANSWER_SECONDS = 60.0
# Asking the kernel at each call would cost a fault in memory as much as the fault itself.
_CALLS_PER_LOOK = 16
_WAIT_MILLISECONDS = 50


class Service:
    """The VM's side: answers one helper at a time whenever `poll` is called."""

    def __init__(self, swap: SwapFile) -> None:
        """Listen for helpers of an open swap file; where the name is taken by somebody, there is no service."""
        self._swap = swap
        self._mover: Mover | None = None
        self._client: socket.socket | None = None
        self._calls = 0
        self._pausing = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._ready = select.poll()
        with suppress(OSError):
            self._listener.bind(_address(os.fstat(swap.pages.fd)))
            self._listener.listen(1)
            self._ready.register(self._listener, select.POLLIN)

    def poll(self) -> bool:
        """Answer what a helper asks for, if it does; return whether something was done. Raises nothing that concerns the helper alone."""
        self._calls += 1
        if self._calls % _CALLS_PER_LOOK:
            return False
        return self.answer(0)

    def answer(self, milliseconds: int) -> bool:
        """Wait so long for a request, and answer it; return whether something was done."""
        done = False
        for fd, _ in self._ready.poll(milliseconds):
            done = True
            if fd == self._listener.fileno():
                self._accept()
            else:
                self._serve()
        return done

    def wait_until_free(self, seconds: float) -> bool:
        """Let the helper finish what slots are held for, and give it no others meanwhile; return whether some came free."""
        if self._mover is None or not self._mover.holds:
            return False
        self._pausing, deadline = True, time.monotonic() + seconds
        try:
            while self._mover is not None and self._mover.holds and time.monotonic() < deadline:
                self.answer(_WAIT_MILLISECONDS)
            return self._mover is None or not self._mover.holds
        finally:
            self._pausing = False

    def close(self, seconds: float, *, commit: bool) -> bool:
        """Stop to listen, and send the helper away; return False when slots are held for it that it may write to after so long.

        Without `commit` nothing is waited for and nothing changed, as after a failure.
        """
        with suppress(KeyError):  # the name was taken, or a helper is there
            self._ready.unregister(self._listener)
        self._listener.close()
        if commit:
            self.wait_until_free(seconds)
        free = self._mover is None or not self._mover.holds
        if not (free and commit):
            # It may be at work still, so what it holds stays taken.
            self._mover = None
        self._drop()
        return free

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # no descriptor to spare: the VM goes on, and the helper waits
            return
        if _peer_uid(client) not in (0, os.geteuid()):
            with suppress(OSError):
                client.send(_FAILED + _ERROR.pack(BusyError.exit_code) + b"its VM belongs to another user")
            client.close()
            return
        client.setblocking(False)
        self._client = client
        # The next helper waits until this one's end has been noticed.
        self._ready.unregister(self._listener)
        self._ready.register(client, select.POLLIN)

    def _serve(self) -> None:
        assert self._client is not None
        try:
            request = self._client.recv(_REQUEST.size)
            if not request:
                self._drop()
                return
            self._client.send(self._answer(request))
        except OSError:  # the helper is gone, or does not take its answers
            self._drop()

    def _answer(self, request: bytes) -> bytes:
        try:
            what, number = _REQUEST.unpack(request)
            if what == _BEGIN:
                self._mover = self._mover or Mover(self._swap)
                return _OK + _status_bytes(self._mover.begin())
            if self._mover is None:
                raise StorageError("asked before begin")
            if what == _PLAN:
                moves = self._mover.plan(0 if self._pausing else min(number, _MOST_MOVES))
                return (
                    _OK + _MOVES.pack(len(moves.sources), moves.last or self._pausing) + moves.sources.tobytes() + moves.targets.tobytes()
                )
            if what == _COMMIT:
                return _OK + _COUNT.pack(self._mover.commit())
            mover, self._mover = self._mover, None
            return _OK + _status_bytes(mover.end())
        except struct.error:
            return _FAILED + _ERROR.pack(StorageError.exit_code) + b"not a request"
        except NvmtoolError as error:
            return _FAILED + _ERROR.pack(error.exit_code) + str(error).encode()[:1024]

    def _drop(self) -> None:
        if self._client is not None:
            self._ready.unregister(self._client)
            self._client.close()
            self._client = None
            if self._listener.fileno() >= 0:
                self._ready.register(self._listener, select.POLLIN)
        if self._mover is not None:
            # The helper's process is gone or told so: nobody writes to its slots any more.
            mover, self._mover = self._mover, None
            with suppress(BusyError):  # what was moved is durable; the rest goes with the next commit
                mover.end()


class RemoteMover:
    """The helper's side: asks the VM's process what moves.Mover does here. Use it as a context manager."""

    def __init__(self, path: Path, fd: int) -> None:
        """Call the process that has the file of a descriptor open for writing; raises BusyError or RefusedError."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_ANSWER_SECONDS)
        status = os.fstat(fd)
        try:
            self._socket.connect(_address(status))
        except OSError as error:
            self._socket.close()
            raise BusyError(f"{path}: in use by {lock.holder(path, lock.WRITER)}, which takes no part in a defragmentation") from error
        # Anybody may take the name before the VM does, and would then say what is copied where.
        if (uid := _peer_uid(self._socket)) not in (0, os.geteuid(), status.st_uid):
            self._socket.close()
            raise RefusedError(f"{path}: user {uid} listens for defragmentations of this file, and is not its owner")

    def __enter__(self) -> Self:
        """Return the mover."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Hang up: what is held for this helper is free again."""
        self._socket.close()

    def begin(self) -> Status:
        """Let the VM choose which blocks to empty."""
        return Status(*_STATUS.unpack(self._ask(_BEGIN)))

    def plan(self, most: int) -> Moves:
        """Let the VM plan up to `most` moves."""
        answer = self._ask(_PLAN, most)
        count, last = _MOVES.unpack_from(answer)
        both = np.frombuffer(answer, np.int64, 2 * count, _MOVES.size)
        return Moves(both[:count], both[count:], last)

    def commit(self) -> int:
        """Let the VM commit what was planned and copied."""
        return int(_COUNT.unpack(self._ask(_COMMIT))[0])

    def end(self) -> Status:
        """End; the VM may fill all blocks again."""
        return Status(*_STATUS.unpack(self._ask(_END)))

    def _ask(self, what: bytes, number: int = 0) -> bytes:
        try:
            self._socket.send(_REQUEST.pack(what, number))
            answer = self._socket.recv(_MESSAGE_BYTES)
        except TimeoutError:
            raise BusyError(f"{self._path}: the VM does not answer") from None
        except OSError as error:
            raise BusyError(f"{self._path}: the VM has gone: {error.strerror}; run it again, or defragment without it") from error
        if answer[:1] == _OK:
            return answer[1:]
        if not answer:
            raise BusyError(f"{self._path}: the VM has gone; run it again, or defragment without it")
        (code,) = _ERROR.unpack_from(answer, 1)
        text = f"{self._path}: {answer[1 + _ERROR.size :].decode(errors='replace')}"
        raise BusyError(text) if code == BusyError.exit_code else StorageError(text)


def _peer_uid(connection: socket.socket) -> int:
    """Return the effective user of whoever is at the other end."""
    return int(_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1])


def _address(status: os.stat_result) -> str:
    """Return the name at which the process that owns a file listens."""
    return f"\0nvmtool-swap-{status.st_dev:x}-{status.st_ino:x}"


def _status_bytes(status: Status) -> bytes:
    return _STATUS.pack(status.blocks_allocated, status.blocks_optimal, status.pages_to_move)
