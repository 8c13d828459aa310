"""Listens like a QEMU of 64 MiB: python -m tests.live.qmp_standin SOCKET [STATISTICS], without which it never says a word.

In a process of its own, as a QEMU is: whose socket it is tells the scheduler whose memory to look at.
"""

from __future__ import annotations

import json
import mmap
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

MEMORY_BYTES = 64 << 20
GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}


def _requests(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """Yield what a client sends: JSON without an end of line, of which a piece may come alone."""
    waiting = ""
    while more := connection.recv(1 << 16).decode():
        waiting += more
        while waiting := waiting.lstrip():
            try:
                request, end = json.JSONDecoder().raw_decode(waiting)
            except ValueError:
                break
            waiting = waiting[end:]
            yield request


def _talk(connection: socket.socket, stats: dict[str, int]) -> None:
    answers = {
        "qmp_capabilities": {},
        "query-memory-size-summary": {"base-memory": MEMORY_BYTES},
        "query-balloon": {"actual": MEMORY_BYTES},
        "qom-list": [{"name": "balloon", "type": "child<virtio-balloon-pci>"}],
        "qom-set": {},
        "qom-get": {"stats": stats, "last-update": 1},
    }
    try:
        connection.sendall(json.dumps(GREETING).encode() + b"\n")
        for asked in _requests(connection):
            answer = {"return": answers[asked["execute"]], "id": asked.get("id")}
            connection.sendall(json.dumps(answer).encode() + b"\n")
    except OSError:
        return


def main(path: str, stats: str = "") -> None:
    """Serve until somebody ends it."""
    memory = mmap.mmap(-1, MEMORY_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[: MEMORY_BYTES // 2] = bytes(MEMORY_BYTES // 2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        kept = []
        while True:
            connection, _ = listener.accept()
            if stats:
                threading.Thread(target=_talk, args=(connection, json.loads(stats)), daemon=True).start()
            else:
                kept.append(connection)


if __name__ == "__main__":
    main(*sys.argv[1:])
