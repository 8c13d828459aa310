"""The seam between the policy and what it governs: a world gives facts and carries out single steps; it decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .facts import Facts


class World(Protocol):
    """A host with running VMs.

    There are `nvmtool.host.world.HostWorld(folder)` for the image host, `nvmtool.live.world.QemuWorld({name: socket})` for QEMU guests, and
    `model.ModelWorld(moment)` for modelled ones; the command line makes the first two with just these arguments.

    It holds a lock on what it governs from its construction to `close`, and raises BusyError where another scheduler has it. Each method
    ends within seconds: a guest that does not answer is listed in the facts without a driver, or raises StorageError here.

    A step for a VM that is gone raises NotFoundError. Other VMs are not affected by one VM's error.
    """

    def facts(self) -> Facts:
        """Return what is known now. A VM that exits meanwhile is left out."""

    def set_balloon(self, name: str, size_bytes: int) -> None:
        """Tell a VM's balloon to hold so much; returns at once, the guest follows in its own time."""

    def swap_out(self, name: str, size_bytes: int) -> int:
        """Swap out so much of a VM and return how much it was: less where not enough was found.

        Inactive anonymous pages go first, then inactive file and free ones, and only then others: the plan's sizes count on that order.
        """

    def swap_in(self, name: str, size_bytes: int) -> int:
        """Bring so much of a VM back and return how much it was; 0 where pages only come back when they are touched."""

    def share(self, name: str, size_bytes: int) -> int:
        """Share pages of a VM with equal ones, as far as the host can, and return what that freed; 0 where it cannot."""

    def close(self) -> None:
        """Let go of everything; balloons and swapped pages stay as they are."""
