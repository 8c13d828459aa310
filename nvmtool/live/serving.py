"""A process that serves an image: the device, the event loop, management, and what it does by itself; clients come through a front end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import BusyError, NotFoundError, NvmtoolError
from ..region.access import Access, Export
from ..region.device import Device
from ..region.operations import run_operation
from .control import Control, Job, Jobs
from .loop import Loop
from .turns import Turns
from .writeback import Writeback

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..region.sweep import Progress
    from ..stopping import Stop

    Facts = dict[str, Any]

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
    """What is served of an image: everything, or one region, or one snapshot."""

    image: str
    mass: str | None = None
    region: str | None = None
    snapshot: str | None = None
    auto_purge: float | None = None


class FrontEnd(Protocol):
    """What clients talk to: the NBD server, or the mount."""

    # Requests so far, of all clients.
    served: int

    @property
    def has_held(self) -> bool:
        """Whether writes wait for space, or for a reader."""

    def users_of(self, region: str, snapshot: str | None = None) -> int:
        """Return how many clients have a region's running point or a snapshot; with "*" any state of the region."""

    def close(self) -> None:
        """Drop all clients."""


@contextmanager
def serving_of(offer: Offer, report: Callable[[str], None]) -> Iterator[Serving]:
    """Open an image to serve it; everything is flushed at the end. Raises BusyError, NotFoundError, or what the device raises."""
    with Device.open(offer.image, writable=True, mass=offer.mass) as device:
        device.evict_readers_after(_READERS_WAIT_SECONDS)
        device.store.stay_cached()
        serving = Serving(device, offer, report)
        try:
            yield serving
        finally:
            serving.close()


class Serving:
    """An open device that is being served; the parts, and who may do what when."""

    def __init__(self, device: Device, offer: Offer, report: Callable[[str], None]) -> None:
        """Set up all but the front end, which is whoever sets `front`; raises NotFoundError or UsageError for what cannot be offered."""
        self.device, self.offer = device, offer
        self._report, self._reported = report, dict[str, float]()
        self.access = Access(device)
        # All of several regions are offered together; what is named, or the only one, must be there.
        if len(device.regions()) < 2 or (offer.region, offer.snapshot) != (None, None):
            self.find_export(offer.region or "")
        self.loop = Loop()
        self.front: FrontEnd | None = None
        self._switch_before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        self.turns = Turns(self.loop, device, lambda: self.front.served if self.front is not None else 0)
        self.jobs = Jobs(self.turns, self._run, self.loop)
        try:
            self.control = Control(self.loop, self.jobs, device.path)
        except BaseException:  # an interrupt too must end the thread
            self.jobs.close()
            raise
        self._writeback = Writeback(device.store)
        self._flushed_at = time.monotonic()
        self._purge_from = 0.0
        self.loop.after_turn.append(self._flush_by_itself)
        if offer.auto_purge is not None:
            self.loop.after_turn.append(self._purge_by_itself)

    def run(self, stop: Stop) -> None:
        """Serve until told to stop."""
        sleep = 0.0
        while not stop.reason:
            sleep = self.turn(sleep)

    def turn(self, sleep: float) -> float:
        """Handle what is ready, after at most so many seconds, and return how long the next turn may sleep."""
        sleep = self.loop.turn(sleep)
        if self.jobs.failure is not None:
            raise self.jobs.failure
        return sleep

    def close(self) -> None:
        """End jobs and connections; the device stays open, and unflushed."""
        if self.front is not None:
            self.front.close()
        self.control.close()
        self.jobs.close()
        self._writeback.close()
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
                if self.device.journal.is_filling:
                    with suppress(BusyError):  # readers are there: then the log stays as it is
                        self.device.journal.checkpoint(patient=False)
                self.turns.pause()
            started = time.perf_counter()
            with self.access.keeping("running points", "snapshots"):
                facts = run_operation(self.device, "snapshot create", arguments)
            return {**facts, "seconds": round(time.perf_counter() - started, 6)}
        finally:
            self.turns.urgent = False

    def _require_unused(self, operation: str, arguments: Mapping[str, Any]) -> None:
        """Refuse what would take an export away from clients, or change its contents under them."""
        if self.front is None or operation not in ("snapshot delete", "snapshot revert", "region delete", "region convert"):
            return
        if operation == "snapshot delete":
            region = self.device.region(arguments.get("region")).name
            for name in arguments.get("names", ()):
                self._require_no_clients(f"{region}@{name}", self.front.users_of(region, name))
            return
        region = self.device.region(arguments.get("name" if operation.startswith("region") else "region")).name
        users = self.front.users_of(region, "*" if operation == "region delete" else None)
        self._require_no_clients(region, users)

    def _require_no_clients(self, name: str, count: int) -> None:
        if count:
            raise BusyError(f"{self.device.path}: {name} is in use by {count} of the server's clients")

    # --- what the server does by itself, in the loop

    def _flush_by_itself(self) -> float | None:
        pending = self.access.pending_blocks
        self._writeback.look(pending)
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
        held = self.front is not None and self.front.has_held
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
