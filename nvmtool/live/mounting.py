"""Mounting an image's regions and snapshots as files: FUSE in front of what `nvmtool.live.serving` does.

pyfuse3's tasks run in the event loop of the serving process (`mount_tasks`), in one thread, so the device changes hands between two
requests, as beside NBD.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

from ..errors import BusyError, ExistsError, NotFoundError, StorageError, UsageError
from .serving import Offer, Serving, serving_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..stopping import Stop
    from .mount_tasks import Tasks

    Facts = dict[str, Any]

_FUSE = "/dev/fuse"
# Tasks that wait for requests while others wait for space; one more is started when none is left.
_LEAST_READERS = 1
_MOST_REQUESTS_AT_ONCE = 64


def mount(
    offer: Offer, folder: str, *, allow_other: bool, stop: Stop, ready: Callable[[Facts], None], report: Callable[[str], None]
) -> None:
    """Mount an image at a folder and serve it until it is unmounted or `stop` is asked; `ready` is called once it can be used.

    Everything is flushed at the end. Raises NotFoundError, ExistsError, BusyError, UsageError or StorageError for a folder that cannot
    be mounted on, and what the device raises.
    """
    require_mountable(folder)
    try:
        import pyfuse3
    except ImportError as error:
        raise UsageError(
            f"mounting needs {error.name}, which is not installed: pip install 'nvmtool[mount]' (it is built then: on Debian and Ubuntu "
            "apt-get install fuse3 libfuse3-dev pkg-config gcc python3-dev first)"
        ) from error
    from .mount_requests import Mounted

    with serving_of(offer, report) as serving:
        requests = Mounted(serving, offer.region)
        serving.front = requests
        options = {"fsname=" + os.path.abspath(offer.image).replace(",", "\\,"), "subtype=nvmtool", "default_permissions"}
        if allow_other:
            options.add("allow_other")
        try:
            pyfuse3.init(requests, os.path.abspath(folder), options)
        except RuntimeError as error:
            raise StorageError(f"{folder}: cannot be mounted: {error}") from error
        unmounted = False
        try:
            stop.on_ask(serving.loop.wake)
            ready({"image": offer.image, "folder": folder, "exports": serving.names()})
            _serve(serving, requests.tasks, stop)
            unmounted = not stop.reason
        finally:
            pyfuse3.close(unmount=not unmounted)


def require_mountable(folder: str) -> None:
    """Raise NotFoundError, UsageError, ExistsError or StorageError for a folder that nothing is mounted on here."""
    try:
        status = os.stat(folder)
        if not stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{folder}: is no directory")
        entries = os.listdir(folder)  # a dead mount says so here
        if os.path.ismount(folder):
            raise BusyError(f"{folder}: something is mounted there already")
        if entries:
            raise ExistsError(f"{folder}: is not empty, and what it holds could not be seen any more")
    except FileNotFoundError as error:
        raise NotFoundError(f"{folder}: no such directory; make it first") from error
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise BusyError(f"{folder}: the process of an earlier mount has died; fusermount3 -u {folder} takes it away") from error
        raise StorageError(f"{folder}: {error.strerror}") from error
    if not os.access(_FUSE, os.R_OK | os.W_OK):
        raise StorageError(f"{_FUSE}: {'cannot be opened' if os.path.exists(_FUSE) else 'is not there'}; mounting needs it")


def _serve(serving: Serving, tasks: Tasks, stop: Stop) -> None:
    """Answer the kernel until it unmounts, or until told to stop."""
    import pyfuse3

    before = pyfuse3.trio  # type: ignore[attr-defined,unused-ignore]
    pyfuse3.trio = tasks  # type: ignore[attr-defined,unused-ignore]
    try:
        tasks.start(pyfuse3.main(_LEAST_READERS, _MOST_REQUESTS_AT_ONCE))
        sleep = 0.0
        while not tasks.is_done:
            sleep = serving.turn(sleep)
            if stop.reason:
                pyfuse3.terminate()
                sleep = 0.0
    finally:
        pyfuse3.trio = before  # type: ignore[attr-defined,unused-ignore]
