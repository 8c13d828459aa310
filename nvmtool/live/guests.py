"""A QEMU guest as the scheduler sees it: its balloon and its report through QMP, its memory from the host's side."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BusyError, RefusedError, StorageError
from ..sched.classes import sample_classes
from ..sched.facts import CLASS_NAMES, Balloon, Estimate, VmFacts
from ..sched.reports import from_balloon_statistics
from .memory import PAGE, GuestMemory, Residency
from .qmp import CommandError, Loop, Monitor, peer_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_POLLING_SECONDS = 1
_BALLOON_TYPE = "virtio-balloon"
_FREE, _ACTIVE, _INACTIVE = (CLASS_NAMES.index(name) for name in ("free", "active_anon", "inactive_anon"))


class Guest:
    """One guest, locked for this scheduler from construction to `close`.

    Raises NotFoundError for a socket without a QEMU, BusyError while another scheduler has it. One that listens and does not answer is
    there all the same, without a driver: what the host sees of its memory is all that is known.
    """

    def __init__(self, loop: Loop, name: str, path: str) -> None:
        """Connect, and ask for statistics every second."""
        self.name = name
        self.pid = peer_of(path)
        self._lock = _lock(name, self.pid)
        self._monitor: Monitor | None = None
        self._balloon_path: str | None = None
        self._target: int | None = None
        self.trouble = ""
        try:
            try:
                self._monitor = Monitor(loop, name, path)
                self.memory_bytes = self._memory_size()
                self._balloon_path = self._find_balloon()
            except StorageError as error:
                self.trouble = str(error)
                self.memory_bytes = 0
            self._memory: GuestMemory | None = None
            with suppress(RefusedError):
                self._memory = GuestMemory(self.pid, self.memory_bytes or None)
                self.memory_bytes = self.memory_bytes or self._memory.area.size_bytes
        except BaseException:  # an interrupt too must not keep the guest locked
            self.close()
            raise

    def facts(self) -> VmFacts:
        """Return what is known now; raises NotFoundError when the guest is gone."""
        seen = self._memory.look() if self._memory is not None else None
        size, driver, stats = 0, False, None
        if self._monitor is not None:
            try:
                size, driver, stats = self._ask_balloon()
                self.trouble = ""
            except StorageError as error:
                self.trouble = str(error)
        estimate = from_balloon_statistics(stats) if stats is not None else None
        if estimate is None:
            estimate = self._sampled(size, seen)
        return VmFacts(
            self.name,
            self.memory_bytes,
            balloon=Balloon(driver=driver, size_bytes=size, target_bytes=self._target),
            swapped_bytes=seen.swapped_bytes if seen is not None else 0,
            swap_room_bytes=None if self._memory is not None else 0,
            resident_bytes=seen.resident_bytes if seen is not None else None,
            estimate=estimate,
        )

    def set_balloon(self, size_bytes: int) -> None:
        """Tell the balloon to hold so much; it follows in its own time."""
        if self._monitor is None:
            raise StorageError(f"{self.name}: {self.trouble}")
        self._monitor.ask("balloon", {"value": max(self.memory_bytes - size_bytes, PAGE)})
        self._target = size_bytes

    def page_out(self, size_bytes: int) -> int:
        """Page out so much, at most what was not referenced since the look before; return how much went."""
        if self._memory is None:
            raise RefusedError(f"{self.name}: process {self.pid} is not yours to page out; root may")
        seen = self._memory.look()
        idle = size_bytes if seen.referenced_bytes is None else min(size_bytes, seen.resident_bytes - seen.referenced_bytes)
        return self._memory.page_out(idle) if idle >= PAGE else 0

    def close(self) -> None:
        """Let go of the guest; its balloon stays as it is."""
        if self._monitor is not None:
            self._monitor.close()
        self._lock.close()

    def _ask(self, command: str, **arguments: object) -> Any:
        assert self._monitor is not None
        return self._monitor.ask(command, arguments)

    def _memory_size(self) -> int:
        found = self._ask("query-memory-size-summary")
        return int(found["base-memory"]) + int(found.get("plugged-memory", 0))

    def _find_balloon(self) -> str | None:
        """Return the balloon device's place in QEMU's object tree, and let it ask the guest for statistics."""
        for folder in ("/machine/peripheral", "/machine/peripheral-anon"):
            for each in self._ask("qom-list", path=folder):
                if str(each["type"]).startswith(f"child<{_BALLOON_TYPE}"):
                    place = f"{folder}/{each['name']}"
                    self._ask("qom-set", path=place, property="guest-stats-polling-interval", value=_POLLING_SECONDS)
                    return place
        return None

    def _ask_balloon(self) -> tuple[int, bool, dict[str, int] | None]:
        """Return what the balloon holds, whether a driver answers, and the guest's statistics if there are any."""
        try:
            size = max(self.memory_bytes - int(self._ask("query-balloon")["actual"]), 0)
        except CommandError:
            return 0, False, None
        if self._balloon_path is None:
            return size, True, None
        found = self._ask("qom-get", path=self._balloon_path, property="guest-stats")
        # No report was ever made: nobody in the guest drives the device yet.
        if not found.get("last-update"):
            return size, False, None
        return size, True, dict(found["stats"])

    def _sampled(self, balloon_bytes: int, seen: Residency | None) -> Estimate | None:
        """Look at some pages from the host's side: one never touched is free; of resident ones as many as were referenced are active."""
        if self._memory is None or seen is None or seen.referenced_bytes is None or not seen.resident_bytes:
            return None
        memory = self._memory
        share = min(seen.referenced_bytes / seen.resident_bytes, 1.0)
        rng = np.random.default_rng()

        def class_of(frames: NDArray[np.int64]) -> NDArray[np.integer]:
            present, swapped, hot = memory.sample(frames)
            active = hot | (rng.random(len(frames)) < share)
            return np.where(present, np.where(active, _ACTIVE, _INACTIVE), np.where(swapped, _INACTIVE, _FREE))

        visible = self.memory_bytes - balloon_bytes
        return sample_classes(min(memory.area.size_bytes, self.memory_bytes) // PAGE, class_of, visible)


def _lock(name: str, pid: int) -> socket.socket:
    """Take the one scheduler's place at a process: an abstract socket, which goes with whoever has it."""
    held = socket.socket(socket.AF_UNIX)
    try:
        held.bind(f"\0nvmtool-sched-{pid}")
    except OSError as error:
        held.close()
        raise BusyError(f"{name}: another scheduler governs QEMU process {pid}") from error
    return held
