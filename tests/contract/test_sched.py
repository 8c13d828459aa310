"""What the sched commands do, say and refuse: over scenarios, and over modelled guests in the place of QEMU's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from nvmtool.cli.group import group
from tests.sched.standin import module

from .conftest import Tool
from .test_exit_codes import fingerprint, opened_for_writing

SCENARIOS = Path(__file__).parent.parent.parent / "fixtures/scenarios"
ROOT = SCENARIOS.parent.parent
GIB = 1 << 30
VM_KEYS = {"name", "classes", "entitlement_bytes", "target_bytes", "balloon_bytes", "swap_bytes", "technique", "reason"}
REPLAY_KEYS = {
    *("intervals", "seconds", "reclaimed_bytes", "wanted_bytes", "hot_bytes", "guest_swap_bytes", "host_swap_bytes", "overshoot", "vms"),
}


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """A folder with A.jsonl, B.jsonl and C.jsonl; --qmp takes a scenario."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NVMTOOL_HOST", raising=False)
    monkeypatch.setitem(sys.modules, "nvmtool.live", ModuleType("nvmtool.live"))
    monkeypatch.setitem(sys.modules, "nvmtool.live.world", module())
    for name in "ABC":
        Path(f"{name}.jsonl").write_text((SCENARIOS / f"{name}.jsonl").read_text())
    return Tool()


def test_plan_says_what_and_why_and_changes_nothing(tool: Tool) -> None:
    before = fingerprint()
    with opened_for_writing() as opened:
        facts = tool.json("sched", "plan", "--scenario", "A.jsonl")
        text = tool.run("sched", "plan", "--scenario", "A.jsonl").stdout
    assert opened == []
    assert fingerprint() == before
    assert facts.keys() >= {"host", "vms"}
    assert facts["host"].keys() >= {"state", "free_bytes"}
    assert (facts["host"]["state"], facts["host"]["free_bytes"]) == ("high", 6 * GIB)
    assert all(each.keys() >= VM_KEYS for each in facts["vms"])
    cache = facts["vms"][0]
    assert (cache["technique"], cache["reason"], cache["swap_bytes"]) == ("balloon", "idle-memory", 0)
    assert cache["target_bytes"] == cache["entitlement_bytes"] == 8 * GIB - cache["balloon_bytes"]
    assert sum(cache["classes"].values()) == 8 * GIB
    assert "8.4 GiB to take" in text
    for each in facts["vms"]:
        assert each["name"] in text
        assert each["reason"] in text


def test_settings_and_terms_on_the_command_line(tool: Tool) -> None:
    balloons = lambda *args: {v["name"]: v["balloon_bytes"] for v in tool.json("sched", "plan", "--scenario", "A.jsonl", *args)["vms"]}  # noqa: E731
    assert set(balloons("--free-target", "8%").values()) == {0}
    assert balloons("--tax", "0%")["busy1"] > balloons()["busy1"] == 0
    assert balloons("--vm", "cache1:shares=100000,min=4G")["cache1"] < balloons()["cache1"]
    assert balloons("--vm", "cache1:min=7G")["cache1"] == GIB
    assert balloons("--vm", "cache1:min=7G", "--below-minimum") == balloons()
    assert balloons("--vm", "cache1:reservation=7G", "--below-minimum")["cache1"] == GIB
    assert balloons("--largest-step", "5%")["cache1"] <= 0.05 * 8 * GIB + 4096


def test_the_settings_of_a_scenario_hold_unless_an_option_says_otherwise(tool: Tool) -> None:
    line = json.loads(Path("A.jsonl").read_text())
    Path("own.jsonl").write_text(json.dumps({**line, "settings": {"free_target": 0.08}}) + "\n")
    assert tool.json("sched", "plan", "--scenario", "own.jsonl")["host"]["taken_bytes"] == 0
    assert tool.json("sched", "plan", "--scenario", "own.jsonl", "--free-target", "20%")["host"]["taken_bytes"] > 8 * GIB
    assert tool.json("sched", "replay", "own.jsonl")["intervals"] == 0


def test_at_chooses_the_moment(tool: Tool) -> None:
    with Path("A.jsonl").open("a") as file:
        file.write('{"t": 100, "host": {"free_target": 0}}\n')
    taken = [
        tool.json("sched", "plan", "--scenario", "A.jsonl", *at)["host"]["taken_bytes"] > 0 for at in ((), ("--at", "99"), ("--at", "100s"))
    ]
    assert taken == [False, True, False]
    Path("late.jsonl").write_text('{"t": 5, "host": {"total": 4096}}\n')
    tool.run("sched", "plan", "--scenario", "late.jsonl", "--at", "4", code=2)


def test_replay_counts_and_draws(tool: Tool) -> None:
    facts = tool.json("sched", "replay", "B.jsonl", "--svg", "B.svg")
    assert facts.keys() >= REPLAY_KEYS
    assert all(each.keys() >= {"name", "reclaimed_bytes", "hot_bytes", "guest_swap_bytes", "host_swap_bytes"} for each in facts["vms"])
    assert (facts["intervals"], facts["seconds"], facts["hot_bytes"], facts["guest_swap_bytes"], facts["overshoot"]) == (1, 10, 0, 0, 0)
    tree = ElementTree.parse("B.svg").getroot()
    assert "8.4 GiB of 8.4 GiB" in (tree[0].text or "")
    assert tool.run("sched", "replay", "B.jsonl", "--svg", "-").stdout == Path("B.svg").read_text()
    text = tool.run("sched", "replay", "B.jsonl").stdout
    assert "there after 1 interval" in text
    assert "idle1" in text


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        ("--memory 8G", 0, "fits-with-idle-memory"),
        ("--memory 8G --reservation 2G --classes active_anon=1G,free=3G", 0, "fits-with-idle-memory"),
        ("--memory 30G", 8, "working-sets"),
        ("--memory 60G --reservation 60G", 8, "guarantees"),
        ("--memory 8G --vm cache1:min=8G --vm cache2:min=8G --vm cache3:min=8G --vm cache4:min=8G", 8, "working-sets"),
    ],
)
def test_admit_answers_with_numbers_and_a_code(options: str, code: int, reason: str, tool: Tool) -> None:
    result = CliRunner().invoke(group, ["sched", "admit", "--scenario", "A.jsonl", *options.split(), "--json"])
    assert result.exit_code == code
    facts = json.loads(result.stdout)
    assert (facts["admitted"], facts["reason"]) == (code == 0, reason)
    assert facts["reclaim_bytes"] == sum(each["bytes"] for each in facts["reclaim"])
    text = CliRunner().invoke(group, ["sched", "admit", "--scenario", "A.jsonl", *options.split()])
    assert text.exit_code == code
    assert text.stdout.startswith("yes: " if code == 0 else "no: ")


@pytest.mark.parametrize(
    "command",
    [
        "plan",
        "plan --scenario A.jsonl --qmp a=b",
        "plan --host h --qmp a=b",
        "plan --qmp a",
        "plan --qmp =b",
        "plan --qmp a=A.jsonl --qmp a=B.jsonl",
        "plan --scenario A.jsonl --vm cache1",
        "plan --scenario A.jsonl --vm cache1:mem=5",
        "plan --scenario A.jsonl --vm cache1:min=lots",
        "plan --scenario A.jsonl --vm cache1:shares=0",
        "plan --scenario A.jsonl --vm nobody:shares=5",
        "plan --scenario A.jsonl --tax 100%",
        "plan --scenario A.jsonl --tax 75",
        "plan --scenario broken.jsonl",
        "apply --qmp a=A.jsonl --restore",
        "apply --qmp a=A.jsonl --every 5s --dry-run",
        "admit --scenario A.jsonl --memory 0",
        "admit --scenario A.jsonl --memory 1G --reservation 2G",
        "admit --scenario A.jsonl --memory 1G --classes hot=1G",
        "admit --scenario A.jsonl --memory 1G --classes free=1G,free=1G",
        "admit --scenario A.jsonl --memory 1G --classes free=2G",
        "replay broken.jsonl",
        "replay A.jsonl --svg - --json",
    ],
)
def test_bad_input_is_refused_in_one_line(command: str, tool: Tool) -> None:
    Path("broken.jsonl").write_text('{"t": 0}\n{"t":')
    before = fingerprint()
    tool.run("sched", *command.split(), code=2)
    assert fingerprint() == before


def test_files_that_are_not_there_or_in_the_way(tool: Tool) -> None:
    assert "never.jsonl" in tool.run("sched", "replay", "never.jsonl", code=7).stderr
    tool.run("sched", "replay", "A.jsonl", "--svg", "A.jsonl", code=8)
    tool.run("sched", "plan", "--qmp", "a=A.jsonl", "--record", "A.jsonl", code=9)


def test_apply_does_what_plan_says(tool: Tool) -> None:
    planned = tool.json("sched", "plan", "--qmp", "x=B.jsonl")
    dry = tool.json("sched", "apply", "--qmp", "x=B.jsonl", "--dry-run")
    done = tool.json("sched", "apply", "--qmp", "x=B.jsonl")
    assert planned["vms"] == dry["vms"] == done["vms"]
    assert done["outcome"]["balloons_told"] == 4
    assert done["outcome"]["swapped_out_bytes"] == sum(each["swap_change_bytes"] for each in done["vms"])
    assert "4 balloons told, 7.36 GiB swapped out" in tool.run("sched", "apply", "--qmp", "x=B.jsonl").stdout


def test_what_fails_for_one_vm_is_told_and_is_the_exit_code(tool: Tool) -> None:
    line = json.loads(Path("A.jsonl").read_text())
    line["vms"][0]["name"] = "mute"
    Path("mute.jsonl").write_text(json.dumps(line))
    result = CliRunner().invoke(group, ["sched", "apply", "--qmp", "x=mute.jsonl", "--json"])
    assert result.exit_code == 7
    assert "mute: mute: no answer in 5 s" in result.stderr
    assert json.loads(result.stdout)["outcome"]["balloons_told"] == 3


def test_watch_looks_again_and_changes_nothing(tool: Tool) -> None:
    looks = [
        json.loads(line)
        for line in tool.run("sched", "watch", "--qmp", "x=A.jsonl", "--every", "0s", "--times", "3", "--json").stdout.splitlines()
    ]
    assert len(looks) == 3
    assert looks[0] == looks[2]
    assert looks[0]["host"]["taken_bytes"] > 0


def test_a_recording_is_a_scenario(tool: Tool) -> None:
    planned = tool.json("sched", "plan", "--qmp", "x=B.jsonl", "--record", "seen.jsonl", "--tax", "50%")
    again = tool.json("sched", "plan", "--scenario", "seen.jsonl")
    assert planned == again
    assert tool.json("sched", "replay", "seen.jsonl")["intervals"] == 1


@pytest.fixture
def daemon(tool: Tool, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """`sched apply --every` on modelled guests, after its first interval."""
    command = [sys.executable, "-m", "tests.sched.standin", "sched", "apply", "--qmp", "x=A.jsonl", "--every", "3600s", *request.param]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    process.first = process.stdout.readline()  # type: ignore[attr-defined]
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("daemon", "left"), [([], 2150), (["--restore"], 0)], indirect=["daemon"])
def test_the_daemon_ends_in_order_and_leaves_balloons_unless_told(daemon: subprocess.Popen[str], left: int, number: signal.Signals) -> None:
    assert "8.4 GiB to take; 4 balloons told" in daemon.first  # type: ignore[attr-defined]
    started = time.monotonic()
    daemon.send_signal(number)
    out, err = daemon.communicate(timeout=30)
    assert daemon.returncode == 0, err
    assert time.monotonic() - started < 30
    assert f"ended by {number.name}" in out
    assert f"'cache1': {left}," in err


@pytest.mark.parametrize("daemon", [["--json"]], indirect=True)
def test_the_daemon_speaks_json_lines(daemon: subprocess.Popen[str]) -> None:
    facts = json.loads(daemon.first)  # type: ignore[attr-defined]
    assert facts.keys() >= {"time", "host", "vms", "outcome"}
    daemon.terminate()
    assert daemon.communicate(timeout=30)[0] == ""


def test_a_world_that_is_not_installed_is_named(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvmtool.live.world", None)
    assert "--qmp needs" in tool.run("sched", "plan", "--qmp", "x=A.jsonl", code=2).stderr


def test_planning_loads_neither_rich_nor_what_governs_qemu(tool: Tool) -> None:
    code = (
        "import sys\nfrom nvmtool.cli import main\n"
        "try: main(['sched', 'plan', '--scenario', 'A.jsonl', '--json'])\nexcept SystemExit: pass\n"
        "print(*{'rich', 'qemu', 'nvmtool.live', 'nvmtool.region', 'nvmtool.swap'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
