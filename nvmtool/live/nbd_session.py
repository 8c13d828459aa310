"""Requests of one NBD client: parsed many at once, served in batches by kind, answered in one go.

The protocol lets a server answer in any order what is in flight together, so of what came together the writes are done first, then
the reads. What takes long (trims, zeroes) is done in pieces, between which others are served.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ..errors import BusyError, NoSpaceError, NvmtoolError, RefusedError, UsageError
from ..region.access import ZEROS
from . import nbd_protocol as nbd
from .nbd_handshake import PREFERRED_BLOCK, ProtocolError
from .nbd_protocol import Chunk, Command, Error, Flag

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from ..region.access import Answer, Export
    from .nbd_handshake import Handshake

    Buffer = bytes | bytearray | memoryview
    Request = tuple[int, int, int, int, int]

# So much is taken from one client before others get their turn.
_MOST_REQUESTS = 1024
_MOST_REPLY_BYTES = 8 << 20
_MOST_JOBS = 16
_PIECE_BYTES = 64 << 20
# Of zeroes that are written, which takes longer than to make holes.
_WRITTEN_PIECE_BYTES = 4 << 20
_MOST_EXTENTS = 1024
_MOST_ERROR_BYTES = 1024
_READ, _WRITE, _DISC = int(Command.READ), int(Command.WRITE), int(Command.DISC)
_FUA = int(Flag.FUA)
# What a request may carry; FUA the protocol wants accepted everywhere. Plain numbers: the inverse of a flag of an enum knows none of the
# bits that have no name.
_ALLOWED: dict[int, int] = {
    Command.READ: int(Flag.FUA | Flag.DF),
    Command.WRITE: _FUA,
    Command.FLUSH: _FUA,
    Command.TRIM: _FUA,
    Command.WRITE_ZEROES: int(Flag.FUA | Flag.NO_HOLE | Flag.FAST_ZERO),
    Command.BLOCK_STATUS: int(Flag.FUA | Flag.REQ_ONE),
}
_DONE = object()
_OK = nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_MAGIC, 0, 0)[:8]


class Session:
    """One client that has chosen an export. `out` is what it is to get."""

    def __init__(self, handshake: Handshake, report: Callable[[str], None], *, waits_for_space: Callable[[], bool]) -> None:
        """Serve the export of a finished handshake.

        `report` is told of damage and failures of the medium; `waits_for_space()` says whether a write that does not fit is to be held.
        """
        assert handshake.export is not None
        self.export: Export = handshake.export
        self._structured = handshake.structured
        self._has_context = handshake.context_id > 0
        self._report, self._waits_for_space = report, waits_for_space
        self.out: list[Buffer] = []
        # Cookies of requests that are complete once everything is durable.
        self.flushes: list[int] = []
        self.held: list[tuple[int, int, int, memoryview]] = []
        self.jobs: deque[Generator[None, None, None]] = deque()
        self.served = 0
        self.closing = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing is owed but what lies in `out`."""
        return not (self.flushes or self.held or self.jobs)

    @property
    def is_blocked(self) -> bool:
        """Whether no further request may be taken for now."""
        return self.closing or bool(self.held) or len(self.jobs) >= _MOST_JOBS

    def missing(self, data: memoryview) -> int:
        """Return how many bytes the request that the data begin with has in all."""
        if len(data) >= nbd.REQUEST.size:
            _, _, command, _, _, length = nbd.REQUEST.unpack_from(data)
            if command == _WRITE:
                return int(nbd.REQUEST.size + length)
        return nbd.REQUEST.size

    def take(self, data: memoryview) -> int:
        """Serve the whole requests that the data begin with, up to a limit, and return their bytes; raises ProtocolError.

        Payloads of writes that are `held` lie in the data: they must stay as they are until `retry`.
        """
        unpack, size, done = nbd.REQUEST.unpack_from, len(data), 0
        reads: list[tuple[int, int, int]] = []
        writes: list[tuple[int, int, int, memoryview]] = []
        others: list[Request] = []
        room = _MOST_REPLY_BYTES
        most_others = _MOST_JOBS - len(self.jobs)
        while size - done >= 28 and room > 0 and len(reads) + len(writes) < _MOST_REQUESTS and len(others) < most_others:
            magic, flags, command, cookie, offset, length = unpack(data, done)
            if magic != nbd.REQUEST_MAGIC:
                raise ProtocolError(f"request with magic 0x{magic:08x}")
            if command == _READ and not flags and 0 < length <= nbd.MAX_PAYLOAD:
                reads.append((cookie, offset, length))
                room -= length
            elif command == _WRITE:
                if length > nbd.MAX_PAYLOAD:
                    raise ProtocolError(f"write of {length} bytes")
                if size - done - 28 < length:
                    break
                writes.append((cookie, flags, offset, data[done + 28 : done + 28 + length]))
                done += length
            elif command == _DISC:
                self.closing = True
                done += 28
                break
            else:
                others.append((flags, command, cookie, offset, length))
            done += 28
        if writes:
            self._write(writes)
        if reads:
            self._read(reads)
        for request in others:
            self._serve_other(*request)
        self.served += len(reads) + len(writes) + len(others)
        return done

    def retry(self) -> None:
        """Try the held writes again."""
        held, self.held = self.held, []
        self._write(held)

    def work(self) -> None:
        """Do one piece of what takes long."""
        if self.jobs and next(self.jobs[0], _DONE) is _DONE:
            self.jobs.popleft()

    def flushed(self, error: NvmtoolError | None) -> None:
        """Answer all that waited for a flush, which was done or failed."""
        flushes, self.flushes = self.flushes, []
        for cookie in flushes:
            self._finish(cookie, error)

    # --- reading and writing

    def _read(self, reads: list[tuple[int, int, int]]) -> None:
        answers = self.export.read([(offset, length) for _, offset, length in reads])
        out = self.out
        if self._structured:
            for (cookie, offset, length), answer in zip(reads, answers, strict=True):
                if type(answer) is list:
                    out.append(nbd.CHUNK_OFFSET.pack(nbd.CHUNK_MAGIC, nbd.DONE, Chunk.OFFSET_DATA, cookie, 8 + length, offset))
                    out += answer
                elif answer is None:
                    out.append(nbd.CHUNK_HOLE.pack(nbd.CHUNK_MAGIC, nbd.DONE, Chunk.OFFSET_HOLE, cookie, 12, offset, length))
                else:
                    self._failed_read(cookie, offset, length, answer)
            return
        pack, magic = nbd.SIMPLE_REPLY.pack, nbd.SIMPLE_MAGIC
        for (cookie, offset, length), answer in zip(reads, answers, strict=True):
            if type(answer) is list:
                out.append(pack(magic, 0, cookie))
                out += answer
            elif answer is None:
                out.append(pack(magic, 0, cookie))
                out += [ZEROS[: min(len(ZEROS), length - start)] for start in range(0, length, len(ZEROS))]
            else:
                self._failed_read(cookie, offset, length, answer)

    def _failed_read(self, cookie: int, offset: int, length: int, answer: Answer) -> None:
        assert isinstance(answer, NvmtoolError)
        if isinstance(answer, UsageError):  # past the end
            self._refuse(cookie, Error.EINVAL, str(answer), structured=self._structured)
            return
        at = self._find_unreadable(offset, length)
        self._fail(cookie, answer, f"read of {length} bytes at {offset} fails at {at}", structured=self._structured, at=at)

    def _find_unreadable(self, offset: int, length: int) -> int:
        """Return where in a range that cannot be read the first block is that cannot; each other block is read once at most."""
        good, end = offset, offset + length
        while (middle := (good + end) // 2 // PREFERRED_BLOCK * PREFERRED_BLOCK) > good or (middle := middle + PREFERRED_BLOCK) < end:
            (answer,) = self.export.read([(good, middle - good)])
            if isinstance(answer, NvmtoolError):
                end = middle
            else:
                good = middle
        return good

    def _write(self, writes: list[tuple[int, int, int, memoryview]]) -> None:
        fine = []
        for write in writes:
            if write[1] & ~_FUA or not write[3]:
                self._refuse(write[0], Error.EINVAL)
            else:
                fine.append(write)
        answers = self.export.write([(offset, payload) for _, _, offset, payload in fine])
        done = bytearray()
        for write, answer in zip(fine, answers, strict=True):
            if answer is None:
                if write[1] & _FUA:
                    self.flushes.append(write[0])
                else:
                    done += _OK + write[0].to_bytes(8, "big")
            elif isinstance(answer, BusyError) or (isinstance(answer, NoSpaceError) and self._waits_for_space()):
                self.held.append(write)
            elif isinstance(answer, UsageError):  # past the end
                self._refuse(write[0], Error.ENOSPC)
            else:
                self._fail(write[0], answer, f"write of {len(write[3])} bytes at {write[2]}")
        if done:
            self.out.append(done)

    # --- everything else

    def _serve_other(self, flags: int, command: int, cookie: int, offset: int, length: int) -> None:
        allowed = _ALLOWED.get(command)
        structured = self._structured and command == _READ
        inside = length > 0 and offset + length <= self.export.size_bytes
        sound = offset == length == 0 if command == Command.FLUSH else inside
        if allowed is None or flags & ~allowed or not sound:
            self._refuse(cookie, Error.EINVAL, structured=structured)
        elif command == Command.FLUSH:
            self.flushes.append(cookie)
        elif command == _READ:
            if length > nbd.MAX_PAYLOAD or (flags & Flag.DF and not self._structured):
                self._refuse(cookie, Error.EINVAL, structured=structured)
            else:  # FUA has no effect, and DF none either: every answer here is one chunk
                self._read([(cookie, offset, length)])
        elif command == Command.BLOCK_STATUS:
            self._block_status(flags, cookie, offset, length)
        elif self.export.read_only:
            self._refuse(cookie, Error.EPERM)
        elif command == Command.TRIM:
            self._begin(self._trim(cookie, offset, length))
        elif flags & Flag.FAST_ZERO and flags & Flag.NO_HOLE:
            self._refuse(cookie, Error.ENOTSUP)  # blocks that stay are written with zeros, which is no faster than a write
        else:
            self._begin(self._zero(flags, cookie, offset, length))

    def _begin(self, job: Generator[None, None, None]) -> None:
        if next(job, _DONE) is not _DONE:
            self.jobs.append(job)

    def _trim(self, cookie: int, offset: int, length: int) -> Generator[None, None, None]:
        yield from self._in_pieces(cookie, "trim", self.export.trim, offset, length, _PIECE_BYTES)

    def _zero(self, flags: int, cookie: int, offset: int, length: int) -> Generator[None, None, None]:
        keep = bool(flags & Flag.NO_HOLE)

        def zero(start: int, size: int) -> None:
            self.export.write_zeroes(start, size, keep_allocated=keep)

        piece = _WRITTEN_PIECE_BYTES if keep else _PIECE_BYTES
        yield from self._in_pieces(cookie, "zeroes", zero, offset, length, piece, durable=bool(flags & Flag.FUA))

    def _in_pieces(
        self, cookie: int, name: str, action: Callable[[int, int], None], offset: int, length: int, piece: int, *, durable: bool = False
    ) -> Generator[None, None, None]:
        position, end = offset, offset + length
        while position < end:
            stop = min((position // piece + 1) * piece, end)
            try:
                action(position, stop - position)
            except BusyError:
                yield
                continue
            except NvmtoolError as error:
                if isinstance(error, NoSpaceError) and self._waits_for_space():
                    yield
                    continue
                self._fail(cookie, error, f"{name} of {length} bytes at {offset}")
                return
            position = stop
            if position < end:
                yield
        if durable:
            self.flushes.append(cookie)
        else:
            self._finish(cookie, None)

    def _block_status(self, flags: int, cookie: int, offset: int, length: int) -> None:
        if not (self._structured and self._has_context):
            self._refuse(cookie, Error.EINVAL, structured=self._structured)
            return
        most = 1 if flags & Flag.REQ_ONE else _MOST_EXTENTS
        extents = bytearray(nbd.CONTEXT_ID.pack(1))
        try:
            for number, (_, size, data) in enumerate(self.export.status(offset, length)):
                if number == most:
                    break
                extents += nbd.EXTENT.pack(size, 0 if data else nbd.HOLE | nbd.ZERO)
        except NvmtoolError as error:
            self._fail(cookie, error, f"block status of {length} bytes at {offset}", structured=True)
            return
        self.out += [nbd.CHUNK.pack(nbd.CHUNK_MAGIC, nbd.DONE, Chunk.BLOCK_STATUS, cookie, len(extents)), extents]

    # --- answers

    def _finish(self, cookie: int, error: NvmtoolError | None) -> None:
        if error is None:
            self.out.append(_OK + cookie.to_bytes(8, "big"))
        else:
            self._fail(cookie, error, "flush")

    def _fail(self, cookie: int, error: NvmtoolError, what: str, *, structured: bool = False, at: int | None = None) -> None:
        """Answer with an error; what is no fault of the client's is reported."""
        code = _error_of(error)
        if code == Error.EIO:
            self._report(f"{self.export.name}: {what}: {error}")
        self._refuse(cookie, code, str(error), structured=structured, at=at)

    def _refuse(self, cookie: int, code: Error, text: str = "", *, structured: bool = False, at: int | None = None) -> None:
        if not structured:
            self.out.append(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_MAGIC, code, cookie))
            return
        said = text.encode()[:_MOST_ERROR_BYTES]
        kind, where = (Chunk.ERROR, b"") if at is None else (Chunk.ERROR_OFFSET, nbd.ERROR_AT.pack(at))
        length = 6 + len(said) + len(where)
        self.out.append(nbd.CHUNK_ERROR.pack(nbd.CHUNK_MAGIC, nbd.DONE, kind, cookie, length, code, len(said)) + said + where)


def _error_of(error: NvmtoolError) -> Error:
    match error:
        case NoSpaceError():
            return Error.ENOSPC
        case RefusedError():
            return Error.EPERM
        case UsageError():
            return Error.EINVAL
    return Error.EIO
