"""The socket through which commands reach a server takes nonsense, and the server goes on."""

from __future__ import annotations

import json
import random
import socket
import time
from typing import Any

import pytest

from nvmtool.live.control import address_of

from .conftest import Served
from .nbd_client import Raw

PURGE: dict[str, Any] = {
    "mode": "virtblock",
    "region": None,
    "snapshots": [],
    "max_bytes": None,
    "max_seconds": None,
    "free_target": None,
}
SOUND: list[tuple[str, dict[str, Any]]] = [
    ("purge", PURGE),
    ("snapshot delete", {"region": None, "names": ["monday"]}),
    ("snapshot create", {"region": "vm1", "names": ["tuesday"]}),
    ("snapshot revert", {"region": None, "name": "monday"}),
    ("recall", {"region": None, "snapshot": None, "max_bytes": None}),
    ("region create", {"name": "vm2", "size_bytes": 1 << 20, "mapping": "virtblock"}),
    ("region convert", {"name": "vm1", "mapping": "direct"}),
    ("region delete", {"name": "vm9"}),
]
VALUES = (
    None,
    0,
    -1,
    1.5,
    1e300,
    float("nan"),
    1 << 62,
    1 << 64,
    "",
    "vm1",
    "\0",
    "é" * 300,
    "@",
    [],
    [[]],
    [5],
    ["monday", "monday"],
    {},
    True,
)


def ask(served: Served, message: bytes) -> dict[str, Any]:
    """Send something, and return the last answer to it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address_of(served.image))
        connection.settimeout(30)
        connection.send(message)
        while True:
            received = connection.recv(1 << 18)
            assert received, served.log
            answer: dict[str, Any] = json.loads(received)
            if "progress" not in answer:
                return answer


@pytest.mark.parametrize(
    "message", [b"x", b"null", b"[]", b"\xff", b'{"operation": 1}', b"[" * 100_000, b'{"operation": "purge", "arguments": 5}']
)
def test_what_is_no_request_is_answered_with_an_error(message: bytes, shared: Served) -> None:
    assert ask(shared, message)["error"] == "UsageError"


def test_arguments_of_every_wrong_kind_are_refused(shared: Served) -> None:
    """Each argument of each operation gets each value, or is left out; a client is served meanwhile."""
    with Raw(shared.socket) as client:
        client.go()  # so that nothing here takes the region away
        assert client.write(0, b"stays") == 0
        refused = 0
        for operation, arguments in SOUND:
            for name in arguments:
                without = {each: value for each, value in arguments.items() if each != name}
                wrong: list[dict[str, Any]] = [without, {**arguments, name + "x": 1}]
                wrong += [{**without, name: value} for value in random.Random(name).sample(VALUES, 9)]
                for each in wrong:
                    answer = ask(shared, json.dumps({"operation": operation, "arguments": each}).encode())
                    refused += answer.get("error") == "UsageError"
                    assert "error" in answer or "facts" in answer
        assert refused > 100
        assert client.read(0, 5) == b"stays"


def test_a_message_and_gone(shared: Served) -> None:
    for _ in range(50):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(address_of(shared.image))
            connection.send(json.dumps({"operation": "purge", "arguments": PURGE}).encode())
    deadline = time.monotonic() + 60
    while "facts" not in (answer := ask(shared, json.dumps({"operation": "purge", "arguments": PURGE}).encode())):
        assert "too many commands" in answer["message"], answer  # those before are still to be noticed as gone
        assert time.monotonic() < deadline
        time.sleep(0.01)
