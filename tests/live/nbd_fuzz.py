"""Hostile clients of the NBD server, from a seed: beside them one client's bytes stay right, and afterwards nothing is left of them.

python -m tests.live.nbd_fuzz SEED SECONDS
"""

from __future__ import annotations

import os
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nvmtool.live import nbd_protocol as nbd
from nvmtool.live.nbd_protocol import Command, Flag, Option

from .conftest import BLOCK, MIB, Served
from .nbd_client import Raw

SIZE = 64 * MIB
_NAMES = ("junk", "vm1@monday", "", "vm2", "junk@", "junk@monday", "\0", "x" * 4096, "x" * 4097, "é")
_LENGTHS = (0, 1, 511, 512, BLOCK, BLOCK + 1, MIB, nbd.MAX_PAYLOAD, nbd.MAX_PAYLOAD + 1, 1 << 31, 0xFFFFFFFF)
_OFFSETS = (0, 1, 512, SIZE - 1, SIZE - BLOCK, SIZE, 1 << 32, 1 << 63, (1 << 64) - 1)
_MOST_LINGERING = 100
# What the server may have of memory beyond what it had: a few large requests, untaken answers, a buffer per connection, and the rest.
MOST_BYTES = 1 << 30


class Verifier(threading.Thread):
    """A client that behaves, writes and reads its own region, and insists on every byte."""

    def __init__(self, path: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.path, self.rng = path, random.Random(seed)
        self.model = bytearray(8 * MIB)
        self.rounds = 0
        self.failure: Exception | None = None
        self.ending = threading.Event()

    def run(self) -> None:
        try:
            with Raw(self.path) as client:
                client.go("vm1")
                while not self.ending.wait(0.01):  # others are to be served too
                    self._round(client)
                    self.rounds += 1
        except (OSError, EOFError, AssertionError) as error:
            self.failure = error

    def _round(self, client: Raw) -> None:
        rng = self.rng
        offset, length = rng.randrange(len(self.model) - MIB), rng.choice((1, 512, BLOCK, 5000, 64 << 10, MIB))
        data = rng.randbytes(length)
        assert client.write(offset, data, flags=rng.choice((0, Flag.FUA))) == 0
        self.model[offset : offset + length] = data
        start = rng.randrange(len(self.model) - MIB)
        assert client.read(start, MIB) == self.model[start : start + MIB]
        if rng.random() < 0.2:
            assert client.ask(Command.WRITE_ZEROES, start, 3 * BLOCK) == 0
            self.model[start : start + 3 * BLOCK] = bytes(3 * BLOCK)

    def end(self) -> None:
        self.ending.set()
        self.join(60)
        assert not self.is_alive(), "the good client is not served"
        if self.failure is not None:
            raise AssertionError(f"the good client: {self.failure!r}") from self.failure


class Fuzzer:
    """Connections of every kind of nonsense; some linger, half said."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.rng = path, random.Random(seed)
        self.lingering: list[socket.socket] = []
        self.done: Counter[str] = Counter()
        kinds = (self.noise, self.handshake, self.requests, self.half_payload, self.deaf, self.drip, self.crowd, self.flood)
        self._kinds: list[Callable[[], None]] = [*kinds, self.handshake, self.requests, self.requests]

    def step(self) -> None:
        """Do one thing that is wrong, or might be."""
        kind = self.rng.choice(self._kinds)
        self.done[kind.__name__] += 1
        with suppress(OSError, EOFError, AssertionError):  # it was dropped, refused, or says nothing for now
            kind()
        while len(self.lingering) > _MOST_LINGERING:
            self.lingering.pop(self.rng.randrange(len(self.lingering))).close()

    def end(self) -> None:
        for each in self.lingering:
            each.close()
        self.lingering.clear()

    # --- kinds

    def noise(self) -> None:
        self._leave(self._connect(), self.rng.randbytes(self.rng.randrange(1, 300)))

    def handshake(self) -> None:
        connection = self._connect()
        flags = self.rng.choice((3, 3, 3, 1, 0, 2, 7, 0xFFFFFFFF)) if self.rng.random() < 0.3 else 3
        message = struct.pack(">I", flags) + b"".join(self._option() for _ in range(self.rng.randrange(1, 12)))
        self._leave(connection, self._mutated(message))

    def requests(self) -> None:
        connection = self._chosen(structured=self.rng.random() < 0.6)
        self._leave(connection, self._mutated(b"".join(self._request() for _ in range(self.rng.randrange(1, 40)))))

    def half_payload(self) -> None:
        connection = self._chosen()
        length = self.rng.choice((BLOCK, MIB, 5 * MIB, nbd.MAX_PAYLOAD))
        head = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.WRITE, 1, 0, length)
        self._leave(connection, head + bytes(self.rng.randrange(min(length, MIB))))

    def deaf(self) -> None:
        """Ask for much and take nothing."""
        connection = self._chosen(structured=self.rng.random() < 0.5)
        length = self.rng.choice((BLOCK, MIB, nbd.MAX_PAYLOAD))
        self._send(connection, nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.READ, 1, 0, length) * self.rng.randrange(1, 300))
        self.lingering.append(connection)

    def drip(self) -> None:
        """Say one byte more to each of those that linger."""
        for each in self.lingering:
            with suppress(OSError):
                each.send(self.rng.randbytes(1) if self.rng.random() < 0.2 else b"\0")

    def crowd(self) -> None:
        self.lingering += [self._connect() for _ in range(self.rng.randrange(2, 30))]

    def flood(self) -> None:
        """Ask for all that takes long, many times."""
        connection = self._chosen(structured=True)
        commands = (Command.TRIM, Command.WRITE_ZEROES, Command.BLOCK_STATUS, Command.FLUSH)
        requests = [(self.rng.choice(commands), self.rng.choice((0, Flag.FUA, Flag.NO_HOLE))) for _ in range(60)]
        parts = [nbd.REQUEST.pack(nbd.REQUEST_MAGIC, f, c, n, 0, 0 if c == Command.FLUSH else SIZE) for n, (c, f) in enumerate(requests)]
        self._leave(connection, b"".join(parts))

    # --- parts

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(0.02)
        connection.connect(str(self.path))
        return connection

    def _chosen(self, *, structured: bool = False) -> socket.socket:
        client = Raw(self.path)
        client.socket.settimeout(1.0)
        try:
            client.go("junk", structured=structured, context=structured)
        except BaseException:
            client.socket.close()
            raise
        client.socket.settimeout(0.02)
        return client.socket

    def _send(self, connection: socket.socket, message: bytes) -> None:
        with suppress(OSError):
            connection.sendall(message)

    def _leave(self, connection: socket.socket, message: bytes) -> None:
        """Say something, and take some of what comes, or linger, or go."""
        self._send(connection, message)
        if self.rng.random() < 0.5:
            with suppress(OSError):
                connection.recv(1 << 20)
        fate = self.rng.random()
        if fate < 0.4:
            self.lingering.append(connection)
        elif fate < 0.5:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            self.lingering.append(connection)
        else:
            connection.close()

    def _option(self) -> bytes:
        rng = self.rng
        name = rng.choice(_NAMES).encode()
        start = struct.pack(">I", len(name)) + name
        queries = [b"base:allocation", b"base:", b"", b":", b"x" * 5000, b"\xff"]
        chosen = rng.sample(queries, rng.randrange(4))
        contexts = start + struct.pack(">I", len(chosen)) + b"".join(struct.pack(">I", len(query)) + query for query in chosen)
        info = start + struct.pack(">HHHH", 3, 0, 1, 3)
        data = rng.choice((b"", name, start, info, contexts, start + b"\0\0", rng.randbytes(rng.randrange(100)), bytes(65536)))
        length = rng.choice((0, 1, 0xFFFFFFFF, 65537)) if rng.random() < 0.1 else len(data)
        return nbd.OPTION.pack(nbd.OPTION_MAGIC, rng.choice((*Option, 0, 4, 11, 99)), length) + data

    def _request(self) -> bytes:
        rng = self.rng
        command = rng.choice((*Command, 5, 8, 65535))
        offset = rng.choice((*_OFFSETS, rng.getrandbits(64), rng.randrange(SIZE)))
        length = rng.choice((*_LENGTHS, rng.randrange(200_000)))
        flags = rng.choice((0, 0, 0, 1, 2, 4, 8, 16, 31, 0x8000, rng.getrandbits(16)))
        payload = bytes(min(length, 200_000)) if command == Command.WRITE else b""
        if command == Command.DISC and rng.random() < 0.8:
            command = Command.FLUSH
        return nbd.REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, rng.getrandbits(64), offset, length) + payload

    def _mutated(self, message: bytes) -> bytes:
        rng = self.rng
        changed = bytearray(message)
        for _ in range(rng.choice((0, 0, 1, 1, 3))):
            at = rng.randrange(len(changed))
            kind = rng.randrange(4)
            if kind == 0:
                changed[at] = rng.getrandbits(8)
            elif kind == 1:
                del changed[at : at + rng.randrange(1, 30)]
            elif kind == 2:
                changed[at:at] = rng.randbytes(rng.randrange(1, 30))
            else:
                del changed[at:]
            if not changed:
                break
        return bytes(changed)


class Watch:
    """What the server's process has: descriptors, memory, processor time."""

    def __init__(self, pid: int) -> None:
        self.folder = Path("/proc") / str(pid)
        self.fds, self.bytes = self.count_fds(), self.anonymous_bytes()

    def count_fds(self) -> int:
        return len(os.listdir(self.folder / "fd"))

    def anonymous_bytes(self) -> int:
        (line,) = (line for line in (self.folder / "status").read_text().splitlines() if line.startswith("RssAnon:"))
        return int(line.split()[1]) << 10

    def ticks(self) -> int:
        fields = (self.folder / "stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def require_bounds(self) -> None:
        assert self.anonymous_bytes() - self.bytes < MOST_BYTES, self.anonymous_bytes()

    def require_rest(self) -> None:
        """Insist that, now that nobody is there, nothing is left of them: no descriptor, little memory, and no work."""
        deadline = time.monotonic() + 20
        while self.count_fds() > self.fds and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.count_fds() <= self.fds, sorted(os.listdir(self.folder / "fd"))
        assert self.anonymous_bytes() - self.bytes < 96 * MIB, self.anonymous_bytes()
        while True:  # what was begun before they went ends some time
            before = self.ticks()
            time.sleep(0.5)
            if self.ticks() - before <= os.sysconf("SC_CLK_TCK") // 10:
                return
            assert time.monotonic() < deadline, "the server works for nobody"


def fuzz(served: Served, seed: int, goes_on: Callable[[int], bool]) -> Counter[str]:
    """Fuzz a served image with regions vm1 and junk while `goes_on(steps so far)`; return how often what was done."""
    assert served.process is not None
    watch = Watch(served.process.pid)
    verifier = Verifier(served.socket, seed)
    fuzzer = Fuzzer(served.socket, seed)
    verifier.start()
    steps = 0
    try:
        while goes_on(steps) and verifier.failure is None:
            fuzzer.step()
            steps += 1
            if steps % 50 == 0:
                watch.require_bounds()
            if steps % 50 == 20:
                served.tool("snapshot", "create", served.image, f"s{steps}", "--region", "junk" if steps % 100 == 20 else "vm1")
                served.tool("purge", served.image, "--mode", "pointer-elimination", "--region", "junk")
    finally:
        fuzzer.end()
        verifier.end()
    assert served.process.poll() is None, served.log
    watch.require_rest()
    fuzzer.done["rounds of the good client"] = verifier.rounds
    return fuzzer.done


def finish(served: Served) -> None:
    """End the server, and insist that all is well."""
    assert served.stop() == 0, served.log
    assert "Traceback" not in served.log and "internal error" not in served.log, served.log
    served.check()


def prepare(served: Served) -> None:
    served.create(1024)
    served.tool("region", "create", served.image, "junk", "--size", "64M")
    served.tool("snapshot", "create", served.image, "monday", "--region", "vm1")
    served.start()


def main() -> None:
    seed, seconds = int(sys.argv[1] or time.time_ns() % 1_000_000), float(sys.argv[2])
    print(f"seed {seed}", flush=True)
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="nbd-fuzz-") as folder:
        served = Served(Path(folder))
        try:
            prepare(served)
            done = fuzz(served, seed, lambda _: time.monotonic() < end)
            finish(served)
        finally:
            served.end()
    print(", ".join(f"{name} {count}" for name, count in sorted(done.items())))


if __name__ == "__main__":
    main()
