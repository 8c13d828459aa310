"""sched admit: whether one more VM fits."""

from __future__ import annotations

import time

import click

from ..errors import RefusedError, UsageError
from ..sched.admission import ADMISSION_REASONS, Admission, Newcomer, admit
from ..sched.facts import CLASS_NAMES, Classes
from ..text import human
from .options import example, output_options
from .output import Grid, Output
from .params import SIZE
from .sched import at_option, facts_of_scenario, scenario_option
from .worlds import Choice, world_options


@click.command(
    "admit",
    epilog=example(
        "nvmtool sched admit --host /srv/host1 --memory 8G --reservation 2G",
        "nvmtool sched admit --scenario now.jsonl --memory 8G --classes active_anon=3G,inactive_file=2G",
    ),
)
@click.option("--memory", type=SIZE, required=True, help="Memory of the VM that is to be started.")
@click.option("--reservation", type=SIZE, default="0", help="What of it must be guaranteed.")
@click.option("--classes", metavar="CLASS=SIZE,...", help="What it is expected to do with its memory; use all of it unless said.")
@world_options
@scenario_option
@at_option
@output_options
@click.pass_context
def admit_command(
    ctx: click.Context,
    memory: int,
    reservation: int,
    classes: str | None,
    choice: Choice,
    scenario: str | None,
    at: float | None,
    out: Output,
) -> None:
    """Say whether one more VM fits without hurting the others.

    It fits when its reservation can be guaranteed beside the others', and when what it will use is free or idle elsewhere. Exits with 8
    when it does not. Changes nothing.
    """
    newcomer = Newcomer(memory, reservation, None if classes is None else _classes(classes))
    if scenario is not None:
        facts, settings = facts_of_scenario(choice, scenario, at)
    else:
        with choice.governor() as governor:
            facts, settings = governor.look(time.monotonic()), choice.settings
    answer = admit(facts, newcomer, settings)
    out.result(answer.as_json(), *_parts(answer))
    if not answer.admitted:
        ctx.exit(RefusedError.exit_code)


def _classes(text: str) -> Classes:
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in CLASS_NAMES or name in sizes:
            raise UsageError(f"--classes {text}: write CLASS=SIZE,... with {', '.join(CLASS_NAMES)}, each once")
        sizes[name] = SIZE.convert(value, None, None)
    return Classes(**sizes)


def _parts(answer: Admission) -> list[str | Grid]:
    lines: list[str | Grid] = [
        f"{'yes' if answer.admitted else 'no'}: {ADMISSION_REASONS[answer.reason]} ({answer.reason})",
        f"needs       {human(answer.need_bytes)}",
        f"free        {human(answer.free_bytes)}; {human(answer.goal_bytes)} are to stay free",
        f"idle taken  {human(answer.reclaim_bytes)}",
        f"missing     {human(answer.short_bytes)}",
        f"guaranteed  {human(answer.guaranteed_bytes)} with it, of {human(answer.capacity_bytes)}",
    ]
    if answer.reclaim or answer.suffering:
        suffering = dict(answer.suffering)
        idle = dict(answer.reclaim)
        names = dict.fromkeys([*idle, *suffering])
        lines += ["", Grid(("VM", "idle taken", "working set"), [(n, human(idle.get(n, 0)), human(suffering.get(n, 0))) for n in names])]
    return lines
