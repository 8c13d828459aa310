"""The NBD handshake of one client: fixed newstyle, from the greeting to the export it chose.

What a client sends here is bounded: an option longer than its strings may be is refused, and a client that has not chosen after
`MOST_OPTIONS` of them is dropped.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ..errors import NotFoundError, NvmtoolError
from . import nbd_protocol as nbd
from .nbd_protocol import ExportFlag, HandshakeFlag, Info, Option, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..region.access import Export

MOST_OPTIONS = 256
PREFERRED_BLOCK = 4096
# An option's data: an export name, and a few context names or info types.
_MOST_OPTION_BYTES = 64 << 10
_MOST_QUERIES = 64
# LIST is answered with far more than it is asked with.
_ENOUGH_ANSWER_BYTES = 64 << 10
# A plain number: the inverse of a flag of an enum knows none of the bits that have no name.
_KNOWN_FLAGS = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)


class ProtocolError(Exception):
    """The client does not speak the protocol; it is dropped."""


class Handshake:
    """Takes what a client sends; `answer` holds what it is to get. Done when `export` is set, or `aborted`."""

    def __init__(self, find_export: Callable[[str], Export], names: Callable[[], list[str]]) -> None:
        """Offer exports; `find_export` raises NotFoundError or another NvmtoolError for what is no export."""
        self._find_export, self._names = find_export, names
        self.answer = bytearray(nbd.GREETING.pack(nbd.NBD_MAGIC, nbd.OPTION_MAGIC, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES))
        self.export: Export | None = None
        self.aborted = False
        # Options wait until the answer has been taken.
        self.is_paused = False
        self.structured = False
        # The id that base:allocation has for this client, 0 until it asks for it, and the export that it asked for.
        self.context_id = 0
        self._context_export = ""
        self._flags: int | None = None
        self._noptions = 0

    def feed(self, data: memoryview) -> int:
        """Take what is whole of the data, and return how many bytes that was; raises ProtocolError."""
        done = 0
        self.is_paused = False
        while self.export is None and not self.aborted:
            rest = data[done:]
            if self._flags is None:
                if len(rest) < nbd.CLIENT_FLAGS.size:
                    break
                self._take_flags(nbd.CLIENT_FLAGS.unpack_from(rest)[0])
                done += nbd.CLIENT_FLAGS.size
                continue
            if len(rest) < nbd.OPTION.size:
                break
            magic, option, length = nbd.OPTION.unpack_from(rest)
            if magic != nbd.OPTION_MAGIC:
                raise ProtocolError(f"option with magic {magic!r}")
            if length > _MOST_OPTION_BYTES:
                raise ProtocolError(f"option {option} of {length} bytes")
            if len(rest) < nbd.OPTION.size + length:
                break
            if len(self.answer) > _ENOUGH_ANSWER_BYTES:
                self.is_paused = True
                break
            self._take_option(option, bytes(rest[nbd.OPTION.size : nbd.OPTION.size + length]))
            done += nbd.OPTION.size + length
        return done

    def _take_flags(self, flags: int) -> None:
        if flags & ~_KNOWN_FLAGS:
            raise ProtocolError(f"client flags 0x{flags:x}")
        self._flags = flags

    def _take_option(self, option: int, data: bytes) -> None:
        self._noptions += 1
        if self._noptions > MOST_OPTIONS:
            raise ProtocolError(f"more than {MOST_OPTIONS} options")
        match option:
            case Option.EXPORT_NAME:
                self._export_name(data)
            case Option.ABORT:
                self._reply(option, Reply.ACK)
                self.aborted = True
            case Option.LIST:
                self._list(option, data)
            case Option.INFO | Option.GO:
                self._info(option, data)
            case Option.STRUCTURED_REPLY:
                self._structured(option, data)
            case Option.LIST_META_CONTEXT | Option.SET_META_CONTEXT:
                self._contexts(option, data)
            case Option.STARTTLS:
                self._reply(option, Reply.ERR_POLICY, b"no TLS here: use a Unix socket, or loopback")
            case _:
                self._reply(option, Reply.ERR_UNSUP)

    def _export_name(self, data: bytes) -> None:
        """Choose an export in the old way, which knows no errors but hanging up."""
        try:
            export = self._find_export(_name(data))
        except (NvmtoolError, UnicodeDecodeError, ValueError) as error:
            raise ProtocolError(str(error)) from error
        self.answer += nbd.EXPORT_NAME_REPLY.pack(export.size_bytes, flags_of(export, structured=self.structured))
        if not (self._flags or 0) & HandshakeFlag.NO_ZEROES:
            self.answer += nbd.ZEROES_AFTER_EXPORT_NAME
        self._choose(export)

    def _choose(self, export: Export) -> None:
        if self._context_export != export.name:
            self.context_id = 0
        self.export = export

    def _list(self, option: int, data: bytes) -> None:
        if data:
            self._reply(option, Reply.ERR_INVALID, b"LIST takes no data")
            return
        for name in self._names():
            encoded = name.encode()
            self._reply(option, Reply.SERVER, nbd.LENGTH.pack(len(encoded)) + encoded)
        self._reply(option, Reply.ACK)

    def _structured(self, option: int, data: bytes) -> None:
        if data:
            self._reply(option, Reply.ERR_INVALID, b"STRUCTURED_REPLY takes no data")
            return
        self.structured = True
        self._reply(option, Reply.ACK)

    def _info(self, option: int, data: bytes) -> None:
        try:
            raw, rest = _take_string(data)
            (count,) = nbd.INFO_TYPE.unpack_from(rest)
            if len(rest) != 2 + 2 * count:
                raise ValueError
            wanted = {nbd.INFO_TYPE.unpack_from(rest, 2 + 2 * number)[0] for number in range(count)}
            name = _name(raw)
        except (ValueError, struct.error):
            self._reply(option, Reply.ERR_INVALID, b"malformed")
            return
        export = self._find(option, name)
        if export is None:
            return
        if Info.NAME in wanted:
            self._reply(option, Reply.INFO, nbd.INFO_TYPE.pack(Info.NAME) + export.name.encode())
        if Info.DESCRIPTION in wanted:
            kind = f"region {export.region.name}" + (f", snapshot {export.snapshot}" if export.snapshot is not None else "")
            self._reply(option, Reply.INFO, nbd.INFO_TYPE.pack(Info.DESCRIPTION) + kind.encode())
        # Told whether or not it was asked for: a hint is no demand.
        self._reply(option, Reply.INFO, nbd.INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, 1, PREFERRED_BLOCK, nbd.MAX_PAYLOAD))
        flags = flags_of(export, structured=self.structured)
        self._reply(option, Reply.INFO, nbd.INFO_EXPORT.pack(Info.EXPORT, export.size_bytes, flags))
        self._reply(option, Reply.ACK)
        if option == Option.GO:
            self._choose(export)

    def _find(self, option: int, name: str) -> Export | None:
        try:
            return self._find_export(name)
        except NotFoundError as error:
            self._reply(option, Reply.ERR_UNKNOWN, str(error).encode()[: nbd.MAX_STRING])
        except NvmtoolError as error:
            self._reply(option, Reply.ERR_POLICY, str(error).encode()[: nbd.MAX_STRING])
        return None

    def _contexts(self, option: int, data: bytes) -> None:
        listing = option == Option.LIST_META_CONTEXT
        if not listing:  # whatever comes of it, it replaces what was selected before
            self.context_id = 0
        try:
            raw, rest = _take_string(data)
            (count,) = nbd.LENGTH.unpack_from(rest)
            if count > _MOST_QUERIES:
                self._reply(option, Reply.ERR_TOO_BIG, f"more than {_MOST_QUERIES} queries".encode())
                return
            queries, rest = [], rest[nbd.LENGTH.size :]
            for _ in range(count):
                query, rest = _take_string(rest)
                queries.append(query.decode())
            if rest or not self.structured:
                raise ValueError
            name = _name(raw)
        except (ValueError, struct.error):
            self._reply(option, Reply.ERR_INVALID, b"malformed, or before STRUCTURED_REPLY")
            return
        export = self._find(option, name)
        if export is None:
            return
        asked = nbd.BASE_ALLOCATION in queries or (listing and (not queries or "base:" in queries))
        if not listing:
            self.context_id, self._context_export = int(asked), export.name
        if asked:
            self._reply(option, Reply.META_CONTEXT, nbd.CONTEXT_ID.pack(0 if listing else 1) + nbd.BASE_ALLOCATION.encode())
        self._reply(option, Reply.ACK)

    def _reply(self, option: int, kind: Reply, data: bytes = b"") -> None:
        self.answer += nbd.OPTION_REPLY.pack(nbd.REPLY_MAGIC, option, kind, len(data)) + data


def flags_of(export: Export, *, structured: bool) -> int:
    """Return what an export can do.

    Several connections see each other's writes, and a flush on one makes all of them durable: one process serves them in turn.
    """
    flags = ExportFlag.HAS_FLAGS | ExportFlag.SEND_FLUSH | ExportFlag.SEND_FUA | ExportFlag.CAN_MULTI_CONN
    if structured:
        flags |= ExportFlag.SEND_DF
    if export.read_only:
        return flags | ExportFlag.READ_ONLY
    return flags | ExportFlag.SEND_TRIM | ExportFlag.SEND_WRITE_ZEROES | ExportFlag.SEND_FAST_ZERO


def _take_string(data: bytes) -> tuple[bytes, bytes]:
    """Return (a string that its length precedes, what is behind it); raises ValueError or struct.error."""
    (length,) = nbd.LENGTH.unpack_from(data)
    start = nbd.LENGTH.size
    if length > nbd.MAX_STRING or len(data) < start + length:
        raise ValueError
    return data[start : start + length], data[start + length :]


def _name(data: bytes) -> str:
    if len(data) > nbd.MAX_STRING:
        raise ValueError("name too long")
    return data.decode()
