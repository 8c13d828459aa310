"""swap run: a running VM."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from ..errors import UsageError
from ..stopping import stop_on_signals
from ..swap.run import RunOptions, RunReport, run_vm
from ..swap.swapfile import SwapFile
from ..swap.workload import WORKLOADS
from ..text import count_of
from .checks import PROBLEMS_FOUND
from .options import example, output_options, reservation_option
from .output import Output
from .params import PERCENT, SECONDS, SIZE

INTERRUPTED = 130


@click.command(
    "run",
    epilog=example(
        "nvmtool swap run vm1.swap --resident 64M --workload churn --seconds 30 --verify",
        "nvmtool swap run vm1.swap --resident 64M --seconds 30 --stamps vm1.stamps",
        "nvmtool swap run vm1.swap --resident 64M --ops 0 --verify --stamps vm1.stamps",
    ),
)
@click.argument("file", type=click.Path())
@click.option("--resident", type=SIZE, required=True, help="Keep so much of the VM's memory in memory; the rest is in FILE.")
@click.option("--workload", type=click.Choice(WORKLOADS), default="uniform", help="Which page frames are touched; see above.")
@click.option("--ops", type=click.IntRange(min=0), help="End after so many accesses; 0 with --verify only verifies.")
@click.option("--seconds", type=SECONDS, help="End after so long.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="The same seed gives the same accesses.")
@click.option("--write-ratio", type=PERCENT, default="50%", help="This share of the accesses write.")
@click.option("--verify", is_flag=True, help="At the end read the whole memory back and compare every page.")
@click.option(
    "--stamps",
    type=click.Path(path_type=Path),
    metavar="S",
    help="Keep what each page must hold in this side file; made if absent.",
)
@reservation_option
@output_options
@click.pass_context
def run_command(
    ctx: click.Context,
    file: str,
    resident: int,
    workload: str,
    ops: int | None,
    seconds: float | None,
    seed: int,
    write_ratio: float,
    verify: bool,
    stamps: Path | None,
    reservation: str | None,
    out: Output,
) -> None:
    """Be a running VM: touch memory, swap in and out of FILE.

    There is no guest: the memory's pages are stamped with their frame and a version, and each page that is swapped in is compared.
    A defragmentation in another process is served meanwhile.

    It ends after --ops or --seconds, or on SIGTERM or Ctrl-C, and swaps all memory out then. Without --ops and --seconds it runs until
    a signal.

    uniform touches all page frames alike, zipf a few of them most of the time, sweep all in order, churn mostly a window that jumps.

    --stamps survives kill -9 (not the end of the host), so that a later run can tell whether each page is what it must be. Use
    the same stamps for every run on FILE from then on.

    Exits with 1 when a page was wrong, with 5 or 8 when pages could not be swapped out, with 6 while another VM runs FILE.
    """
    options = RunOptions(resident, workload, ops, seconds, seed, write_ratio, verify, stamps)
    with stop_on_signals() as stop:
        _require_another_file(file, stamps)
        with SwapFile.open(file, writable=True, reservation=reservation) as swap, out.progress() as progress:
            report = run_vm(swap, options, stop=stop, progress=progress)
    for line in report.findings:
        click.echo(f"{file}: {line}", err=True)
    _print(out, file, report)
    if report.failure is not None:
        raise report.failure
    if report.errors:
        ctx.exit(PROBLEMS_FOUND)
    if report.ended_by == "SIGINT" or (verify and not report.verified_all):
        ctx.exit(INTERRUPTED)


def _require_another_file(file: str, stamps: Path | None) -> None:
    if stamps is not None and stamps.exists() and Path(file).exists() and stamps.samefile(file):
        raise UsageError(f"{stamps}: is the swap file itself")


def _print(out: Output, file: str, report: RunReport) -> None:
    facts: dict[str, object] = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    facts["failure"] = str(report.failure) if report.failure is not None else None
    lines = [
        f"{file}: {count_of(report.ops, 'operation')} in {report.seconds:.2f} s, "
        f"{count_of(report.swap_ins, 'swap-in')}, {count_of(report.swap_outs, 'swap-out')}, ended by {report.ended_by}",
    ]
    if report.faults:
        lines.append(
            f"{count_of(report.faults, 'fault')} that waited: half within {report.faults_p50_us:,.0f} µs, 99 % within "
            f"{report.faults_p99_us:,.0f} µs, 99.9 % within {report.faults_p999_us:,.0f} µs"
        )
    lines.append(f"{count_of(report.verified_pages, 'page')} verified, {count_of(report.errors, 'error')}")
    if report.lost_in_memory:
        lines.append(f"{count_of(report.lost_in_memory, 'page')} went with a process that was killed")
    if report.still_in_memory:
        lines.append(f"{count_of(report.still_in_memory, 'page')} could not be swapped out and went with this process")
    out.done({"file": file, **facts}, *lines)
