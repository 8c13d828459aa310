"""Every command beside a client that verifies its bytes all the time; and what the end of a server keeps."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from nvmtool.live.nbd_protocol import Flag

from .conftest import BLOCK, MIB, Served, need, run
from .nbd_client import Raw
from .nbd_fuzz import Verifier


def test_commands_work_beside_a_client_that_verifies(served: Served, tmp_path: Path) -> None:
    image = served.image
    verifier = Verifier(served.socket, 4)
    verifier.start()
    served.tool("snapshot", "create", image, "first", "second")
    served.tool("export", image, tmp_path / "first.raw", "--snapshot", "first")
    served.tool("purge", image, "--mode", "virtblock")
    assert served.json("info", image)["regions"][0]["name"] == "vm1"
    assert served.json("map", image)["extents"]
    served.check()
    served.json("recall", image, "--snapshot", "first")
    served.tool("purge", image, "--mode", "pointer-elimination")
    served.tool("region", "create", image, "vm2", "--size", "8M")
    served.tool("region", "delete", image, "vm2")
    served.tool("snapshot", "delete", image, "second")
    run("nbdcopy", served.uri("vm1@first"), tmp_path / "copy.raw")
    assert (tmp_path / "copy.raw").read_bytes() == (tmp_path / "first.raw").read_bytes()
    verifier.end()
    assert verifier.rounds
    with Raw(served.socket) as client:
        client.go()
        assert client.read(0, len(verifier.model)) == verifier.model
    assert served.stop() == 0
    served.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_of_a_server_flushes_what_was_completed(number: int, served: Served) -> None:
    data = os.urandom(5 * MIB)
    with Raw(served.socket) as client:
        client.go()
        assert client.write(12345, data) == 0
        assert served.stop(number) == 0
        assert client.is_dropped()
    assert not served.socket.exists()
    served.check()
    served.start()
    with Raw(served.socket) as client:
        client.go()
        assert client.read(12345, len(data)) == data


def test_nbdinfo_and_map_tell_the_same(served: Served) -> None:
    need("nbdinfo")
    with Raw(served.socket) as client:
        client.go()
        for block in (0, 1, 511, 512, 513, 1023, 5000, 16383):
            assert client.write(block * BLOCK, b"x" * BLOCK) == 0
        served.tool("snapshot", "create", served.image, "monday")
        assert client.ask(4, 511 * BLOCK, 2 * BLOCK) == 0
        assert client.write(2 * BLOCK + 1, b"part of a block", flags=Flag.FUA) == 0
    served.tool("purge", served.image, "--mode", "virtblock")
    for state, export in ((), "vm1"), (("--snapshot", "monday"), "vm1@monday"):
        extents = served.json("map", served.image, *state)["extents"]
        there = [(each["offset"], each["length"]) for each in extents if each["kind"] != "hole"]
        told = json.loads(run("nbdinfo", "--map", "--json", served.uri(export)))
        assert blocks([(each["offset"], each["length"]) for each in told if each["type"] == 0]) == blocks(there)


def blocks(extents: list[tuple[int, int]]) -> set[int]:
    return {block for offset, length in extents for block in range(offset // BLOCK, (offset + length) // BLOCK)}
