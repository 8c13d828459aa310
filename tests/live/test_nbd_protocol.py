"""The protocol's rules, and clients that break them: they get errors or are dropped, and harm nobody else."""

from __future__ import annotations

import os
import random
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest

from nvmtool.live import nbd_protocol as nbd
from nvmtool.live.nbd_protocol import Chunk, Command, Error, Flag, Option, Reply

from .conftest import BLOCK, MIB, Served
from .nbd_client import Raw

SIZE = 64 * MIB


def named(name: str) -> bytes:
    return struct.pack(">I", len(name)) + name.encode()


def test_options_are_answered_as_the_protocol_says(shared: Served) -> None:
    with Raw(shared.socket) as client:
        client.greet()
        assert [kind for kind, _ in client.option(Option.LIST)] == [Reply.SERVER, Reply.SERVER, Reply.ACK]
        assert client.option(Option.LIST, b"x")[-1][0] == Reply.ERR_INVALID
        assert client.option(99)[-1][0] == Reply.ERR_UNSUP
        assert client.option(Option.STARTTLS)[-1][0] == Reply.ERR_POLICY
        assert client.option(Option.STRUCTURED_REPLY, b"x")[-1][0] == Reply.ERR_INVALID
        for name in ("vm2", "vm1@tuesday", "@", "vm1@", "\0", "x" * 4000):
            assert client.option(Option.GO, named(name) + b"\0\0")[-1][0] == Reply.ERR_UNKNOWN, name
        for wrong in (b"", b"\0", named("vm1"), named("vm1") + b"\0\1", named("vm1") + b"\0\0\0", struct.pack(">I", 5000) + b"x" * 5000):
            assert client.option(Option.INFO, wrong)[-1][0] == Reply.ERR_INVALID, wrong
        context = named("vm1") + struct.pack(">I", 1) + named(nbd.BASE_ALLOCATION)
        assert client.option(Option.SET_META_CONTEXT, context)[-1][0] == Reply.ERR_INVALID  # before STRUCTURED_REPLY
        assert client.option(Option.STRUCTURED_REPLY)[-1][0] == Reply.ACK
        assert client.option(Option.LIST_META_CONTEXT, named("vm1") + bytes(4))[0][1][4:] == b"base:allocation"
        assert client.option(Option.SET_META_CONTEXT, named("vm1") + struct.pack(">I", 1) + named("qemu:dirty"))[-1][0] == Reply.ACK
        assert client.option(Option.SET_META_CONTEXT, named("vm1") + struct.pack(">I", 9999))[-1][0] == Reply.ERR_TOO_BIG
        replies = client.option(Option.INFO, named("") + struct.pack(">HHH", 2, 1, 2))
        assert [kind for kind, _ in replies[:-1]] == [Reply.INFO] * 4 and replies[-1][0] == Reply.ACK
        assert client.option(Option.ABORT)[-1][0] == Reply.ACK
        assert client.is_dropped()


def test_the_old_way_to_choose_an_export(shared: Served) -> None:
    for flags, zeroes in ((3, 0), (1, 124)):
        with Raw(shared.socket) as client:
            client.greet(flags)
            client.socket.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.EXPORT_NAME, 3) + b"vm1")
            size, _ = nbd.EXPORT_NAME_REPLY.unpack(client.get(10))
            assert size == SIZE and client.get(zeroes) == bytes(zeroes)
            assert client.read(0, 16) == bytes(16)
    with Raw(shared.socket) as client:
        client.greet()
        client.socket.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.EXPORT_NAME, 3) + b"vm2")
        assert client.is_dropped()


def test_requests_that_cannot_be_get_errors_and_the_next_is_served(shared: Served) -> None:
    with Raw(shared.socket) as client:
        client.go()
        wrong = [
            (Command.READ, SIZE, 1, 0, Error.EINVAL),
            (Command.READ, SIZE - 1, 2, 0, Error.EINVAL),
            (Command.READ, 1 << 63, 1, 0, Error.EINVAL),
            (Command.READ, 0, 0, 0, Error.EINVAL),
            (Command.READ, 0, nbd.MAX_PAYLOAD + 1, 0, Error.EINVAL),
            (Command.READ, 0, 4096, Flag.DF, Error.EINVAL),
            (Command.READ, 0, 4096, 0x8000, Error.EINVAL),
            (Command.FLUSH, 0, 0, 0x8000, Error.EINVAL),
            (Command.TRIM, 0, 4096, 0x20, Error.EINVAL),
            (Command.WRITE_ZEROES, 0, 4096, 0x40, Error.EINVAL),
            (Command.WRITE_ZEROES, 0, 4096, Flag.DF, Error.EINVAL),
            (Command.FLUSH, 0, 1, 0, Error.EINVAL),
            (Command.FLUSH, 1, 0, 0, Error.EINVAL),
            (Command.TRIM, SIZE, 4096, 0, Error.EINVAL),
            (Command.TRIM, 0, 0, 0, Error.EINVAL),
            (Command.WRITE_ZEROES, SIZE - 4096, 8192, 0, Error.EINVAL),
            (Command.WRITE_ZEROES, 0, 4096, Flag.NO_HOLE | Flag.FAST_ZERO, Error.ENOTSUP),
            (Command.BLOCK_STATUS, 0, 4096, 0, Error.EINVAL),
            (5, 0, 4096, 0, Error.EINVAL),
            (8, 0, 0, 0, Error.EINVAL),
            (65535, 0, 0, 0, Error.EINVAL),
        ]
        for command, offset, length, flags, error in wrong:
            assert client.ask(command, offset, length, flags=flags) == error, (command, offset, length, flags)
        assert client.ask(Command.WRITE, SIZE - 1, 2, payload=b"xx") == Error.ENOSPC
        assert client.ask(Command.WRITE, 0, 0) == Error.EINVAL
        for flags in (Flag.NO_HOLE, 0x20, 0x8000):
            assert client.ask(Command.WRITE, 0, 1, flags=flags, payload=b"x") == Error.EINVAL
        assert client.write(SIZE - 3, b"abc") == 0
        assert client.read(SIZE - 4, 4) == b"\0abc"
        assert client.ask(Command.WRITE_ZEROES, SIZE - 4, 4, flags=Flag.FAST_ZERO) == 0
        assert client.read(SIZE - 4, 4) == bytes(4)


def test_every_request_may_say_fua(shared: Served) -> None:
    """The protocol: a server that offers FUA accepts it on all commands, if only to ignore it."""
    with Raw(shared.socket) as client:
        client.go(structured=True, context=True)
        at = 44 * MIB
        client.send(Command.WRITE, at, 4, flags=Flag.FUA, payload=b"abcd")
        assert client.reply() == (0, 1)
        client.send(Command.READ, at, 4, flags=Flag.FUA)
        assert client.chunk() == (1, Chunk.OFFSET_DATA, 1, struct.pack(">Q", at) + b"abcd")
        client.send(Command.BLOCK_STATUS, at, BLOCK, flags=Flag.FUA | Flag.REQ_ONE)
        assert client.chunk() == (1, Chunk.BLOCK_STATUS, 1, struct.pack(">3I", 1, BLOCK, 0))
        for command, length in ((Command.FLUSH, 0), (Command.TRIM, BLOCK), (Command.WRITE_ZEROES, BLOCK)):
            client.send(command, at if length else 0, length, flags=Flag.FUA)
            assert client.reply() == (0, 1)
    with Raw(shared.socket) as client:
        client.go()
        client.send(Command.READ, at, 4, flags=Flag.FUA)
        assert client.reply() == (0, 1) and client.get(4) == bytes(4)


@pytest.mark.parametrize(
    "last", [named("vm1") + bytes(4), named("vm2") + bytes(4), b"", named("vm1@monday") + struct.pack(">I", 1) + named("base:allocation")]
)
def test_the_last_choice_of_contexts_counts_even_if_it_failed(last: bytes, shared: Served) -> None:
    with Raw(shared.socket) as client:
        client.greet()
        client.option(Option.STRUCTURED_REPLY)
        good = named("vm1") + struct.pack(">I", 1) + named(nbd.BASE_ALLOCATION)
        assert [kind for kind, _ in client.option(Option.SET_META_CONTEXT, good)] == [Reply.META_CONTEXT, Reply.ACK]
        client.option(Option.SET_META_CONTEXT, last)
        assert client.option(Option.GO, named("vm1") + b"\0\0")[-1][0] == Reply.ACK
        client.send(Command.BLOCK_STATUS, 0, BLOCK)
        assert client.chunk()[1] == Chunk.ERROR


def test_a_snapshot_takes_no_writes(shared: Served) -> None:
    with Raw(shared.socket) as client:
        client.go("vm1@monday")
        assert client.write(0, b"x") == Error.EPERM
        assert client.ask(Command.TRIM, 0, 4096) == Error.EPERM
        assert client.ask(Command.WRITE_ZEROES, 0, 4096) == Error.EPERM
        assert client.ask(Command.FLUSH) == 0


def test_structured_replies_carry_data_holes_errors_and_extents(shared: Served) -> None:
    with Raw(shared.socket) as client:
        client.go(structured=True, context=True)
        client.send(Command.WRITE, 8 * MIB, BLOCK, payload=b"d" * BLOCK, cookie=7)
        assert client.reply() == (0, 7)
        client.send(Command.READ, 8 * MIB - 2, 4, cookie=8, flags=Flag.DF)
        assert client.chunk() == (1, Chunk.OFFSET_DATA, 8, struct.pack(">Q", 8 * MIB - 2) + b"\0\0dd")
        client.send(Command.READ, 9 * MIB, 1 << 20, cookie=9)
        assert client.chunk() == (1, Chunk.OFFSET_HOLE, 9, struct.pack(">QI", 9 * MIB, 1 << 20))
        client.send(Command.READ, SIZE, 1, cookie=10)
        flags, kind, cookie, data = client.chunk()
        assert (flags, kind, cookie) == (1, Chunk.ERROR, 10) and struct.unpack_from(">I", data)[0] == Error.EINVAL
        client.send(Command.BLOCK_STATUS, 8 * MIB - BLOCK, 3 * BLOCK, cookie=11)
        *head, data = client.chunk()
        assert head == [1, Chunk.BLOCK_STATUS, 11]
        assert struct.unpack(">7I", data) == (1, BLOCK, 3, BLOCK, 0, BLOCK, 3)
        client.send(Command.BLOCK_STATUS, 8 * MIB, 3 * BLOCK, cookie=12, flags=Flag.REQ_ONE)
        assert struct.unpack(">3I", client.chunk()[3]) == (1, BLOCK, 0)


def test_many_requests_at_once_are_all_answered(shared: Served) -> None:
    rng = random.Random(5)
    model = bytearray(MIB)
    with Raw(shared.socket) as client:
        client.go()
        client.ask(Command.WRITE_ZEROES, 16 * MIB, MIB)
        for _ in range(20):
            writes = {rng.randrange(256): rng.randbytes(BLOCK) for _ in range(60)}
            message = b"".join(
                nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.WRITE, index, 16 * MIB + index * BLOCK, BLOCK) + data
                for index, data in writes.items()
            )
            client.socket.sendall(message + nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.FLUSH, 999, 0, 0))
            assert {client.reply() for _ in range(len(writes) + 1)} == {(0, index) for index in (*writes, 999)}
            for index, data in writes.items():
                model[index * BLOCK : (index + 1) * BLOCK] = data
        assert client.read(16 * MIB, MIB) == model


def test_a_client_that_takes_no_answers_holds_up_nobody(shared: Served) -> None:
    with Raw(shared.socket) as deaf, Raw(shared.socket) as good:
        deaf.go()
        good.go()
        assert deaf.write(24 * MIB, os.urandom(MIB)) == 0
        request = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.READ, 1, 24 * MIB, MIB)
        deaf.socket.sendall(request * 200)  # 200 MiB of answers that nobody reads
        for number in range(50):
            assert good.write(30 * MIB, bytes([number]) * BLOCK, flags=Flag.FUA) == 0
            assert good.read(30 * MIB, 1) == bytes([number])


@pytest.mark.parametrize("cut", ["greeting", "option", "request", "payload"])
def test_half_of_something_and_then_nothing(cut: str, shared: Served) -> None:
    with Raw(shared.socket) as slow, Raw(shared.socket) as good:
        if cut == "option":
            slow.greet()
            slow.socket.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.GO, 100) + b"half")
        elif cut != "greeting":
            slow.go()
            whole = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.WRITE, 1, 40 * MIB, nbd.MAX_PAYLOAD) + b"never" * 100
            slow.socket.sendall(whole[:20] if cut == "request" else whole)
        good.go()
        assert good.write(41 * MIB, b"fine") == 0
        slow.socket.close()
        assert good.read(40 * MIB, 5) == bytes(5)
        assert good.ask(Command.TRIM, 41 * MIB, BLOCK) == 0


@pytest.mark.parametrize(
    "message",
    [
        nbd.REQUEST.pack(0xDEADBEEF, 0, Command.READ, 1, 0, 1),
        nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.WRITE, 1, 0, nbd.MAX_PAYLOAD + 1),
        nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.WRITE, 1, 0, 0xFFFFFFFF),
        nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.DISC, 1, 0, 0),
    ],
)
def test_what_is_no_request_ends_the_connection(message: bytes, shared: Served) -> None:
    with Raw(shared.socket) as client:
        client.go()
        client.socket.sendall(message)
        assert client.is_dropped()


def test_wrong_greetings_end_the_connection(shared: Served) -> None:
    for flags, more in ((4, b""), (0xFFFFFFFF, b""), (3, b"x" * 16), (3, nbd.OPTION.pack(nbd.OPTION_MAGIC, 7, 1 << 30))):
        with Raw(shared.socket) as client:
            client.greet(flags)
            with suppress(BrokenPipeError):  # it has hung up already
                client.socket.sendall(more)
            assert client.is_dropped()
    with Raw(shared.socket) as client:
        client.greet()
        client.socket.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.LIST, 0) * 300)
        assert client.is_dropped()


def test_more_clients_than_there_may_be(shared: Served) -> None:
    with Raw(shared.socket) as good:
        good.go()
        idle = [Raw(shared.socket) for _ in range(150)]  # none of them gets to the requests
        with Raw(shared.socket) as late:
            late.go()
            assert late.read(0, 1) == good.read(0, 1)
        for each in idle:
            each.socket.close()


@pytest.mark.parametrize("seed", range(4))
def test_noise_harms_nobody(seed: int, shared: Served) -> None:
    """Connections of every kind of nonsense beside a good client, whose bytes and answers stay right throughout."""
    rng = random.Random(seed)
    expected = rng.randbytes(64 << 10)
    with Raw(shared.socket) as good:
        good.go()
        assert good.write(50 * MIB, expected, flags=Flag.FUA) == 0
        for _ in range(60):
            _be_noisy(rng, shared.socket)
            if rng.random() < 0.3:
                assert good.read(50 * MIB, len(expected)) == expected
        assert good.read(50 * MIB, len(expected)) == expected


def _be_noisy(rng: random.Random, path: Path) -> None:
    """Come as far as may be, send requests of which some fields are noise, cut off anywhere; never a write that could be meant."""
    with Raw(path) as client:
        client.socket.settimeout(0.05)
        try:
            kind = rng.randrange(3)
            if kind == 0:
                client.socket.sendall(rng.randbytes(rng.randrange(1, 200)))
            elif kind == 1:
                client.greet()
                for _ in range(rng.randrange(1, 6)):
                    data = rng.choice((b"", named("vm1"), named("vm1") + b"\0\0", rng.randbytes(rng.randrange(60))))
                    message = nbd.OPTION.pack(nbd.OPTION_MAGIC, rng.randrange(12), len(data) + rng.choice((0, 0, 1, 70000))) + data
                    client.socket.sendall(message[: rng.choice((len(message), len(message), 5))])
            else:
                client.go(structured=rng.random() < 0.5)
                for _ in range(rng.randrange(1, 20)):
                    magic = nbd.REQUEST_MAGIC if rng.random() < 0.95 else rng.getrandbits(32)
                    command = rng.choice((0, 0, 2, 3, 5, 7, 9, 65535))
                    offset = rng.choice((0, SIZE, SIZE - 1, rng.getrandbits(64), 50 * MIB))
                    length = rng.choice((0, 1, 4096, nbd.MAX_PAYLOAD, nbd.MAX_PAYLOAD + 1, 0xFFFFFFFF))
                    message = nbd.REQUEST.pack(magic, rng.choice((0, 0, 1, 4, 0xFFFF)), command, rng.getrandbits(64), offset, length)
                    client.socket.sendall(message[: rng.choice((28, 28, 28, 11))])
            if rng.random() < 0.5:
                client.socket.recv(1 << 16)
            time.sleep(rng.choice((0, 0, 0.002)))
        except (OSError, EOFError):  # it was dropped, or says nothing
            pass
