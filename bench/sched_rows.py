"""The rows about the memory scheduler. Its peers are models of their published policies (peer_policies.py), on the same modelled guests."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import GIB, REPOSITORY, Row, interleaved, seconds
from peer_policies import PEERS

from nvmtool.sched.facts import Classes, Estimate, Facts, HostFacts, VmFacts
from nvmtool.sched.model import ModelWorld
from nvmtool.sched.plan import make_plan
from nvmtool.sched.replay import Replay, replay, replay_policy
from nvmtool.sched.scenario import Scenario, read_scenario

SCENARIOS = REPOSITORY / "fixtures/scenarios"
PLAN_SECONDS = 0.050


class SchedRows:
    """One run; nothing is kept in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def scenario_a(self) -> Row:
        """Reclaim 8.4 GiB where half of the VMs have much file cache."""
        return self._compared("A", "reclaim 8.4 GiB, cache-heavy and busy VMs: ours / models of peers")

    def scenario_b(self) -> Row:
        """Reclaim 8.4 GiB where half of the VMs have anonymous memory that nobody uses."""
        return self._compared("B", "reclaim 8.4 GiB, idle-anonymous and busy VMs: ours / models of peers")

    def scenario_c(self) -> Row:
        """Reclaim from an idle VM with free memory inside."""
        found = replay(read_scenario(SCENARIOS / "C.jsonl"))
        met = found.reclaimed_bytes >= found.wanted_bytes > 0 and not found.total("host_swap_bytes") and not found.total("guest_swap_bytes")
        work = f"idle VM, 4.7 GiB free inside, {found.wanted_bytes / GIB:.2f} GiB wanted: balloon, nothing swapped"
        return _row(work, found.goal_seconds, None, "0 swapped", met, _told(found))

    def _compared(self, name: str, work: str) -> Row:
        scenario = read_scenario(SCENARIOS / f"{name}.jsonl")
        ours = replay(scenario)
        peers = {peer.name: _replay_peer(scenario, peer) for peer in PEERS}
        met = (
            ours.goal_intervals == 1
            and ours.reclaimed_bytes >= ours.wanted_bytes
            and not ours.total("hot_bytes")
            and not ours.total("guest_swap_bytes")
            and ours.overshoot <= 0.05
        )
        notes = [f"ours: {_told(ours)}", *(f"model of {peer}: {_told(found)}" for peer, found in peers.items())]
        return _row(work, ours.goal_seconds, peers[PEERS[0].name].goal_seconds, "1 interval, 0 hot", met, "; ".join(notes))

    def plan_1000(self) -> Row:
        """Plan for 1,000 VMs of which each is another."""
        facts = _many(1000)
        make_plan(facts)
        mine, _ = interleaved(lambda: seconds(lambda: make_plan(facts)), None)
        return _row("plan for 1,000 VMs", mine, None, f"<= {PLAN_SECONDS} s", mine <= PLAN_SECONDS, f"{mine * 1000:.1f} ms")


def _replay_peer(scenario: Scenario, peer: Callable[[ModelWorld], Any]) -> Replay:
    world = ModelWorld(scenario.moments[0])
    return replay_policy(scenario, world, peer(world))


def _told(found: Replay) -> str:
    reached = "never there" if found.goal_seconds is None else f"{found.goal_seconds:g} s"
    parts = {name: found.total(f"{name}_bytes") / GIB for name in ("hot", "guest_swap", "host_swap")}
    sizes = ", ".join(f"{size:.2f} {name.replace('_', ' ')}" for name, size in parts.items())
    return f"{reached}, {found.reclaimed_bytes / GIB:.2f} of {found.wanted_bytes / GIB:.2f} GiB, {sizes}, overshoot {found.overshoot:.1%}"


def _row(work: str, ours: float | None, peer: float | None, target: str, met: bool, note: str) -> Row:
    ratio = peer / ours if ours and peer else None
    return {"work": work, "ours_s": ours, "peer_s": peer, "ratio": ratio, "target": target, "met": met, "note": note}


def _many(count: int) -> Facts:
    """Return a short host with VMs of all kinds."""
    rng = random.Random(1)
    vms = []
    for index in range(count):
        memory = rng.choice([2, 4, 8, 16]) * GIB
        cuts = sorted(rng.randrange(memory) for _ in range(5))
        parts = [high - low for low, high in zip([0, *cuts], [*cuts, memory], strict=True)]
        vms.append(
            VmFacts(
                f"vm{index}", memory, memory // 8, memory // 16, shares=rng.randrange(1, 4000), estimate=Estimate.reported(Classes(*parts))
            )
        )
    held = sum(vm.held_bytes for vm in vms)
    return Facts(HostFacts(held * 100 // 95, held * 5 // 95, free_target=0.2), tuple(vms))


ROWS: dict[str, Callable[[SchedRows], Row]] = {
    "sched-A": SchedRows.scenario_a,
    "sched-B": SchedRows.scenario_b,
    "sched-C": SchedRows.scenario_c,
    "plan-1000": SchedRows.plan_1000,
}
