"""Answers that wait to be taken keep what was read, whatever becomes of the blocks meanwhile."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nvmtool.live import nbd_protocol as nbd
from nvmtool.live.nbd_protocol import Command, Error

from .conftest import MIB, Served
from .nbd_client import Raw


@pytest.mark.parametrize(("command", "together"), [(Command.TRIM, True), (Command.WRITE_ZEROES, True), (Command.TRIM, False)])
def test_blocks_of_an_answer_that_waits_are_not_written_again(command: Command, together: bool, tmp_path: Path) -> None:
    """A reader that takes its time; what it read is given back in the same breath or a moment later, and written by another."""
    served = Served(tmp_path)
    length = 20 * MIB
    try:
        served.create(40, 64)
        served.start()
        with Raw(served.socket) as slow, Raw(served.socket) as other:
            slow.go()
            other.go()
            held = random.Random(1).randbytes(length)
            assert other.write(0, held) == 0
            full = {other.write(start, b"\xdd" * (MIB // 4)) for start in range(34 * MIB, 60 * MIB, MIB // 4)}
            assert full == {0, Error.ENOSPC} and other.ask(Command.FLUSH) == 0
            read = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.READ, 1, 0, length)
            clear = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, command, 2, 0, length)
            slow.socket.sendall(clear + read if together else read)
            assert other.read(20 * MIB, 1) + other.read(20 * MIB, 1) == bytes(2)  # the other one's requests have been taken
            if not together:
                assert other.ask(command, 0, length) == 0
            assert {other.write(start, b"\xee" * MIB) for start in range(20 * MIB, 34 * MIB, MIB)} == {0}
            found = {}
            for _ in range(2 if together else 1):
                error, cookie = slow.reply()
                found[cookie] = slow.get(length) if cookie == 1 else b""
                assert error == 0
            assert found[1] in (held, bytes(length))
        assert served.stop() == 0
        served.check()
    finally:
        served.end()
