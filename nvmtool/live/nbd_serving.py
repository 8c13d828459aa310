"""Serving an image over NBD: the listening socket, in front of what `nvmtool.live.serving` does."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..errors import BusyError, ExistsError, RefusedError, StorageError, UsageError
from .nbd import NbdServer
from .serving import Offer, serving_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..stopping import Stop

    Facts = dict[str, Any]

_BACKLOG = 128
_SUN_PATH_BYTES = 107


@dataclass(frozen=True)
class Place:
    """Where an image is served. With neither port nor socket path, the socket is beside the image."""

    image: str
    socket: str | None = None
    port: int | None = None
    address: str = "127.0.0.1"


def serve(offer: Offer, place: Place, *, stop: Stop, ready: Callable[[Facts], None], report: Callable[[str], None]) -> None:
    """Serve until `stop` is asked; `ready` is called once clients can connect, `report` with what the log should know.

    Everything is flushed at the end. Raises BusyError, NotFoundError, UsageError, or what the device raises.
    """
    with serving_of(offer, report) as serving, ExitStack() as stack:
        listener, where = _listen(place)
        stack.callback(_remove_socket, listener, place)
        serving.front = NbdServer(serving.loop, serving, listener, serving.report)
        stop.on_ask(serving.loop.wake)
        ready({"image": offer.image, **where, "exports": serving.names()})
        serving.run(stop)


def _listen(place: Place) -> tuple[socket.socket, Facts]:
    if place.port is not None:
        return _listen_tcp(place.address, place.port)
    path = socket_path(place)
    if len(os.fsencode(path)) > _SUN_PATH_BYTES:
        raise UsageError(f"{path}: a socket's path has at most {_SUN_PATH_BYTES} bytes; name a shorter one with --socket")
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)  # its owner's alone
    try:
        _bind(listener, path)
        listener.listen(_BACKLOG)
    except BaseException:  # an interrupt too must not leave the socket open
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener, {"socket": path, "uri": f"nbd+unix:///?socket={quote(os.path.abspath(path))}"}


def socket_path(place: Place) -> str:
    """Return where the socket is: where it was wanted, else beside the image."""
    return place.socket if place.socket is not None else f"{place.image}.nbd"


def _bind(listener: socket.socket, path: str) -> None:
    try:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise ExistsError(f"{path}: exists already, and is no socket")
            with socket.socket(socket.AF_UNIX) as other:
                if other.connect_ex(path) == 0:
                    raise BusyError(f"{path}: another process listens there")
            os.unlink(path)  # its server is dead
        listener.bind(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot listen there: {error.strerror}") from error


def _listen_tcp(address: str, port: int) -> tuple[socket.socket, Facts]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        cls = BusyError if error.errno == errno.EADDRINUSE else StorageError
        raise cls(f"{address} port {port}: cannot listen there: {error.strerror}") from error
    shown = f"[{address}]" if family == socket.AF_INET6 else address
    port = listener.getsockname()[1]
    return listener, {"address": address, "port": port, "uri": f"nbd://{shown}:{port}"}


def _remove_socket(listener: socket.socket, place: Place) -> None:
    listener.close()
    if place.port is None:
        with suppress(OSError):
            os.unlink(socket_path(place))


def require_loopback(address: str) -> None:
    """Raise RefusedError for an address that others than this machine reach: here nothing is encrypted."""
    if address not in ("127.0.0.1", "::1"):
        raise RefusedError(
            f"{address}: is not this machine's loopback, and nothing is encrypted; --insecure-address {address} serves it all the same"
        )
