"""Memory of the server is bounded, whatever clients leave half done."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from nvmtool.live import nbd_protocol as nbd
from nvmtool.live.nbd_memory import MOST_LARGE, MOST_UNTAKEN_BYTES, LargeRequests
from nvmtool.live.nbd_protocol import Command, Flag, Option

from .conftest import MIB, Served
from .nbd_client import Raw

MANY = 60


def anonymous_bytes(served: Served) -> int:
    """Return what the server holds of memory that is no file's."""
    assert served.process is not None
    lines = Path(f"/proc/{served.process.pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon:"))
    return int(line.split()[1]) << 10


@pytest.fixture
def crowd() -> Iterator[ExitStack]:
    """Connections that end with the test."""
    with ExitStack() as stack:
        yield stack


def test_connections_that_do_nothing_cost_next_to_nothing(served: Served, crowd: ExitStack) -> None:
    before = anonymous_bytes(served)
    for _ in range(MANY):
        crowd.enter_context(Raw(served.socket)).go()
    assert anonymous_bytes(served) - before < MANY * MIB // 8


def test_only_a_few_large_writes_are_taken_in_at_a_time(served: Served, crowd: ExitStack) -> None:
    """Nobody ends what it began: a few have their memory, the others wait, and small requests are served all the time."""
    before = anonymous_bytes(served)
    clients = [crowd.enter_context(Raw(served.socket)) for _ in range(MANY)]
    good = crowd.enter_context(Raw(served.socket))
    good.go()
    missing = {}
    for client in clients:
        client.go()
        client.send(Command.WRITE, 0, nbd.MAX_PAYLOAD)
        client.socket.setblocking(False)
        missing[client] = nbd.MAX_PAYLOAD - 1
    junk = bytes(MIB)
    while True:
        sent = 0
        for client in clients:
            with suppress(BlockingIOError):
                count = client.socket.send(junk[: missing[client]]) if missing[client] else 0
                missing[client] -= count
                sent += count
        assert good.write(40 * MIB, b"fine", flags=Flag.FUA) == 0  # the server has had its turn
        if not sent:
            break
    assert sum(not rest for rest in missing.values()) == MOST_LARGE
    assert anonymous_bytes(served) - before < MOST_LARGE * (nbd.MAX_PAYLOAD + MIB) + MANY * 5 * MIB
    # One goes, or ends its request: the next ones have its memory.
    done = [client for client in clients if not missing[client]]
    done[0].socket.close()
    done[1].socket.setblocking(True)
    done[1].socket.sendall(b"x")
    assert done[1].reply() == (0, 1)
    waiting = [client for client in clients if missing[client]]
    for client in waiting[:2]:
        client.socket.settimeout(20)
        client.socket.sendall(bytes(missing[client] + 1))
        assert client.reply() == (0, 1)


def test_answers_that_nobody_takes_are_not_kept_without_end(served: Served, crowd: ExitStack) -> None:
    good = crowd.enter_context(Raw(served.socket))
    good.go()
    assert good.write(0, os.urandom(16 * MIB), flags=Flag.FUA) == 0
    before = anonymous_bytes(served)
    for _ in range(MANY):
        client = crowd.enter_context(Raw(served.socket))
        client.go()
        client.send(Command.READ, 0, 16 * MIB)
    assert good.write(20 * MIB, b"moves blocks", flags=Flag.FUA) == 0  # answers that lie in the image are copied now
    assert good.read(20 * MIB, 5) == b"moves"
    assert anonymous_bytes(served) - before < MOST_UNTAKEN_BYTES + 32 * MIB
    assert "takes no answers" in served.log
    assert good.write(20 * MIB, b"still", flags=Flag.FUA) == 0


def test_lists_that_nobody_takes_are_answered_one_after_the_other(served: Served, crowd: ExitStack) -> None:
    for start in range(0, 200, 50):
        served.tool("snapshot", "create", served.image, *(f"{number:03}" + "x" * 50 for number in range(start, start + 50)))
    client = crowd.enter_context(Raw(served.socket))
    client.greet()
    message = nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.LIST, 0)
    client.socket.sendall(message * 200 + nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.GO, 6) + struct.pack(">IH", 0, 0))
    acks = 0
    while acks < 201:
        _, option, kind, length = nbd.OPTION_REPLY.unpack(client.get(nbd.OPTION_REPLY.size))
        client.get(length)
        acks += kind == 1
    assert option == Option.GO
    assert client.read(0, 4) == bytes(4)


def test_who_holds_room_and_does_not_end_has_to_go_only_when_others_wait() -> None:
    granted: list[str] = []
    large: LargeRequests[str] = LargeRequests(granted.append)
    names = [f"client {number}" for number in range(MOST_LARGE)]
    assert all(large.take(name) for name in names)
    later = time.monotonic() + 31
    assert large.overdue(later) == []
    assert not large.take("late") and not large.take("later") and large.is_waiting("late")
    assert large.overdue(time.monotonic()) == []
    assert large.overdue(later) == names
    large.give_back("later")  # it has gone
    large.give_back(names[0])
    assert granted == ["late"] and not large.is_waiting("late") and large.take("late")
    large.give_back(names[1])
    assert granted == ["late"] and large.take("another")
