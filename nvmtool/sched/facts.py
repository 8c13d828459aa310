"""What the policy knows: one snapshot of a host and its VMs, made by a world (world.py). All sizes are bytes.

The policy is a pure function of `Facts` and `Settings`. Whoever makes facts need not tidy them: `doubts.sound_facts` replaces what no guest
could mean by what is safe to assume, and says so; only a host about which nothing can be decided is an error.

How the sizes of a VM hang together::

    memory_bytes                                   what the guest was started with
    |-- balloon.size_bytes                         the guest gave it up; the host has it
    `-- the six classes                            what the guest sees, and thinks it has
        |-- swapped_bytes                          of these, the host swapped out; the guest does not know
        `-- held_bytes                             of these, the rest, which costs machine memory
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import IntEnum


class State(IntEnum):
    """How short a host is of memory, from its thresholds (settings.py); more is worse."""

    HIGH = 0
    SOFT = 1
    HARD = 2
    LOW = 3

    @property
    def label(self) -> str:
        """Return the name as CLI and JSON have it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Classes:
    """Bytes of a guest's memory by what taking them would cost. Their sum is `memory - balloon`, less what the guest's firmware hides.

    - `unreclaimable`: kernel, slab that cannot shrink, page tables, mlocked pages, huge pages set aside.
    - `active_anon`, `active_file`: used lately; taking them hurts.
    - `inactive_anon`: not used lately, without a file: somebody must write it to swap.
    - `inactive_file`: not used lately, and a file has it: the guest drops it (a dirty one is written first).
    - `free`: nobody's.
    """

    unreclaimable: int = 0
    active_anon: int = 0
    active_file: int = 0
    inactive_anon: int = 0
    inactive_file: int = 0
    free: int = 0

    @property
    def total_bytes(self) -> int:
        """Return the sum of all six."""
        return self.unreclaimable + self.active_anon + self.active_file + self.inactive_anon + self.inactive_file + self.free

    @property
    def working_set_bytes(self) -> int:
        """Return W: unreclaimable, active anonymous and active file."""
        return self.unreclaimable + self.active_anon + self.active_file

    @property
    def idle_bytes(self) -> int:
        """Return what is not the working set."""
        return self.inactive_anon + self.inactive_file + self.free

    def as_dict(self) -> dict[str, int]:
        """Return the classes by name, in order."""
        return {name: getattr(self, name) for name in CLASS_NAMES}


CLASS_NAMES = tuple(each.name for each in fields(Classes))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A guest's classes, and how sure they are.

    `low` and `high` are the ends of each class's 95 % interval; where the guest itself counted they equal `classes`. The policy takes idle
    pages up to `low` and counts the rest as working set: what is not known to be idle is not taken as idle.

    `source` is `report` (the guest's statistics), `sample` (`nsampled` page frames were looked at), or a word of the producer's own.
    """

    classes: Classes
    low: Classes
    high: Classes
    source: str
    nsampled: int = 0

    @classmethod
    def reported(cls, classes: Classes) -> Estimate:
        """Return the estimate that a guest's own report is."""
        return cls(classes, classes, classes, "report")


@dataclass(frozen=True, slots=True)
class Balloon:
    """A VM's balloon.

    - `driver`: whether the guest has one that answers. False: `size_bytes` is what it was last known to hold, and cannot change.
    - `size_bytes`: what it holds now (virtio: memory - actual).
    - `target_bytes`: what it was last told to hold; None where nobody told it anything, or that is not known. While it is on its way there,
      the difference counts as done, so that two plans in a row do not order the same memory twice.
    - `max_bytes`: the most it can hold; None: all but the VM's minimum.
    - `stalled_s`: for how long it has not moved although it is not at its target. The loop (loop.py) keeps this; a world that knows better
      may fill it in, others leave 0.
    """

    driver: bool = True
    size_bytes: int = 0
    target_bytes: int | None = None
    max_bytes: int | None = None
    stalled_s: float = 0.0


@dataclass(frozen=True, slots=True)
class VmFacts:
    """One VM that runs. Suspended and powered-off VMs are not listed; what they occupy is in the host's `own_bytes`.

    - `minimum_bytes`: below this it is not ballooned or swapped unless the operator says so (`Settings.below_minimum`).
    - `reservation_bytes`: guaranteed; it is never brought below, whatever the settings. May be less or more than the minimum.
    - `limit_bytes`: the most machine memory it may hold; None: all its memory.
    - `shares`: its weight for what is not guaranteed.
    - `swapped_bytes`: pages of it that the host has swapped out now.
    - `swap_room_bytes`: how much more of it could be swapped out as far as its own swap file goes; 0: it cannot be swapped; None: only the
      host's room (`HostFacts.swap_room_bytes`) bounds it.
    - `sharable_bytes`: what sharing equal pages would free, as far as it is known; this much less is swapped.
    - `resident_bytes`: machine memory that it really occupies (for QEMU the RSS of guest memory); None: all that is neither ballooned nor
      swapped. It is less where the guest never touched its memory; such pages are free ones, and ballooning them frees nothing.
    - `estimate`: the classes; None: not known, and then all of it counts as working set.
    - `since_shrink_s`, `since_grow_s`: since the scheduler last took from it or gave to it; None: not lately. The loop keeps these.
    """

    name: str
    memory_bytes: int
    minimum_bytes: int = 0
    reservation_bytes: int = 0
    limit_bytes: int | None = None
    shares: int = 1000
    balloon: Balloon = field(default_factory=Balloon)
    swapped_bytes: int = 0
    swap_room_bytes: int | None = None
    sharable_bytes: int = 0
    resident_bytes: int | None = None
    estimate: Estimate | None = None
    since_shrink_s: float | None = None
    since_grow_s: float | None = None

    @property
    def held_bytes(self) -> int:
        """Return the machine memory it holds now."""
        backed = self.memory_bytes - self.balloon.size_bytes - self.swapped_bytes
        return backed if self.resident_bytes is None else min(backed, self.resident_bytes)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The host.

    - `total_bytes`: machine memory that VMs and everything else share.
    - `free_bytes`: what could be given to a VM at once without hurting anyone. On Linux that is MemAvailable, not MemFree.
    - `own_bytes`: what is neither free nor held by the VMs listed (hypervisor, services, suspended VMs); shown, not decided upon.
    - `swap_room_bytes`: free space for swapped pages of all VMs together; None: only each VM's own room bounds it. 0: no swapping.
    - `free_target`: the share of `total_bytes` that the operator wants free, 0 to 1; None: the thresholds decide.
    - `state_before`: the state of the last plan, for hysteresis; None at the first. The loop keeps this.
    """

    total_bytes: int
    free_bytes: int
    own_bytes: int = 0
    swap_room_bytes: int | None = None
    free_target: float | None = None
    state_before: State | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """A snapshot: the host, and its running VMs in any order; names are unique."""

    host: HostFacts
    vms: tuple[VmFacts, ...]
