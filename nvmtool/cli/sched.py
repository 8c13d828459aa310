"""sched plan, apply, watch: governing the memory of a host's VMs; `admit` and `replay` have files of their own."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import time
from typing import TYPE_CHECKING

import click

from ..errors import StorageError, UsageError
from ..sched.loop import govern
from ..sched.plan import make_plan
from ..sched.scenario import moment_facts, read_scenario
from ..sched.settings import with_terms
from ..stopping import stop_on_signals
from ..text import count_of, human
from .options import dry_run_option, example, output_options
from .output import Grid, Output, print_json
from .params import SECONDS
from .worlds import Choice, world_options

if TYPE_CHECKING:
    from ..sched.facts import Facts
    from ..sched.loop import Outcome
    from ..sched.plan import HostPlan, Plan, VmPlan
    from ..sched.settings import Settings

# name: the file here that holds NAME_command, loaded when the command is named
_ELSEWHERE = {"admit": "sched_admit", "replay": "sched_replay"}
_UNKNOWN = "?"
_HEADERS = ("VM", "in use", "anon", "file", "free", "holds", "entitled", "target", "balloon", "swapped", "technique", "reason")


class _SchedGroup(click.Group):
    """Loads the commands of other files when they are first asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names."""
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the command's file where it is not this one."""
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        command = getattr(importlib.import_module(f".{_ELSEWHERE[cmd_name]}", __package__), f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command


@click.group("sched", cls=_SchedGroup, no_args_is_help=False, epilog=example("nvmtool sched plan --host /srv/host1"))
def sched_command() -> None:
    """Share a host's memory out among its VMs.

    Reads what guests use their memory for, takes what is idle when the host is short, and gives it back when it is not: by balloons, or by
    swapping where a balloon cannot or should not.
    """


record_option = click.option("--record", type=click.Path(), metavar="FILE", help="Write what was seen to this new file, as a scenario.")
scenario_option = click.option("--scenario", type=click.Path(), metavar="FILE", help="Take a recorded or written moment for the host.")
at_option = click.option("--at", type=SECONDS, help="The moment of the scenario that holds then; its last one unless said.")


def facts_of_scenario(choice: Choice, scenario: str, at: float | None) -> tuple[Facts, Settings]:
    """Return the facts of a moment with the operator's terms, and the settings: the scenario's own where no option says otherwise."""
    if choice.names_a_world:
        raise UsageError("--scenario stands for a host; it does not go with --host or --qmp")
    recorded = read_scenario(scenario)
    moments = [each for each in recorded.moments if at is None or each.t <= at]
    if not moments:
        raise UsageError(f"{scenario}: begins at {recorded.moments[0].t:g} s, not at {at:g} s")
    return with_terms(moment_facts(moments[-1]), choice.terms), dataclasses.replace(recorded.settings, **choice.changes)


@sched_command.command(
    "plan",
    epilog=example(
        "nvmtool sched plan --host /srv/host1",
        "nvmtool sched plan --qmp web=/run/web.qmp --qmp db=/run/db.qmp --free-target 20%",
        "nvmtool sched plan --scenario bug.jsonl --json",
    ),
)
@world_options
@scenario_option
@at_option
@record_option
@output_options
def plan_command(choice: Choice, scenario: str | None, at: float | None, record: str | None, out: Output) -> None:
    """Say what to take from whom, by which means and why; change nothing.

    in use: unreclaimable and active; anon and file: the inactive ones; target: what the VM is to hold; balloon and swapped: what is to
    be in its balloon and swapped out then.
    """
    if scenario is None:
        with choice.governor(record=record) as governor:
            plan = governor.plan(time.monotonic())
    else:
        plan = make_plan(*facts_of_scenario(choice, scenario, at))
    out.result(plan.as_json(), *plan_parts(plan))


@sched_command.command(
    "apply",
    epilog=example("nvmtool sched apply --host /srv/host1", "nvmtool sched apply --qmp web=/run/web.qmp --every 5s --restore"),
)
@world_options
@click.option("--every", type=SECONDS, help="Go on, once in so many seconds, until SIGTERM or Ctrl-C.")
@click.option("--restore", is_flag=True, help="With --every: put the balloons back at the end.")
@record_option
@dry_run_option
@output_options
@click.pass_context
def apply_command(
    ctx: click.Context, choice: Choice, every: float | None, restore: bool, record: str | None, dry_run: bool, out: Output
) -> None:
    """Do what `sched plan` says, once or from now on.

    First what takes memory, then what gives it. Balloons are told what to hold and follow in their own time. At the end they stay as
    they are, unless --restore is given.

    With --every there is one line for each interval in which anything changes; with --json one object a line, for every interval. Exits
    with 7 when something could not be done to a VM; with --every it is told and tried again.
    """
    if every is None:
        if restore:
            raise UsageError("--restore needs --every: a single apply leaves the balloons as it sets them")
        _apply_once(ctx, choice, record, dry_run, out)
        return
    if dry_run:
        raise UsageError("--dry-run and --every do not go together; nvmtool sched watch shows plans as time goes on")
    with stop_on_signals() as stop, choice.governor(record=record) as governor:
        govern(governor, every_s=every, stop=stop, restore=restore, tell=lambda plan, outcome: _tell(out, plan, outcome))
        if not (out.quiet or out.as_json):
            click.echo(f"ended by {stop.reason}; balloons {'told to go back' if restore else 'stay as they are'}")


def _apply_once(ctx: click.Context, choice: Choice, record: str | None, dry_run: bool, out: Output) -> None:
    with choice.governor(record=record) as governor:
        if dry_run:
            plan = governor.plan(time.monotonic())
            out.result({**plan.as_json(), "dry_run": True}, *plan_parts(plan))
            return
        plan, outcome = governor.once(time.monotonic())
    out.result({**plan.as_json(), "dry_run": False, "outcome": dataclasses.asdict(outcome)}, *plan_parts(plan), _outcome_line(outcome))
    _tell_failures(outcome)
    if outcome.failures:
        ctx.exit(StorageError.exit_code)


@sched_command.command("watch", epilog=example("nvmtool sched watch --qmp web=/run/web.qmp --every 2s"))
@world_options
@click.option("--every", type=SECONDS, default="5s", help="Look once in so many seconds.")
@click.option("--times", type=click.IntRange(min=1), help="End after so many looks.")
@record_option
@output_options
def watch_command(choice: Choice, every: float, times: int | None, record: str | None, out: Output) -> None:
    """Show the VMs and what would be done about them, until Ctrl-C.

    Changes nothing. With --json one object a line.
    """
    with stop_on_signals() as stop, choice.governor(record=record) as governor:
        while not stop.reason and times != 0:
            now = time.monotonic()
            plan = governor.plan(now)
            if not out.as_json:
                click.clear()  # does nothing where there is no terminal
            out.result(plan.as_json(), *plan_parts(plan))
            sys.stdout.flush()
            times = None if times is None else times - 1
            if times != 0:
                stop.wait(now + every - time.monotonic())


def plan_parts(plan: Plan) -> list[str | Grid]:
    """Return a plan as text."""
    rows = [_vm_row(vm) for vm in plan.vms]
    doubts = [f"{doubt.vm}: {doubt.code}: {doubt.what}" for doubt in plan.doubts]
    return [_host_line(plan.host), Grid(_HEADERS, rows), *doubts]


def _host_line(host: HostPlan) -> str:
    line = f"host: state {host.state.label}, {human(host.free_bytes)} of {human(host.total_bytes)} free, to be {human(host.goal_bytes)}"
    parts = []
    if host.taken_bytes:
        parts.append(f"{human(host.taken_bytes)} to take")
    if host.given_bytes:
        parts.append(f"{human(host.given_bytes)} to give")
    if host.short_bytes:
        parts.append(f"{human(host.short_bytes)} that nobody can give")
    return f"{line}; {', '.join(parts) or 'nothing to do'}"


def _vm_row(vm: VmPlan) -> tuple[str, ...]:
    classes = [_UNKNOWN] * 4
    if vm.estimate is not None:
        found = vm.estimate.classes
        classes = [human(size) for size in (found.working_set_bytes, found.inactive_anon, found.inactive_file, found.free)]
    sizes = (vm.held_bytes, vm.entitlement_bytes, vm.target_bytes, vm.balloon_bytes, vm.swap_bytes)
    return (vm.name, *classes, *map(human, sizes), vm.technique, ", ".join(vm.reasons))


def _outcome_line(outcome: Outcome) -> str:
    parts = [f"{count_of(outcome.balloons_told, 'balloon')} told"]
    sizes = (("swapped out", outcome.swapped_out_bytes), ("swapped in", outcome.swapped_in_bytes), ("shared", outcome.shared_bytes))
    parts += [f"{human(size)} {what}" for what, size in sizes if size]
    if outcome.deferred:
        parts.append(f"{count_of(len(outcome.deferred), 'VM')} must wait for memory that others still give up")
    return ", ".join(parts)


def _tell(out: Output, plan: Plan, outcome: Outcome) -> None:
    """Tell of one interval of the daemon."""
    if out.as_json:
        print_json({"time": time.time(), **plan.as_json(), "outcome": dataclasses.asdict(outcome)})
    elif plan.changes_anything and not out.quiet:
        click.echo(f"{time.strftime('%H:%M:%S')} {_host_line(plan.host)}; {_outcome_line(outcome)}")
    _tell_failures(outcome)
    # Whoever reads a pipe wants to know now.
    sys.stdout.flush()


def _tell_failures(outcome: Outcome) -> None:
    for name, what in outcome.failures:
        click.echo(f"{name}: {what}", err=True)
