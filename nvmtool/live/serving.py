"""A process that serves an image: the device, the event loop, the NBD server, management, and what it does by itself."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..errors import BusyError, ExistsError, NotFoundError, NvmtoolError, RefusedError, StorageError, UsageError
from ..region.access import Access, Export
from ..region.device import Device
from ..region.operations import run_operation
from .control import Control, Job, Jobs
from .loop import Loop
from .nbd import NbdServer
from .turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..region.sweep import Progress
    from ..stopping import Stop

    Facts = dict[str, Any]

_BACKLOG = 128
_SUN_PATH_BYTES = 107
# Flushed by the server itself: that many blocks, or what has waited so long.
_MOST_PENDING = 16384
_LONGEST_PENDING = 1.0
_SNAPSHOT_PENDING = 64
_PURGE_AGAIN_SECONDS = 1.0
_READERS_WAIT_SECONDS = 5.0
# Python lets a thread that computes go on for so long while another one waits.
_SWITCH_SECONDS = 0.0005


@dataclass(frozen=True)
class Offer:
    """What is served, and where. With neither port nor socket path, the socket is beside the image."""

    image: str
    mass: str | None = None
    region: str | None = None
    snapshot: str | None = None
    socket: str | None = None
    port: int | None = None
    address: str = "127.0.0.1"
    auto_purge: float | None = None


def serve(offer: Offer, *, stop: Stop, ready: Callable[[Facts], None], report: Callable[[str], None]) -> None:
    """Serve until `stop` is asked; `ready` is called once clients can connect, `report` with what the log should know.

    Everything is flushed at the end. Raises BusyError, NotFoundError, UsageError, or what the device raises.
    """
    with ExitStack() as stack:
        device = stack.enter_context(Device.open(offer.image, writable=True, mass=offer.mass))
        device.evict_readers_after(_READERS_WAIT_SECONDS)
        device.store.stay_cached()
        serving = Serving(device, offer, report)
        stack.callback(serving.close)
        listener, where = _listen(offer)
        stack.callback(_remove_socket, listener, offer)
        serving.listen(listener)
        stop.on_ask(serving.loop.wake)
        ready({"image": offer.image, **where, "exports": serving.names()})
        serving.run(stop)


class Serving:
    """An open device that is being served; the parts, and who may do what when."""

    def __init__(self, device: Device, offer: Offer, report: Callable[[str], None]) -> None:
        """Set up all but the listening socket; raises NotFoundError or UsageError for what cannot be offered."""
        self.device, self.offer = device, offer
        self._report, self._reported = report, dict[str, float]()
        self.access = Access(device)
        # All of several regions are offered together; what is named, or the only one, must be there.
        if len(device.regions()) < 2 or (offer.region, offer.snapshot) != (None, None):
            self.find_export(offer.region or "")
        self.loop = Loop()
        self.nbd: NbdServer | None = None
        self._switch_before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        self.turns = Turns(self.loop, device, lambda: self.nbd.served if self.nbd is not None else 0)
        self.jobs = Jobs(self.turns, self._run, self.loop)
        try:
            self.control = Control(self.loop, self.jobs, device.path)
        except BaseException:
            self.jobs.close()
            raise
        self._flushed_at = time.monotonic()
        self._purge_from = 0.0
        self.loop.after_turn.append(self._flush_by_itself)
        if offer.auto_purge is not None:
            self.loop.after_turn.append(self._purge_by_itself)

    def listen(self, listener: socket.socket) -> None:
        """Take clients from now on."""
        self.nbd = NbdServer(self.loop, self, listener, self.report)

    def run(self, stop: Stop) -> None:
        """Serve until told to stop."""
        sleep = 0.0
        while not stop.reason:
            sleep = self.loop.turn(sleep)
            if self.jobs.failure is not None:
                raise self.jobs.failure

    def close(self) -> None:
        """End jobs and connections; the device stays open, and unflushed."""
        if self.nbd is not None:
            self.nbd.close()
        self.control.close()
        self.jobs.close()
        self.access.close()
        self.loop.close()
        sys.setswitchinterval(self._switch_before)

    def report(self, line: str) -> None:
        """Tell the log; the same line once a minute."""
        now = time.monotonic()
        if now - self._reported.get(line, -60.0) >= 60.0:
            if len(self._reported) > 1000:
                self._reported.clear()
            self._reported[line] = now
            self._report(line)

    # --- what is offered

    def find_export(self, name: str) -> Export:
        """Return an export by the name that a client gives; raises NotFoundError or UsageError."""
        offer = self.offer
        if not name:
            name = (offer.region or "") + (f"@{offer.snapshot}" if offer.snapshot is not None else "")
        export = self.access.export(name)
        if offer.region not in (None, export.region.name) or offer.snapshot not in (None, export.snapshot):
            raise NotFoundError(f"{self.device.path}: {name!r} is not exported")
        return export

    def names(self) -> list[str]:
        """Return the names of the exports."""
        found = []
        for name in self.access.names():
            region, _, snapshot = name.partition("@")
            if self.offer.region in (None, region) and self.offer.snapshot in (None, snapshot):
                found.append(name)
        return found

    # --- operations, in the thread of jobs

    def _run(self, operation: str, arguments: Mapping[str, Any], progress: Progress) -> Facts:
        self._require_unused(operation, arguments)
        if operation == "snapshot create":
            return self._create_snapshot(arguments)
        kept = ("running points",) if operation == "purge" else ()
        with self.access.keeping(*kept):
            return run_operation(self.device, operation, arguments, progress)

    def _create_snapshot(self, arguments: Mapping[str, Any]) -> Facts:
        """Flush most of what waits while clients go on, so that they wait for the last step alone."""
        self.turns.urgent = True
        try:
            while self.access.pending_blocks > _SNAPSHOT_PENDING:
                self.access.flush()
                self.turns.pause()
            started = time.perf_counter()
            with self.access.keeping("running points", "snapshots"):
                facts = run_operation(self.device, "snapshot create", arguments)
            return {**facts, "seconds": round(time.perf_counter() - started, 6)}
        finally:
            self.turns.urgent = False

    def _require_unused(self, operation: str, arguments: Mapping[str, Any]) -> None:
        """Refuse what would take an export away from clients, or change its contents under them."""
        if self.nbd is None or operation not in ("snapshot delete", "snapshot revert", "region delete", "region convert"):
            return
        if operation == "snapshot delete":
            region = self.device.region(arguments.get("region")).name
            for name in arguments.get("names", ()):
                self._require_no_clients(f"{region}@{name}", self.nbd.users_of(region, name))
            return
        region = self.device.region(arguments.get("name" if operation.startswith("region") else "region")).name
        users = self.nbd.users_of(region, "*" if operation == "region delete" else None)
        self._require_no_clients(region, users)

    def _require_no_clients(self, name: str, count: int) -> None:
        if count:
            raise BusyError(f"{self.device.path}: {name} is in use by {count} of the server's clients")

    # --- what the server does by itself, in the loop

    def _flush_by_itself(self) -> float | None:
        pending = self.access.pending_blocks
        now = time.monotonic()
        if pending == 0:
            self._flushed_at = now
            return None
        if pending < _MOST_PENDING and now - self._flushed_at < _LONGEST_PENDING:
            return _LONGEST_PENDING - (now - self._flushed_at)
        self._flushed_at = now
        try:
            self.access.flush()
        except BusyError:
            return 0.05
        except NvmtoolError as error:
            self.report(f"flush: {error}")
        return None

    @property
    def _free_share(self) -> float:
        return self.device.blocks.free_blocks / self.device.blocks.nblocks

    def waits_for_space(self) -> bool:
        """Tell whether a write that does not fit may fit soon: while the server may purge, and something is left to purge."""
        if self.offer.auto_purge is None:
            return False
        return not self.jobs.is_idle or time.monotonic() >= self._purge_from

    def _purge_by_itself(self) -> float | None:
        low = self.offer.auto_purge
        assert low is not None
        held = self.nbd is not None and self.nbd.has_held
        self.turns.urgent = self.turns.urgent or held
        if not self.jobs.is_idle or not (held or self._free_share < low):
            return None
        now = time.monotonic()
        if now < self._purge_from:
            return self._purge_from - now
        target = min(1.0, max(low, self._free_share) + low / 2)
        for region in self.device.regions():
            mode = "virtblock" if region.mapping == "virtblock" else "pointer-elimination"
            arguments = {"mode": mode, "region": region.name, "snapshots": (), "free_target": target}
            self.jobs.add(Job("purge", {**arguments, "max_bytes": None, "max_seconds": None}, None, self._purged))
        return None

    def _purged(self, job: Job) -> None:
        self.turns.urgent = False
        if job.facts is not None and job.facts["blocks_purged"]:
            self.report(f"purged {job.facts['bytes_purged']} bytes of region {job.arguments['region']}, for little NVM was free")
            return
        if isinstance(job.error, NvmtoolError):
            self.report(f"purge: {job.error}")
        self._purge_from = time.monotonic() + _PURGE_AGAIN_SECONDS


def _listen(offer: Offer) -> tuple[socket.socket, Facts]:
    if offer.port is not None:
        return _listen_tcp(offer.address, offer.port)
    path = socket_path(offer)
    if len(os.fsencode(path)) > _SUN_PATH_BYTES:
        raise UsageError(f"{path}: a socket's path has at most {_SUN_PATH_BYTES} bytes; name a shorter one with --socket")
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)  # its owner's alone
    try:
        _bind(listener, path)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener, {"socket": path, "uri": f"nbd+unix:///?socket={quote(os.path.abspath(path))}"}


def socket_path(offer: Offer) -> str:
    """Return where the socket is: where it was wanted, else beside the image."""
    return offer.socket if offer.socket is not None else f"{offer.image}.nbd"


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


def _remove_socket(listener: socket.socket, offer: Offer) -> None:
    listener.close()
    if offer.port is None:
        with suppress(OSError):
            os.unlink(socket_path(offer))


def require_loopback(address: str) -> None:
    """Raise RefusedError for an address that others than this machine reach: here nothing is encrypted."""
    if address not in ("127.0.0.1", "::1"):
        raise RefusedError(
            f"{address}: is not this machine's loopback, and nothing is encrypted; --insecure-address {address} serves it all the same"
        )
