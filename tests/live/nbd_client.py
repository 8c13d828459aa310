"""A small NBD client that can do everything wrong."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from pathlib import Path

from nvmtool.live import nbd_protocol as nbd
from nvmtool.live.nbd_protocol import Command, Option

SECONDS = 20.0


class Raw:
    """One connection, of which every byte is the test's own."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SECONDS)
        deadline = time.monotonic() + SECONDS
        while (error := self.socket.connect_ex(str(path))) == errno.EAGAIN and time.monotonic() < deadline:
            time.sleep(0.01)  # more are waiting than the server lets wait
        assert error == 0, os.strerror(error)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def get(self, count: int) -> bytes:
        """Return exactly so many bytes; raises EOFError when the server hangs up before."""
        data = b""
        while len(data) < count:
            try:
                more = self.socket.recv(count - len(data))
            except ConnectionResetError:
                more = b""
            if not more:
                raise EOFError
            data += more
        return data

    def is_dropped(self) -> bool:
        """Tell whether the server hangs up, whatever it says before."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        return True

    def greet(self, flags: int = 3) -> None:
        assert self.get(18)[:16] == nbd.NBD_MAGIC + nbd.OPTION_MAGIC
        self.socket.sendall(struct.pack(">I", flags))

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option, and return its replies up to the one that ends it."""
        self.socket.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, option, len(data)) + data)
        replies = []
        while not replies or replies[-1][0] in (2, 3, 4):
            magic, _, kind, length = nbd.OPTION_REPLY.unpack(self.get(nbd.OPTION_REPLY.size))
            assert magic == nbd.REPLY_MAGIC
            replies.append((kind, self.get(length)))
        return replies

    def go(self, name: str = "", *, structured: bool = False, context: bool = False) -> None:
        """Come to the requests."""
        self.greet()
        raw = struct.pack(">I", len(name)) + name.encode()
        if structured:
            assert self.option(Option.STRUCTURED_REPLY)[-1][0] == 1
        if context:
            query = nbd.BASE_ALLOCATION.encode()
            answer = self.option(Option.SET_META_CONTEXT, raw + struct.pack(">II", 1, len(query)) + query)
            assert [kind for kind, _ in answer] == [4, 1]
        assert self.option(Option.GO, raw + b"\0\0")[-1][0] == 1

    def send(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 1, payload: bytes = b"") -> None:
        self.socket.sendall(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, cookie, offset, length) + payload)

    def reply(self) -> tuple[int, int]:
        """Return (error, cookie) of a simple reply."""
        magic, error, cookie = nbd.SIMPLE_REPLY.unpack(self.get(nbd.SIMPLE_REPLY.size))
        assert magic == nbd.SIMPLE_MAGIC, hex(magic)
        return error, cookie

    def chunk(self) -> tuple[int, int, int, bytes]:
        """Return (flags, kind, cookie, data) of a structured reply chunk."""
        magic, flags, kind, cookie, length = nbd.CHUNK.unpack(self.get(nbd.CHUNK.size))
        assert magic == nbd.CHUNK_MAGIC, hex(magic)
        return flags, kind, cookie, self.get(length)

    def ask(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b"") -> int:
        """Do one request without structured replies, and return its error."""
        self.send(command, offset, length, flags=flags, payload=payload)
        error, cookie = self.reply()
        assert cookie == 1
        return error

    def read(self, offset: int, length: int) -> bytes:
        assert self.ask(Command.READ, offset, length) == 0
        return self.get(length)

    def write(self, offset: int, data: bytes, *, flags: int = 0) -> int:
        return self.ask(Command.WRITE, offset, len(data), flags=flags, payload=data)
