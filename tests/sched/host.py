"""Facts for tests, in GiB."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from nvmtool.sched.facts import Balloon, Classes, Estimate, Facts, HostFacts, State, VmFacts
from nvmtool.sched.plan import Plan, VmPlan, make_plan
from nvmtool.sched.settings import Settings

GIB = 1 << 30
PAGE = 4096


def gib(size: float) -> int:
    """Return whole pages."""
    return round(size * GIB / PAGE) * PAGE


def classes(hot: float = 0, anon: float = 0, file: float = 0, free: float = 0) -> Classes:
    """Return classes; what is hot is active anonymous."""
    return Classes(active_anon=gib(hot), inactive_anon=gib(anon), inactive_file=gib(file), free=gib(free))


def vm(name: str, hot: float, anon: float = 0, file: float = 0, free: float = 0, **more: Any) -> VmFacts:
    """Return a VM that has just these; with a balloon that takes nothing unless `balloon` says otherwise (GiB)."""
    found = classes(hot, anon, file, free)
    balloon = more.pop("balloon", Balloon())
    balloon = balloon if isinstance(balloon, Balloon) else Balloon(size_bytes=gib(balloon))
    sizes = {f"{key}_bytes": gib(value) for key, value in more.items() if isinstance(value, float)}
    rest = {key: value for key, value in more.items() if not isinstance(value, float)}
    memory = {"memory_bytes": found.total_bytes + balloon.size_bytes} | {k: v for k, v in rest.items() if k == "memory_bytes"}
    rest = {key: value for key, value in rest.items() if key != "memory_bytes"}
    return VmFacts(name, **{"balloon": balloon, "estimate": Estimate.reported(found), **memory, **sizes, **rest})


def host(total: float, free: float, *vms: VmFacts, target: float | None = None, before: State | None = None, **more: Any) -> Facts:
    """Return a host with its VMs."""
    return Facts(HostFacts(gib(total), gib(free), free_target=target, state_before=before, **more), vms)


def planned(facts: Facts, **settings: Any) -> dict[str, VmPlan]:
    """Return the VMs' plans by name."""
    return {each.name: each for each in plan(facts, **settings).vms}


def plan(facts: Facts, **settings: Any) -> Plan:
    """Plan with settings that differ from the defaults; headroom 0, so that tables are easy to follow."""
    return make_plan(facts, Settings(**{"headroom": 0.0, **settings}))


sizes = st.integers(0, 4 * GIB // PAGE).map(lambda pages: pages * PAGE)


@st.composite
def vm_facts(draw: st.DrawFn, name: str) -> VmFacts:
    """Draw any VM whose facts hang together."""
    found = Classes(*(draw(sizes) for _ in range(6)))
    balloon = draw(sizes)
    memory = max(PAGE, found.total_bytes + balloon)
    swapped = draw(st.integers(0, found.total_bytes))
    reservation, minimum = draw(st.integers(0, memory)), draw(st.integers(0, memory))
    return VmFacts(
        name,
        memory,
        minimum,
        reservation,
        draw(st.none() | st.integers(reservation, memory)),
        draw(st.integers(1, 5000)),
        Balloon(draw(st.booleans()), balloon, draw(st.none() | st.integers(0, memory)), stalled_s=draw(st.sampled_from([0.0, 9.0]))),
        swapped,
        draw(st.none() | sizes),
        draw(sizes),
        draw(st.none() | st.integers(0, memory)),
        draw(st.none() | st.just(Estimate.reported(found))),
        draw(st.none() | st.just(1.0)),
        draw(st.none() | st.just(1.0)),
    )


@st.composite
def any_facts(draw: st.DrawFn) -> Facts:
    """Draw a host with some VMs, in any state."""
    vms = tuple(draw(vm_facts(f"vm{index}")) for index in range(draw(st.integers(0, 5))))
    held = sum(each.held_bytes for each in vms)
    free = draw(st.integers(0, max(GIB, held)))
    return Facts(
        HostFacts(
            max(PAGE, held + free),
            free,
            swap_room_bytes=draw(st.none() | sizes),
            free_target=draw(st.none() | st.sampled_from([0.1, 0.3, 0.9])),
            state_before=draw(st.none() | st.sampled_from(State)),
        ),
        vms,
    )
