"""What `serve` and the commands beside it refuse: one line, the exit code, and the server and its clients go on."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from nvmtool.live.nbd_protocol import Command, Error, Flag, Option

from .conftest import Served
from .nbd_client import Raw

USAGE, BUSY, NOT_FOUND, EXISTS = 2, 6, 9, 9


def code_of(*args: object) -> tuple[int, str]:
    """Return (exit code, what it says) of a server that does not start."""
    command = [sys.executable, "-m", "nvmtool", "serve", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "" and done.stderr.count("\n") == 1, (done.stdout, done.stderr)
    return done.returncode, done.stderr


def test_an_image_is_served_once(shared: Served, tmp_path: Path) -> None:
    code, said = code_of(shared.image, "--socket", tmp_path / "other")
    assert code == BUSY and "disk.nvm" in said
    assert not (tmp_path / "other").exists()
    with Raw(shared.socket) as client:
        client.go()
        assert client.read(0, 1) == b"\0"


def test_a_socket_in_use_is_left_to_its_server(shared: Served, server: Served) -> None:
    code, said = code_of(server.image, "--socket", shared.socket)
    assert code == BUSY and str(shared.socket) in said
    with Raw(shared.socket) as client:
        client.go()


def test_places_where_no_socket_can_be(server: Served, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert code_of(server.image, "--socket", file)[0] == EXISTS
    assert file.read_text() == "mine"
    assert code_of(server.image, "--socket", tmp_path)[0] == EXISTS
    assert code_of(server.image, "--socket", tmp_path / ("x" * 120))[0] == USAGE
    code, said = code_of(server.image, "--socket", tmp_path / "none" / "s")
    assert code != 0 and "none/s" in said
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, said = code_of(server.image, "--port", taken.getsockname()[1])
        assert code == BUSY and str(taken.getsockname()[1]) in said
    assert "--insecure-address" in code_of(server.image, "--port", 0, "--address", "0.0.0.0")[1]
    server.check()


def test_what_is_not_there_is_not_served(server: Served, tmp_path: Path) -> None:
    for options in (("--region", "vm2"), ("--snapshot", "monday"), ("--region", "vm1", "--snapshot", "monday")):
        assert code_of(server.image, *options)[0] == NOT_FOUND
    assert code_of(tmp_path / "none.nvm")[0] == NOT_FOUND


def test_several_regions_are_served_together(server: Served) -> None:
    server.tool("region", "create", server.image, "vm2", "--size", "8M")
    assert code_of(server.image, "--snapshot", "monday", "--socket", server.socket)[0] != 0
    server.start()
    for name in ("vm1", "vm2"):
        with Raw(server.socket) as client:
            client.go(name)
            assert client.write(0, name.encode(), flags=Flag.FUA) == 0
    with Raw(server.socket) as client:
        client.greet()
        assert [data[4:] for _, data in client.option(Option.LIST)[:-1]] == [b"vm1", b"vm2"]
        assert client.option(Option.GO, bytes(6))[-1][0] & 1 << 31  # "" would be one of two
        client.socket.close()
    assert server.stop() == 0
    server.start("--region", "vm2")
    with Raw(server.socket) as client:
        client.go()
        assert client.read(0, 3) == b"vm2"


def test_what_a_client_uses_is_not_taken_away(shared: Served) -> None:
    image = shared.image
    with Raw(shared.socket) as client, Raw(shared.socket) as reader:
        client.go()
        reader.go("vm1@monday")
        for command in (
            ("snapshot", "delete", image, "monday"),
            ("snapshot", "revert", image, "monday"),
            ("region", "delete", image, "vm1"),
            ("region", "convert", image, "vm1", "--mapping", "direct"),
        ):
            said = shared.tool(*command, code=BUSY)
            assert said.count("\n") == 1 and "in use" in said, said
        assert client.write(0, b"on") == 0 and client.read(0, 2) == b"on"
        assert reader.read(0, 2) == bytes(2)
        assert reader.ask(Command.WRITE, 0, 1, payload=b"x") == Error.EPERM
        assert client.ask(Command.TRIM, 0, 4096) == 0


def test_an_export_that_was_deleted_between_is_unknown(shared: Served) -> None:
    shared.tool("snapshot", "create", shared.image, "brief")
    with Raw(shared.socket) as client:
        client.greet()
        ask = b"\0\0\0\x09vm1@brief\0\0"
        assert client.option(Option.INFO, ask)[-1][0] == 1
        shared.tool("snapshot", "delete", shared.image, "brief")
        assert client.option(Option.GO, ask)[-1][0] & 1 << 31
