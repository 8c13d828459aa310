"""What a serving command says: that it is ready, once, and what its log should know."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import click

from ..text import printable


def announce(text: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the one line that begins with "ready", as text or as an object, and tell systemd."""
    line = json.dumps({"ready": True, **facts}) if as_json else f"ready: {text}"
    sys.stdout.write(printable(line) + "\n")
    sys.stdout.flush()
    _notify("READY=1")


def report_line(line: str) -> None:
    """Write a line of the log to stderr."""
    with suppress(OSError):  # nobody to tell
        click.echo("nvmtool: " + printable(" ".join(line.split())), err=True)


def _notify(state: str) -> None:
    """Tell systemd, if it asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect("\0" + address[1:] if address.startswith("@") else address)
            notify.send(state.encode())
