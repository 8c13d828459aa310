"""Replays: the published scenarios, guests that change, come and go, and that what is counted is what was taken."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.scenarios.make import HERE, SCENARIOS
from nvmtool.errors import NotFoundError, UsageError
from nvmtool.sched.facts import CLASS_NAMES, State
from nvmtool.sched.loop import Governor
from nvmtool.sched.model import ModelWorld
from nvmtool.sched.picture import LOOKS, replay_svg
from nvmtool.sched.replay import Replay, replay
from nvmtool.sched.scenario import Scenario, read_scenario
from nvmtool.sched.settings import Settings

from .host import GIB, PAGE, gib

SVG = "{http://www.w3.org/2000/svg}"


def scenario(*lines: dict[str, Any]) -> Scenario:
    return read_scenario("s", "\n".join(map(json.dumps, lines)))


def guest(name: str, hot: float, anon: float = 0, file: float = 0, free: float = 0, **more: Any) -> dict[str, Any]:
    classes = {"active_anon": gib(hot), "inactive_anon": gib(anon), "inactive_file": gib(file), "free": gib(free)}
    return {"name": name, "memory": sum(classes.values()), "classes": {**dict.fromkeys(CLASS_NAMES, 0), **classes}, **more}


def moment(t: float, total: float, *vms: dict[str, Any], own: float = 0, **host: Any) -> dict[str, Any]:
    return {"t": t, "host": {"total": gib(total), "own": gib(own), **host}, "vms": list(vms)}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_scenarios_are_what_their_script_makes(name: str) -> None:
    assert (HERE / f"{name}.jsonl").read_text() == "".join(json.dumps(line) + "\n" for line in SCENARIOS[name])


@pytest.mark.parametrize(("name", "swapped"), [("A", 0), ("B", 7.36)])
def test_a_and_b_get_all_in_one_interval_and_hurt_nobody(name: str, swapped: float) -> None:
    found = replay(read_scenario(HERE / f"{name}.jsonl"))
    assert (len(found.intervals), found.goal_intervals, found.seconds) == (1, 1, 10)
    assert found.wanted_bytes == found.reclaimed_bytes == pytest.approx(gib(8.4), abs=PAGE)
    assert (found.total("hot_bytes"), found.total("guest_swap_bytes"), found.overshoot) == (0, 0, 0)
    assert found.total("host_swap_bytes") == pytest.approx(gib(swapped), abs=64 * PAGE)
    assert all(totals.reclaimed_bytes == 0 for vm, totals in found.vms.items() if vm.startswith("busy"))


def test_c_takes_what_is_free_inside_and_swaps_nothing() -> None:
    found = replay(read_scenario(HERE / "C.jsonl"))
    assert found.intervals[0].state is State.SOFT
    assert found.reclaimed_bytes == found.wanted_bytes == pytest.approx(gib(1.6), abs=2 * PAGE)
    assert found.vms["idle"].balloon_bytes == found.reclaimed_bytes
    assert [found.total(f"{kind}_bytes") for kind in ("hot", "guest_swap", "host_swap")] == [0, 0, 0]


def test_c_swaps_nothing_below_hard_either() -> None:
    found = replay(scenario(moment(0, 60, *SCENARIOS["C"][0]["vms"], own=3.2)))
    assert found.intervals[0].state is State.HARD
    assert (found.vms["idle"].host_swap_bytes, found.goal_intervals) == (0, 1)


def test_json_has_what_scripts_rely_on() -> None:
    found = replay(read_scenario(HERE / "B.jsonl")).as_json()
    keys = {"reclaimed_bytes", "hot_bytes", "guest_swap_bytes", "host_swap_bytes"}
    assert found.keys() >= {"intervals", "seconds", "wanted_bytes", "overshoot", *keys}
    assert all(each.keys() >= {"name", *keys} for each in found["vms"])
    assert found["host_swap_bytes"] == sum(each["host_swap_bytes"] for each in found["vms"])
    json.dumps(found)


def test_a_guest_that_wakes_up_gets_its_memory_back() -> None:
    asleep = moment(0, 24, guest("a", 1, 0, 5, 2), guest("b", 1, 0, 5, 2), guest("c", 6, 0, 1, 1), free_target=0.2)
    awake = {"t": 60, "vms": [{"name": "a", "classes": {"active_anon": gib(6), "inactive_file": gib(1), "free": gib(1)}}]}
    found = replay(scenario(asleep, awake))
    by_time = {each.t: each for each in found.intervals}
    assert by_time[0].taken > 0
    assert by_time[60].given > 0, "at once: a guest that lacks memory does not wait for the cool-down"
    last = found.samples[-1].vms["a"]
    assert last["active_anon"] == gib(6)
    assert found.samples[-1].vms["b"]["ballooned"] > found.samples[5].vms["b"]["ballooned"], "from the other one's idle memory"
    assert found.total("hot_bytes") == found.vms["a"].hot_bytes == gib(6) - (8 * GIB - found.samples[5].vms["a"]["ballooned"])


def test_a_stuck_balloon_is_found_and_the_goal_reached_without_it() -> None:
    stuck = guest("stuck", 1, 2, 3, 2, balloon_rate=0)
    found = replay(scenario(moment(0, 20, stuck, guest("b", 1, 1, 4, 2), own=1, free_target=0.2)))
    assert found.goal_intervals == 2
    assert found.vms["stuck"].balloon_bytes == 0
    assert found.total("hot_bytes") == 0


def test_a_slow_balloon_is_waited_for_and_not_ordered_twice() -> None:
    slow = guest("slow", 1, 0, 5, 2, balloon_rate=50 << 20)
    found = replay(scenario(moment(0, 10, slow, own=1, free_target=0.3)))
    assert found.overshoot <= 0
    assert (found.goal_intervals, found.vms["slow"].balloon_bytes) == (5, pytest.approx(gib(2), abs=PAGE))


def test_a_guest_without_a_driver_is_swapped_and_one_that_says_nothing_left_alone() -> None:
    mute = {"name": "mute", "memory": 8 * GIB}
    found = replay(scenario(moment(0, 20, guest("none", 1, 4, 2, 1, balloon_driver=False), mute, own=1, free_target=0.3)))
    assert found.vms["none"].host_swap_bytes == found.reclaimed_bytes == pytest.approx(gib(3), abs=PAGE)
    assert found.vms["mute"].reclaimed_bytes == 0
    assert found.vms["none"].hot_bytes == 0


def test_vms_come_and_go_and_stay_counted() -> None:
    first = moment(0, 20, guest("a", 1, 0, 5, 2), guest("b", 1, 0, 5, 2), own=1, free_target=0.3)
    found = replay(scenario(first, {"t": 30, "vms": [{"name": "a", "gone": True}]}, {"t": 60, "vms": [guest("c", 1, 0, 5, 2)]}))
    assert found.vms.keys() == {"a", "b", "c"}
    assert found.vms["a"].reclaimed_bytes > 0
    assert "a" not in found.samples[-1].vms
    ElementTree.fromstring(replay_svg(found, "t"))


def test_a_recording_of_a_governed_host_can_be_replayed() -> None:
    # Its balloon had 3 of its 5 GiB already; its classes are what is left.
    recorded = {**guest("a", 1, 1, 2, 1), "memory": 8 * GIB, "balloon": 3 * GIB, "swapped": GIB}
    world = ModelWorld(scenario({**moment(0, 10, recorded), "host": {"total": 10 * GIB, "free": 5 * GIB}}).moments[0])
    assert (world.free_bytes, world.guests["a"].held_bytes) == (5 * GIB, 4 * GIB)
    assert world.facts().vms[0].estimate.classes.total_bytes == 5 * GIB  # type: ignore[union-attr]
    world.set_balloon("a", 0)
    world.pass_time(10)
    assert world.guests["a"].actual.free == 4 * GIB
    with pytest.raises(NotFoundError):
        world.swap_out("b", 1)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Draw a host with guests that change now and then."""
    size = st.integers(0, 4).map(lambda gibs: gibs * GIB)
    names = ["a", "b", "c"]
    driver = {name: draw(st.booleans()) for name in names}
    lines = []
    for t in (0, 20, 50):
        vms = []
        for name in names:
            classes = {each: draw(size) for each in CLASS_NAMES}
            vm = {"name": name, "memory": 24 * GIB, "min": 2 * GIB, "classes": classes, "balloon_driver": driver[name]}
            vms.append(vm | ({"classes": None} if draw(st.booleans()) and t else {}))
        lines.append(moment(t, 76, *vms, own=draw(st.integers(0, 3)), free_target=draw(st.sampled_from([None, 0.1, 0.3]))))
    return scenario(*lines)


@settings(deadline=None)
@given(scenarios())
def test_memory_is_conserved_and_the_policy_comes_to_rest(drawn: Scenario) -> None:
    found = replay(drawn, Settings(cool_down_s=5))
    # A host below hard with nobody idle takes pages that come back, for ever.
    assert len(found.intervals) < 60 or found.intervals[-1].state >= State.HARD
    for sample in found.samples:
        for parts in sample.vms.values():
            assert sum(parts.values()) == 24 * GIB
            assert min(parts.values()) >= 0


@settings(deadline=None)
@given(scenarios())
def test_a_host_that_has_enough_never_hurts_anyone(drawn: Scenario) -> None:
    # Only what the policy does counts: a guest that needs more than it has left is hurt by its own change.
    world = ModelWorld(drawn.moments[0])
    governor = Governor(world, Settings())
    governor.once(0.0)
    world.pass_time(10)
    if world.facts().host.free_bytes >= 0.04 * world.facts().host.total_bytes and drawn.moments[0].host["own"] == 0:
        assert sum(each.toll.hot_bytes for each in world.guests.values()) == 0


def test_endless_gaps_are_refused() -> None:
    with pytest.raises(UsageError, match="interval_s"):
        replay(scenario(moment(0, 10, guest("a", 1)), {"t": 1e9}))


def test_the_picture_shows_every_vm_and_every_kind() -> None:
    found = replay(read_scenario(HERE / "B.jsonl"))
    tree = ElementTree.fromstring(replay_svg(found, "<B> & more"))
    assert tree.findtext(SVG + "title") == "<B> & more"
    texts = {element.text for element in tree.iter(SVG + "text")}
    assert texts >= {*LOOKS, *found.vms, "host, free", "0 s", "10 s", "14.4 GiB"}
    assert {each.get("fill") for each in tree.iter(SVG + "polygon")} >= {look.fill for look in LOOKS.values()}
    titles = {element.text for element in tree.iter(SVG + "title")}
    assert any("idle1" in (text or "") and "swapped 1.84 GiB" in (text or "") for text in titles)


def test_of_many_vms_those_that_gave_most_are_drawn() -> None:
    vms = [guest(f"vm{index}", 1, 0, 5 if index >= 60 else 0, 2) for index in range(100)]
    held = sum(each["memory"] for each in vms) / GIB
    found: Replay = replay(scenario(moment(0, held * 1.05, *vms, free_target=0.2)))
    tree = ElementTree.fromstring(replay_svg(found, "t"))
    texts = [element.text or "" for element in tree.iter(SVG + "text")]
    assert "vm99" in texts
    assert "vm0" not in texts
    assert any("60 VMs" in text for text in texts)
