"""The NBD server: an event loop that reads what all clients sent, serves it in batches, and answers each with one `sendmsg`.

A client can harm nobody else: what it may send is bounded, what it does not take is kept and nothing more is read from it, and what is
no NBD drops that client alone. Memory for requests that are larger than usual, and for answers that nobody takes, is bounded for all
clients together (`nbd_memory`).
"""

from __future__ import annotations

import errno
import mmap
import select
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from ..errors import BusyError, NvmtoolError
from . import nbd_protocol as nbd
from .nbd_handshake import Handshake, ProtocolError
from .nbd_memory import LargeRequests, Untaken
from .nbd_session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..region.access import Access, Export
    from .loop import Loop
    from .nbd_session import Buffer

MOST_CLIENTS = 128
_HANDSHAKE_SECONDS = 30.0
_BUFFER_BYTES = 4 << 20
_LEAST_ROOM = 64 << 10
_SOCKET_BYTES = 4 << 20
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_IOV_MAX = 1024
_BUSY_SECONDS = 0.02
_BATCHES_A_TURN = 4


class Exports(Protocol):
    """What an NBD server offers."""

    access: Access

    def find_export(self, name: str) -> Export:
        """Return an export by the name that a client gives; raises NvmtoolError."""

    def names(self) -> list[str]:
        """Return the names of the exports."""

    def waits_for_space(self) -> bool:
        """Tell whether a write that does not fit is to be held until it does."""


class Client:
    """One connection."""

    def __init__(self, server: NbdServer, connection: socket.socket) -> None:
        """Greet."""
        self.server = server
        self.socket = connection
        self.fd = connection.fileno()
        self.handshake: Handshake | None = Handshake(server.exports.find_export, server.exports.names)
        self.session: Session | None = None
        self.deadline = time.monotonic() + _HANDSHAKE_SECONDS
        self.unsent: list[Buffer] = []
        # It sends nothing more.
        self.at_end = False
        self.mask = select.EPOLLIN
        self._buffer = _fresh(_LEAST_ROOM)
        self._start = self._end = 0

    def receive(self) -> None:
        """Read what there is, and serve it; raises ProtocolError or OSError."""
        if not self._make_room():
            return
        while True:
            room = len(self._buffer) - self._end
            try:
                count = self.socket.recv_into(self._buffer[self._end :])
            except BlockingIOError:
                break
            if count == 0:
                self.at_end = True
                break
            self._end += count
            if count < room or self._end == len(self._buffer):
                break
        self.process()

    def process(self) -> None:
        """Serve what was received, as far as it may be now."""
        if self.handshake is not None:
            self._start += self.handshake.feed(self._buffer[self._start : self._end])
            if self.handshake.answer:
                self.unsent.append(bytes(self.handshake.answer))
                self.handshake.answer.clear()
            if self.handshake.export is not None:
                self.session = Session(self.handshake, self.server.report, waits_for_space=self.server.exports.waits_for_space)
                self.handshake = None
                self._buffer = self._moved(_BUFFER_BYTES)
            elif self.handshake.aborted:
                self.at_end = True
        session = self.session
        if session is not None and not session.is_blocked and not self.unsent:
            self._start += session.take(self._buffer[self._start : self._end])
            if session.out:
                self.unsent, session.out = session.out, []
        if self._start == self._end:
            self._start = self._end = 0
        if len(self._buffer) > _BUFFER_BYTES and session is not None and not session.held and self._missing <= _BUFFER_BYTES:
            self._buffer = self._moved(_BUFFER_BYTES)
            self.server.large.give_back(self)

    def collect(self) -> None:
        """Take over what the session has for the client."""
        session = self.session
        if session is not None and session.out:
            self.unsent += session.out
            session.out = []

    def send(self) -> None:
        """Send as much as the client takes now; raises OSError."""
        while self.unsent:
            batch = self.unsent[:_IOV_MAX]
            try:
                sent = self.socket.sendmsg(batch)
            except BlockingIOError:
                return
            if len(batch) == len(self.unsent) and sent == sum(map(len, batch)):
                self.unsent = []
                return
            position = 0
            while position < len(batch) and sent >= len(batch[position]):
                sent -= len(batch[position])
                position += 1
            del self.unsent[:position]
            if sent:
                self.unsent[0] = memoryview(self.unsent[0])[sent:]

    def own(self) -> None:
        """Copy what is still to be sent: blocks of the image may be written again from now on."""
        self.unsent = [bytes(each) if isinstance(each, memoryview) else each for each in self.unsent]
        if self.session is not None:  # a trim that came with reads is done when these have their answers
            self.session.out[:] = [bytes(each) if isinstance(each, memoryview) else each for each in self.session.out]

    @property
    def wants(self) -> int:
        """What this client waits for: to send, or to be sent to."""
        mask = select.EPOLLOUT if self.unsent else 0
        session = self.session
        may_send = not self.unsent and not self.server.large.is_waiting(self)
        if may_send and not self.at_end and (session is None or not session.is_blocked):
            mask |= select.EPOLLIN
        return mask

    @property
    def has_requests(self) -> bool:
        """Whether whole requests that were received already can be served now."""
        session = self.session
        if session is None:
            return self.handshake is not None and self.handshake.is_paused and not self.unsent
        if session.is_blocked or self.unsent:
            return False
        data = self._buffer[self._start : self._end]
        return len(data) >= nbd.REQUEST.size and len(data) >= session.missing(data)

    @property
    def is_owed(self) -> bool:
        """Whether something is to be done for it without its saying more."""
        return self.has_requests or (self.session is not None and not self.session.is_idle)

    @property
    def is_done(self) -> bool:
        """Whether it has ended, and got all that it is to get."""
        ending = self.at_end or (self.session is not None and self.session.closing)
        return ending and not self.unsent and not self.is_owed

    @property
    def _missing(self) -> int:
        """How many bytes the request that has begun to come in, or any, takes of the buffer."""
        used = self._end - self._start
        if self.session is None or not used:
            return used + _LEAST_ROOM
        return max(self.session.missing(self._buffer[self._start : self._end]), used + _LEAST_ROOM)

    def _make_room(self) -> bool:
        """Have room for the rest of the request that has begun to come in, and then some; False while others have all there is."""
        size = self._missing
        if self._start + size <= len(self._buffer):
            return True
        if size > len(self._buffer):
            if size > _BUFFER_BYTES and not self.server.large.take(self):
                return False
            self._buffer = self._moved(max(size, _LEAST_ROOM * 2))
        else:
            used = self._end - self._start
            self._buffer[:used] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, used
        return True

    def _moved(self, size: int) -> memoryview:
        used = self._end - self._start
        fresh = _fresh(max(size, used))
        fresh[:used] = self._buffer[self._start : self._end]
        self._start, self._end = 0, used
        return fresh


class NbdServer:
    """Serves all exports of a device on one listening socket, inside a loop."""

    def __init__(
        self,
        loop: Loop,
        exports: Exports,
        listener: socket.socket,
        report: Callable[[str], None],
    ) -> None:
        """Listen."""
        self.loop, self.exports, self.access, self.report = loop, exports, exports.access, report
        self.clients: dict[int, Client] = {}
        # Requests so far, of all clients.
        self.served = 0
        self.large: LargeRequests[Client] = LargeRequests(self._wait_for)
        self._untaken: Untaken[Client] = Untaken()
        self._owed: set[Client] = set()
        self._next_look = self._deaf_until = 0.0
        self._listener = listener
        listener.setblocking(False)
        loop.register(listener.fileno(), self._accept)
        loop.after_turn.append(self._finish_turn)
        self.access.device.journal.on_commit.append(self._own_unsent)

    def close(self) -> None:
        """Stop to listen, and drop all clients."""
        self.loop.after_turn.remove(self._finish_turn)
        self.loop.unregister(self._listener.fileno())
        self._listener.close()
        for client in list(self.clients.values()):
            self._drop(client)
        self.access.device.journal.on_commit.remove(self._own_unsent)

    @property
    def has_held(self) -> bool:
        """Whether writes wait for space, or for a reader."""
        return any(client.session is not None and bool(client.session.held) for client in self._owed)

    def users_of(self, region: str, snapshot: str | None = None) -> int:
        """Return how many clients have a region's running point or a snapshot; with "*" any state of the region."""
        exports = [client.session.export for client in self.clients.values() if client.session is not None]
        return sum(each.region.name == region and snapshot in ("*", each.snapshot) for each in exports)

    def _accept(self, _mask: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and not self._make_way():
                self._deaf_until = time.monotonic() + _BUSY_SECONDS
                self.loop.modify(self._listener.fileno(), 0)
            return
        if len(self.clients) >= MOST_CLIENTS and not self._make_way():
            connection.close()
            return
        connection.setblocking(False)
        _tune(connection)
        client = self.clients[connection.fileno()] = Client(self, connection)
        self.loop.register(client.fd, lambda mask: self._ready(client, mask))
        self._guarded(client, client.process)

    def _make_way(self) -> bool:
        """Drop the client that has been shaking hands for longest; False when all have chosen an export."""
        waiting = [client for client in self.clients.values() if client.session is None]
        if waiting:
            self._drop(min(waiting, key=lambda client: client.deadline))
        return bool(waiting)

    def _ready(self, client: Client, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._guarded(client, client.send)
        elif client.mask & select.EPOLLIN:
            self._guarded(client, client.receive)
        else:  # it has gone while it was owed something
            self._drop(client)

    def _guarded(self, client: Client, action: Callable[[], None]) -> None:
        """Do something for a client, then send, and wait for the right thing; it is dropped when it does not play along."""
        try:
            action()
            for _ in range(_BATCHES_A_TURN):
                client.collect()
                client.send()
                if not client.has_requests:
                    break
                client.process()
        except ProtocolError as error:
            self.report(f"client dropped: {error}")
            self._drop(client)
            return
        except OSError:  # it has gone
            self._drop(client)
            return
        session = client.session
        if session is not None:
            self.served += session.served
            session.served = 0
        if client.is_done:
            self._drop(client)
            return
        if client.is_owed:
            self._owed.add(client)
        self._wait_for(client)
        for late in self._untaken.note(client, sum(map(len, client.unsent))):
            self.report("client dropped: it takes no answers, and too many wait for the memory")
            self._drop(late)

    def _wait_for(self, client: Client) -> None:
        wanted = client.wants
        if wanted != client.mask:
            self.loop.modify(client.fd, wanted)
            client.mask = wanted

    def _finish_turn(self) -> float | None:
        """Do, once for all clients, what a turn of the loop left: flushes, pieces of long requests, held writes."""
        owed, self._owed = self._owed, set()
        sessions = [client.session for client in owed if client.session is not None]
        for session in sessions:
            if session.held:
                session.retry()
            session.work()
        if any(session.flushes for session in sessions):
            self._flush(sessions)
        for client in owed:
            if client.fd in self.clients and self.clients[client.fd] is client:
                self._guarded(client, client.process)
        self._look_at_clock()
        if not self._owed:
            return None
        waits = all(not client.has_requests and (client.session is None or not client.session.jobs) for client in self._owed)
        return _BUSY_SECONDS if waits else 0.0

    def _flush(self, sessions: list[Session]) -> None:
        """Make everything durable with one commit, and say so to all that wait for it."""
        failure: NvmtoolError | None = None
        try:
            self.access.flush()
        except BusyError:  # a reader keeps the log as it is; they wait for it
            return
        except NvmtoolError as error:
            failure = error
        for session in sessions:
            session.flushed(failure)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if self._deaf_until and now > self._deaf_until:
            self._deaf_until = 0.0
            self.loop.modify(self._listener.fileno(), select.EPOLLIN)
        if now > self._next_look:
            self._next_look = now + 1.0
            for client in [each for each in self.clients.values() if each.session is None and each.deadline < now]:
                self._drop(client)
            for client in self.large.overdue(now):
                if client.session is not None and not client.session.held:
                    self.report("client dropped: its request does not come to an end, and others wait for the memory")
                    self._drop(client)

    def _drop(self, client: Client) -> None:
        if self.clients.get(client.fd) is client:
            del self.clients[client.fd]
            self.loop.unregister(client.fd)
            client.socket.close()
            self._owed.discard(client)
            self._untaken.forget(client)
            self.large.give_back(client)

    def _own_unsent(self) -> None:
        for client in self.clients.values():
            client.own()


def _tune(connection: socket.socket) -> None:
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for forced, option in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            connection.setsockopt(socket.SOL_SOCKET, forced, _SOCKET_BYTES)
        except OSError:  # only root may have more than the system's limit
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)


def _fresh(size: int) -> memoryview:
    """Return room that takes memory only as far as something is put into it."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
