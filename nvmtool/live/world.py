"""QEMU guests as a world of the scheduler: balloons through QMP, swapping by the host's kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ..errors import NotFoundError
from ..sched.facts import Facts, HostFacts, VmFacts
from . import cgroups
from .guests import Guest
from .qmp import Loop

_T = TypeVar("_T")


class QemuWorld:
    """The guests behind some QMP sockets (name: path); see `nvmtool.sched.world.World` for what it promises.

    Swapping asks a guest's own cgroup where it has one (`memory.reclaim`: the kernel knows what was used least), else pages out with
    process_madvise, never more than was not referenced since the look before. Pages come back when they are touched.
    """

    def __init__(self, sockets: Mapping[str, str]) -> None:
        """Connect to all and lock them for this scheduler; raises NotFoundError, or BusyError for a guest that another one governs."""
        self._loop = Loop()
        self._guests: dict[str, Guest] = {}
        try:
            for name, path in sockets.items():
                self._guests[name] = Guest(self._loop, name, path)
        except BaseException:  # an interrupt too must not keep guests locked
            self.close()
            raise

    def facts(self) -> Facts:
        """Return what is known now. A guest that exits meanwhile is left out."""
        vms: list[VmFacts] = []
        for name in list(self._guests):
            with suppress(NotFoundError):
                vms.append(self._of(name, Guest.facts))
        memory = _meminfo()
        held = sum(vm.held_bytes for vm in vms)
        total, free = memory["MemTotal"], memory["MemAvailable"]
        own = max(total - free - held, 0)
        return Facts(HostFacts(total, free, own, swap_room_bytes=memory["SwapFree"]), tuple(vms))

    def set_balloon(self, name: str, size_bytes: int) -> None:
        """Tell a guest's balloon to hold so much."""
        self._of(name, lambda guest: guest.set_balloon(size_bytes))

    def swap_out(self, name: str, size_bytes: int) -> int:
        """Swap out so much of a guest that is not in use; return how much went."""

        def swap(guest: Guest) -> int:
            group = cgroups.group_of(guest.pid)
            return cgroups.reclaim(group, size_bytes) if group is not None else guest.page_out(size_bytes)

        return self._of(name, swap)

    def swap_in(self, name: str, size_bytes: int) -> int:
        """Return 0: pages come back when they are touched."""
        self._of(name, lambda guest: guest.pid)
        return 0

    def share(self, name: str, size_bytes: int) -> int:
        """Return 0: sharing among processes is the kernel's (KSM)."""
        self._of(name, lambda guest: guest.pid)
        return 0

    def close(self) -> None:
        """Let go of all guests; balloons and swapped pages stay as they are."""
        for guest in self._guests.values():
            guest.close()
        self._guests.clear()
        self._loop.close()

    def _of(self, name: str, step: Callable[[Guest], _T]) -> _T:
        """Do something with a guest; one that is gone is forgotten."""
        guest = self._guests.get(name)
        if guest is None:
            raise NotFoundError(f"{name}: the guest is gone")
        try:
            return step(guest)
        except NotFoundError:
            del self._guests[name]
            guest.close()
            raise


def _meminfo() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}
