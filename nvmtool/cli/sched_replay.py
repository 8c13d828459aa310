"""sched replay: the policy on modelled guests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import RefusedError
from ..media.stream import STREAM
from ..sched.picture import replay_svg
from ..sched.replay import replay
from ..sched.scenario import read_scenario
from ..text import count_of, human
from .options import example, output_options, svg_option
from .output import Grid, Output
from .pictures import require_one_stdout, write_svg
from .worlds import policy_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..sched.replay import Interval, Replay

_STEPS = ("seconds", "state", "free before", "after", "wanted", "taken", "given", "swapped out", "in use taken")
_VMS = ("VM", "reclaimed", "in use", "guest swapped", "host swapped", "came back", "balloon", "swapped now")
_MOST_STEPS = 40


@click.command("replay", epilog=example("nvmtool sched replay fixtures/scenarios/A.jsonl --svg A.svg"))
@click.argument("scenario", type=click.Path())
@svg_option
@policy_options
@output_options
def replay_command(scenario: str, svg: str | None, changes: Mapping[str, Any], out: Output) -> None:
    """Run the policy over a recorded or written scenario.

    The guests are modelled: a balloon takes free pages, then inactive file, then inactive anonymous ones, which the guest must swap itself,
    then pages in use. The replay goes through all moments of the scenario, and on until the policy comes to rest.

    Settings of the scenario hold where no option says otherwise.
    """
    require_one_stdout(svg, out)
    if svg is not None and svg != STREAM and Path(svg).exists() and Path(svg).samefile(scenario):
        raise RefusedError(f"{svg}: is the scenario itself")
    read = read_scenario(scenario)
    found = replay(read, dataclasses.replace(read.settings, **changes))
    if svg is not None:
        write_svg(svg, replay_svg(found, _summary(scenario, found)))
    if svg != STREAM:
        out.result({"scenario": scenario, **found.as_json()}, *_parts(scenario, found))


def _summary(scenario: str, found: Replay) -> str:
    wanted = f"{human(found.reclaimed_bytes)} of {human(found.wanted_bytes)} reclaimed"
    reached = "never" if found.goal_intervals is None else f"after {count_of(found.goal_intervals, 'interval')}, {found.goal_seconds:g} s"
    if not found.wanted_bytes:
        return f"{scenario}: nothing was wanted"
    return f"{scenario}: {wanted}; there {reached}"


def _parts(scenario: str, found: Replay) -> list[str | Grid]:
    steps = found.intervals
    shown = steps if len(steps) <= _MOST_STEPS else [*steps[: _MOST_STEPS - 1], steps[-1]]
    rows = [_step_row(each) for each in shown]
    vms = [(name, *(human(size) for size in dataclasses.astuple(vm))) for name, vm in found.vms.items()]
    sums = ("hot_bytes", "guest_swap_bytes", "host_swap_bytes")
    hot, guest, host = (human(found.total(name)) for name in sums)
    left_out = [f"({len(steps) - len(shown):,} intervals before the last are left out; --json has all)"] if len(shown) < len(steps) else []
    doubts = [f"{vm}: {code}: {what}" for (vm, code), what in found.doubts.items()]
    return [
        _summary(scenario, found),
        f"{hot} in use taken, {guest} swapped by guests, {host} swapped by the host, overshoot {found.overshoot:.1%}",
        "",
        Grid(_STEPS, rows, nleft=2),
        *left_out,
        "",
        Grid(_VMS, vms),
        *doubts,
    ]


def _step_row(step: Interval) -> tuple[str, ...]:
    sizes = (step.free_before, step.free_after, step.wanted, step.taken, step.given, step.swapped_out, step.hot)
    return (f"{step.t:g}", step.state.label, *(human(max(0, size)) for size in sizes))
