"""What is done to a host while its file's stores are recorded.

Only the host's file counts here: a loss of power takes machine memory and all volatile state, and with them what saved maps are about.
Reservations and swap files have suites of their own, and kills, which keep everything in the order of the program, are tried at lines of
the source (tests/host/test_accounting.py) and in processes (tests/faults/host_kills.py).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from nvmtool.host import host as host_module
from nvmtool.host import layout as lay
from nvmtool.host.create import create_pool, create_vm, delete_pool, delete_vm
from nvmtool.host.host import HOST_FILE, Host
from nvmtool.host.power import power_off, power_on, settle
from nvmtool.host.sharing import share
from nvmtool.host.suspend import restart, resume, suspend
from nvmtool.media.store import FileStore
from tests.host.ground import PAGE, make_host, write

from ..borrowed.ground import GroundStore
from ..borrowed.workloads import folder
from ..trace import FENCE, STORE, Media, Recording, Trace

MEDIUM = "host"
PAGES = 16
_BASES: list[tempfile.TemporaryDirectory[str]] = []

OPERATIONS: dict[str, Callable[[Host], object]] = {
    "pool-create": lambda host: create_pool(host, "new", reservation_bytes=4 * PAGE),
    "pool-delete": lambda host: delete_pool(host, "spare"),
    "vm-create": lambda host: create_vm(host, "new", memory_bytes=PAGES * PAGE),
    "vm-delete": lambda host: delete_vm(host, "off"),
    "power-on": lambda host: power_on(host, "off"),
    "settle": lambda host: settle(host, "a", step_pages=6),
    "power-off": lambda host: power_off(host, "a"),
    "power-off-suspended": lambda host: power_off(host, "b"),
    "suspend": lambda host: suspend(host, "a", batch=3),
    "resume": lambda host: resume(host, "b", batch=3),
    "restart": lambda host: restart(host, force=True),
    "share": share,
}


@contextmanager
def small_tables() -> Iterator[None]:
    """Let hosts have room for few pools and VMs: states would be 2.7 MiB each."""
    with mock.patch.multiple(lay, MAX_POOLS=16, MAX_VMS=16, _LOG_BLOCKS=17):
        yield


@cache
def base() -> Path:
    """Return the folder that all workloads start from: a is on, b is suspended, both share; off is off; a pool is empty."""
    _BASES.append(folder())
    where = Path(_BASES[-1].name)
    with small_tables():
        path = make_host(where, ram=64, vms={"a": PAGES, "b": PAGES})
        with Host.open(path, writable=True) as host:
            create_pool(host, "spare")
            create_vm(host, "off", memory_bytes=PAGES * PAGE, reservation_bytes=2 * PAGE)
            for name in "ab":
                write(host, name, {0: "x", 1: "x", 2: name, 9: 0})
            share(host)
            suspend(host, "b")
    return path


def copy_of_base(target: Path) -> Path:
    """Copy the base into an empty folder and return the host's."""
    shutil.copytree(base(), target / "host")
    return target / "host"


def media_of(path: Path) -> Media:
    """Return the medium of a host."""
    return {MEDIUM: (path / HOST_FILE).read_bytes()}


@contextmanager
def recorded(trace: Trace) -> Iterator[None]:
    """Let every store to a host's file be in the trace."""
    ground = SimpleNamespace(areas={HOST_FILE: SimpleNamespace(metadata=MEDIUM)}, trace=trace)
    store: type[FileStore] = type("Store", (GroundStore,), {"ground": ground})
    with ExitStack() as stack:
        stack.enter_context(small_tables())
        stack.enter_context(mock.patch.object(host_module, "FileStore", store))
        yield


def digest_of(path: Path) -> str:
    """Return what a host's file shows, by reading."""
    with Host.open(path, lost=True) as host:
        return repr((host.life, host.all_pools(), host.all_vms()))


def record(*names: str) -> Recording:
    """Run operations in one session; what may be seen is what each transaction left, and after the end the last of it."""
    trace, first = Trace(), 0
    with folder() as where:
        path = copy_of_base(Path(where))
        media = media_of(path)
        with recorded(trace), Host.open(path, writable=True) as host:
            for number, name in enumerate(names):
                first = len(trace.events) if number == len(names) - 1 else first
                OPERATIONS[name](host)
        trace.ack()
        steps = list(_digests(path, media, trace))
    return Recording("+".join(names), media, trace.events, [set(steps), {steps[-1]}], first if len(names) > 1 else 0, rules=False)


def _digests(path: Path, media: Media, trace: Trace) -> Iterator[str]:
    """Yield what the file shows at each fence."""
    content: Any = bytearray(media[MEDIUM])
    with small_tables():
        for event in (None, *trace.events):
            if event is not None and event.what == STORE:
                content[event.offset : event.offset + len(event.data)] = event.data
            if event is None or event.what == FENCE:
                (path / HOST_FILE).write_bytes(content)
                yield digest_of(path)
