"""vm run: a guest at work."""

from __future__ import annotations

import dataclasses

import click

from ..host.guest import GuestOptions, GuestReport, run_guest
from ..host.host import Host
from ..stopping import stop_on_signals
from ..swap.workload import WORKLOADS
from ..text import count_of
from .checks import PROBLEMS_FOUND
from .options import example, host_option, output_options
from .output import Output
from .params import PERCENT, SECONDS


@click.command("run", epilog=example("nvmtool vm run vm1 --workload zipf --seconds 30 --verify --host /srv/host"))
@click.argument("name")
@host_option
@click.option("--workload", type=click.Choice(WORKLOADS), default="uniform", help="Which page frames are touched; see swap run.")
@click.option("--ops", type=click.IntRange(min=0), help="End after so many accesses; 0 with --verify only verifies.")
@click.option("--seconds", type=SECONDS, help="End after so long.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="The same seed gives the same accesses.")
@click.option("--write-ratio", type=PERCENT, default="50%", help="This share of the accesses write.")
@click.option("--rate", type=click.IntRange(min=1), help="At most so many accesses a second.")
@click.option("--cache", type=PERCENT, default="0%", help="This share of memory is page cache, which a balloon may take.")
@click.option("--verify", is_flag=True, help="At the end compare every page that the guest knows.")
@output_options
@click.pass_context
def run_command(
    ctx: click.Context,
    name: str,
    host_path: str,
    workload: str,
    ops: int | None,
    seconds: float | None,
    seed: int,
    write_ratio: float,
    rate: int | None,
    cache: float,
    verify: bool,
    out: Output,
) -> None:
    """Be a guest at work on a running VM.

    It touches page frames, stamps those that it writes, and compares what it reads. Writing to a shared frame breaks the sharing; when
    machine memory runs short, NVM lends some, or pages are swapped out. The VM's memory stays when the guest ends, by kill -9 too.

    It has a balloon driver and reports its memory classes, for nvmtool sched --host.

    Other commands may have the VM meanwhile: the guest pauses for them, and ends when its VM is suspended or powered off.

    Exits with 1 when a page was wrong, with 5 or 8 when no machine frame could be had.
    """
    options = GuestOptions(workload, ops, seconds, seed, write_ratio, verify, cache, rate)
    with stop_on_signals() as stop, Host.open(host_path, writable=True) as host, out.progress() as progress:
        report = run_guest(host, name, options, stop=stop, progress=progress)
    for line in report.findings:
        click.echo(f"{name}: {line}", err=True)
    _print(out, host_path, name, report)
    if report.failure is not None:
        raise report.failure
    if report.errors:
        ctx.exit(PROBLEMS_FOUND)


def _print(out: Output, host_path: str, name: str, report: GuestReport) -> None:
    facts: dict[str, object] = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    facts["failure"] = str(report.failure) if report.failure is not None else None
    lines = [
        f"{name}: {count_of(report.ops, 'operation')} in {report.seconds:.2f} s, {count_of(report.swap_ins, 'swap-in')}, "
        f"{count_of(report.swap_outs, 'swap-out')}, {count_of(report.shares_broken, 'share')} broken, ended by {report.ended_by}",
        f"{count_of(report.verified_pages, 'page')} verified, {count_of(report.errors, 'error')}",
    ]
    if report.unknown_pages:
        lines.append(f"{count_of(report.unknown_pages, 'page')} not the guest's own, and not seen before: not verified")
    out.done({"host": host_path, "name": name, **facts}, *lines)
