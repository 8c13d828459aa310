"""Reference models of two published ballooning policies, for modelled guests (nvmtool.sched.model). They are models, not the programs.

Proxmox VE (pve-manager, PVE/AutoBalloon.pm and pvestatd): every 10 s, bring the host to 80 % used; each VM moves by at most 100 MiB towards
its part by shares of what is beyond the minimums; VMs whose free memory is more than a quarter of their minimum are shrunk first, all of
them where that changes nothing.

oVirt MOM (mom-balloon.policy as vdsm ships it): below 20 % of free memory, leave each guest its used memory and a share of free memory that
falls with the host's (20 % at no pressure); at most 5 % of a guest at a time, and no changes of less than 0.25 %.

Both act by ballooning alone, and know of a guest what is free in it, not what it uses the rest for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from measure import MIB

from nvmtool.sched.loop import Outcome
from nvmtool.sched.plan import Plan, VmPlan, make_plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nvmtool.sched.facts import Facts, VmFacts
    from nvmtool.sched.model import ModelWorld


class PeerPolicy(ABC):
    """Looks, decides and tells the balloons; the host's part of the plan is nvmtool's, so that all are measured against one goal."""

    name: str

    def __init__(self, world: ModelWorld) -> None:
        self.world = world

    @abstractmethod
    def sizes(self, facts: Facts) -> Mapping[str, float]:
        """Return the memory that each VM is to have; left out where it is not told anything."""

    def once(self, _now: float) -> tuple[Plan, Outcome]:
        """Govern once."""
        facts = self.world.facts()
        sizes, plans = self.sizes(facts), []
        for vm in facts.vms:
            balloon = vm.memory_bytes - round(sizes.get(vm.name, current(vm)))
            if balloon != vm.balloon.size_bytes:
                self.world.set_balloon(vm.name, balloon)
                plans.append(told(vm, balloon))
        return Plan(make_plan(facts).host, tuple(plans)), Outcome(balloons_told=len(plans))


def current(vm: VmFacts) -> int:
    """Return the memory that a guest has."""
    return vm.memory_bytes - vm.balloon.size_bytes


def free_in(vm: VmFacts) -> int:
    """Return what is free in a guest."""
    return vm.estimate.classes.free if vm.estimate else 0


def told(vm: VmFacts, balloon: int) -> VmPlan:
    """Return a plan that tells a balloon something."""
    has, change = vm.memory_bytes - balloon, balloon - vm.balloon.size_bytes
    return VmPlan(vm.name, vm.estimate, vm.held_bytes, has, has, balloon, change, 0, 0, 0, balloon, "balloon", ("peer",))


class ProxmoxModel(PeerPolicy):
    """Proxmox VE's automatic ballooning."""

    name = "Proxmox VE"
    _STEP = 100 * MIB
    _SMALLEST = 10 * MIB

    def sizes(self, facts: Facts) -> Mapping[str, float]:
        """Return sizes that bring the host nearer to 80 % used."""
        wanted = facts.host.free_bytes - 0.2 * facts.host.total_bytes
        vms = [vm for vm in facts.vms if vm.minimum_bytes]
        relaxed = [vm for vm in vms if free_in(vm) > vm.minimum_bytes / 4]
        if abs(wanted) <= self._SMALLEST:
            return {}
        first = relaxed if wanted < 0 else [vm for vm in vms if vm not in relaxed]
        return self._moved(first, wanted) or self._moved(vms, wanted)

    def _moved(self, vms: list[VmFacts], wanted: float) -> dict[str, float]:
        """Return the VMs' sizes moved by `wanted` in all, each by at most a step."""
        sizes: dict[str, float] = {}
        rest = wanted
        while vms:
            beyond = sum(sizes.get(vm.name, current(vm)) - vm.minimum_bytes for vm in vms) + rest
            shares = sum(vm.shares for vm in vms)
            before = dict(sizes)
            for vm in vms:
                desired = min(max(vm.minimum_bytes + beyond * vm.shares / shares, vm.minimum_bytes), vm.memory_bytes)
                step = max(-self._STEP, min(self._STEP, desired - current(vm)))
                if step * wanted > 0:
                    sizes[vm.name] = current(vm) + step
            change = sum(size - before.get(name, current(_named(vms, name))) for name, size in sizes.items())
            if abs(change) < 1:
                break
            rest -= change
        return sizes


class MomModel(PeerPolicy):
    """The Memory Overcommitment Manager of oVirt."""

    name = "oVirt MOM"
    _PRESSURE, _CRITICAL, _GUEST_FREE, _STEP, _SMALLEST = 0.20, 0.05, 0.20, 0.05, 0.0025

    def sizes(self, facts: Facts) -> Mapping[str, float]:
        """Return sizes that leave guests what they use, and of the rest what the host can afford."""
        free = facts.host.free_bytes / facts.host.total_bytes
        found = {}
        for vm in facts.vms:
            has, used = current(vm), current(vm) - free_in(vm)
            if free < self._PRESSURE:
                share = free - 0.05 if free <= self._CRITICAL else self._GUEST_FREE * free / self._PRESSURE
                size = min(max(used + share * has, has * (1 - self._STEP), vm.minimum_bytes), has)
            else:
                size = min(max(has * (1 + self._STEP), used + self._GUEST_FREE * vm.memory_bytes), vm.memory_bytes)
            if abs(size - has) > self._SMALLEST * has:
                found[vm.name] = size
        return found


def _named(vms: list[VmFacts], name: str) -> VmFacts:
    return next(vm for vm in vms if vm.name == name)


PEERS: tuple[type[PeerPolicy], ...] = (ProxmoxModel, MomModel)
