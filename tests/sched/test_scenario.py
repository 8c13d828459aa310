"""Scenarios: what a line may leave out, what is refused with its line and key, and that a recording plans alike."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from nvmtool.errors import ExistsError, UsageError
from nvmtool.sched.facts import Facts
from nvmtool.sched.plan import make_plan
from nvmtool.sched.recorder import Recorder
from nvmtool.sched.scenario import moment_facts, read_scenario, scenario_line
from nvmtool.sched.settings import Settings

from .host import GIB, any_facts, host, vm

FIRST = {
    "t": 0,
    "host": {"total": 100, "own": 10},
    "vms": [{"name": "a", "memory": 40, "shares": 5, "classes": {"free": 10, "active_anon": 30}}],
}


def read(*lines: Any) -> Any:
    return read_scenario("s.jsonl", "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))


def test_what_a_line_leaves_out_stays_as_it_was() -> None:
    second = {"t": 5, "vms": [{"name": "a", "classes": {"free": 0, "inactive_file": 10}}, {"name": "b", "memory": 20}]}
    third = {"t": 5, "host": {"free_target": 0.5}, "vms": [{"name": "b", "gone": True}]}
    found = read(FIRST, "", second, third)
    assert [moment.t for moment in found.moments] == [0, 5, 5]
    first, middle, last = (moment_facts(moment) for moment in found.moments)
    assert [each.name for each in middle.vms] == ["a", "b"]
    a = last.vms[0]
    assert [each.name for each in last.vms] == ["a"]
    assert (a.memory_bytes, a.shares) == (40, 5)
    assert a.estimate is not None
    assert a.estimate.classes.as_dict() == {**dict.fromkeys(a.estimate.classes.as_dict(), 0), "active_anon": 30, "inactive_file": 10}
    assert (last.host.total_bytes, last.host.own_bytes, last.host.free_target) == (100, 10, 0.5)
    assert (first.host.free_target, first.host.free_bytes, middle.host.free_bytes) == (None, 50, 30)
    assert (found.interval_s, found.settings) == (10, Settings())


def test_the_first_line_says_how_it_is_replayed() -> None:
    found = read({**FIRST, "interval_s": 2.5, "settings": {"tax": 0.5, "guest_swaps": True, "free_target": None}})
    assert (found.interval_s, found.settings) == (2.5, Settings(tax=0.5, guest_swaps=True))


def vm_line(**more: Any) -> dict[str, Any]:
    return {**FIRST, "vms": [{"name": "a", "memory": 40, **more}]}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "no moment"),
        (["{"], "line 1: not JSON"),
        (["[" * 100_000], "line 1: not JSON"),
        (["[]"], "line 1: the line: not an object"),
        ([FIRST, "7"], "line 2: the line: not an object"),
        ([{**FIRST, "t": None}], "line 1: t: None"),
        ([{**FIRST, "t": -1}], "line 1: t: -1"),
        ([{**FIRST, "t": True}], "line 1: t: True"),
        (['{"t": NaN}'], "line 1: t: nan"),
        ([{**FIRST, "t": 5}, {"t": 4}], "line 2: t: 4 is not a number from 5"),
        ([{**FIRST, "typo": 1}], "typo: no such key"),
        ([{**FIRST, "host": {"total": 0}}], "host.total"),
        ([{"t": 0, "vms": []}], "host.total"),
        ([{**FIRST, "host": {"total": 1.5}}], "host.total: 1.5"),
        ([{**FIRST, "host": {"total": "64G"}}], "host.total: '64G' is not a number of bytes"),
        ([{**FIRST, "host": {"total": 10, "free_target": "x"}}], "host.free_target"),
        ([{**FIRST, "vms": {}}], "vms: not a list"),
        ([{**FIRST, "vms": [7]}], r"vms\[0\]: not an object"),
        ([{**FIRST, "vms": [{"memory": 40}]}], r"vms\[0\].name"),
        ([{**FIRST, "vms": [{"name": "a"}]}], "a needs memory"),
        ([vm_line(share=1)], r"vms\[0\].share: no such key"),
        ([vm_line(shares=None)], r"vms\[0\].shares: None"),
        ([vm_line(min=True)], r"vms\[0\].min: True"),
        ([vm_line(balloon_driver=1)], r"vms\[0\].balloon_driver"),
        ([vm_line(classes=[])], r"vms\[0\].classes: not an object"),
        ([vm_line(classes={"hot": 1})], r"vms\[0\].classes.hot: no such key"),
        ([vm_line(classes={"free": None})], r"vms\[0\].classes.free: None"),
        ([vm_line(source=1)], r"vms\[0\].source"),
        ([{**FIRST, "interval_s": 0}], "interval_s: 0"),
        ([FIRST, {"t": 1, "interval_s": 5}], "first line"),
        ([{**FIRST, "settings": {"tax": "75%"}}], "settings.tax"),
        ([{**FIRST, "settings": {"tax": True}}], "settings.tax"),
        ([{**FIRST, "settings": {"tax": 2}}], "settings: tax"),
        ([{**FIRST, "settings": {"taxes": 1}}], "settings.taxes: no such key"),
    ],
)
def test_what_is_no_scenario_is_refused_with_line_and_key(lines: list[Any], said: str) -> None:
    with pytest.raises(UsageError, match="s.jsonl: .*" + said):
        read(*lines)


@settings(deadline=None)
@given(any_facts())
def test_recorded_facts_plan_alike(facts: Facts) -> None:
    # What only the past tells is not in a recording of one moment.
    bare = dataclasses.replace(facts, host=dataclasses.replace(facts.host, state_before=None))
    vms = tuple(
        dataclasses.replace(each, since_shrink_s=None, since_grow_s=None, balloon=dataclasses.replace(each.balloon, stalled_s=0.0))
        for each in bare.vms
    )
    bare = dataclasses.replace(bare, vms=vms)
    settings = Settings(tax=0.3)
    found = read_scenario("s", scenario_line(bare, 0, settings))
    assert moment_facts(found.moments[0]) == bare
    assert make_plan(moment_facts(found.moments[0]), found.settings) == make_plan(bare, settings)


def test_a_recorder_writes_a_scenario_and_never_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "now.jsonl"
    facts = host(64, 10, vm("a", 1, 2, 3, 2), target=0.2)
    recorder = Recorder(path, Settings(tax=0.5))
    recorder.add(facts, 0.0)
    recorder.add(facts, 1e9)
    recorder.close()
    found = read_scenario(path)
    assert (len(found.moments), found.settings.tax) == (2, 0.5)
    assert moment_facts(found.moments[1]) == facts
    with pytest.raises(ExistsError):
        Recorder(path, Settings())
    assert (facts.host.total_bytes, len(path.read_text().splitlines())) == (64 * GIB, 2)
