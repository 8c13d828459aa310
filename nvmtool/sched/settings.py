"""The policy's settings; docs/sched.md says why each default is what it is."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ..errors import UsageError
from .facts import Facts, State

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may choose. Shares are 0 to 1, of the host's memory unless said otherwise.

    - `tax`: a page that is idle costs a VM as many shares as 1 / (1 - tax) pages that are active.
    - `high`, `soft`, `hard`, `low`: thresholds of free memory. A host falls to a state when it has less than that, and gets out when it has
      as much as the next better one.
    - `free_target`: the share to keep free, where the facts' own is not to count; more than `high`.
    - `deadband`: so far from the goal nothing is done.
    - `largest_step`: of what a VM holds, the most to take from it, and of its memory, the most to give to it, in one interval.
    - `cool_down_s`: for so long after a VM was taken from it is not given to, and the other way round, while the host is in state high.
    - `stuck_after_s`, `stuck_retry_s`: a balloon that did not move for so long is stuck, and is tried again after so long.
    - `headroom`: of a VM's memory, so much of its free and inactive file pages is left to it.
    - `guest_swaps`: let balloons take anonymous pages where the host has no room to swap them; the guests must have swap space.
    - `below_minimum`: go below the VMs' minimum, never below their reservation.
    - `may_swap`: swap on the host at all.
    """

    tax: float = 0.75
    high: float = 0.06
    soft: float = 0.04
    hard: float = 0.02
    low: float = 0.01
    free_target: float | None = None
    deadband: float = 0.005
    largest_step: float = 0.5
    cool_down_s: float = 30.0
    stuck_after_s: float = 5.0
    stuck_retry_s: float = 60.0
    headroom: float = 0.03
    guest_swaps: bool = False
    below_minimum: bool = False
    may_swap: bool = True

    def __post_init__(self) -> None:
        """Raise UsageError on what no policy could follow."""
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, bool) or value is None:
                continue
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{each.name}: {value} is not a number from 0 on")
            if not each.name.endswith("_s") and value > 1:
                raise UsageError(f"{each.name}: {value} is more than 1")
        if not self.high > self.soft > self.hard > self.low:
            raise UsageError(f"thresholds must fall: high {self.high}, soft {self.soft}, hard {self.hard}, low {self.low}")
        if self.tax > 0.99:
            raise UsageError(f"tax: {self.tax} is more than 0.99, at which an idle page costs a hundred")
        if self.free_target == 1:
            raise UsageError("free_target: with all memory free nothing runs")
        if not self.largest_step:
            raise UsageError("largest_step: 0 would never change anything")

    @property
    def idle_cost(self) -> float:
        """Return k: what an idle page costs when an active one costs 1."""
        return 1 / (1 - self.tax)

    def threshold(self, state: State) -> float:
        """Return the share of free memory at which a state begins."""
        return (self.high, self.soft, self.hard, self.low)[state]


@dataclass(frozen=True, slots=True)
class Terms:
    """What an operator says about one VM, in place of what its world says; None leaves that."""

    minimum_bytes: int | None = None
    reservation_bytes: int | None = None
    limit_bytes: int | None = None
    shares: int | None = None


def with_terms(facts: Facts, terms: Mapping[str, Terms]) -> Facts:
    """Return the facts with the operator's terms in place of the worlds'; raises UsageError for a VM that is not there."""
    if unknown := terms.keys() - {vm.name for vm in facts.vms}:
        raise UsageError(f"no VM is called {min(unknown)}")
    chosen = {name: {key: value for key, value in dataclasses.asdict(each).items() if value is not None} for name, each in terms.items()}
    return dataclasses.replace(
        facts, vms=tuple(dataclasses.replace(vm, **chosen[vm.name]) if vm.name in chosen else vm for vm in facts.vms)
    )
