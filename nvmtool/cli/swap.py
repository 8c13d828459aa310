"""swap create, info, check, delete; `swap map` and what runs long have files of their own."""

from __future__ import annotations

import importlib
from typing import Any

import click

from ..swap.check import check_swap
from ..swap.create import create_swap
from ..swap.delete import delete_swap
from ..swap.info import swap_info
from ..swap.swapfile import SwapFile
from ..text import count_of, human
from .checks import report_check
from .options import dry_run_option, example, output_options, repair_option, reservation_option
from .output import Output
from .params import SIZE

# name: the file here that holds NAME_command, loaded when the command is named
_ELSEWHERE = {"run": "swap_run", "map": "swap_map"}
_BAR_CELLS = 40

file_argument = click.argument("file", type=click.Path())


class _SwapGroup(click.Group):
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


@click.group("swap", cls=_SwapGroup, no_args_is_help=False, epilog=example("nvmtool swap create vm1.swap --memory 4G"))
def swap_command() -> None:
    """Create, run on, look at, check and delete swap files.

    A swap file holds the pages of one VM that are not in memory, and occupies what is swapped, no more. `nvmtool defrag` moves its pages
    together, `nvmtool reservation` sets storage aside for it.
    """


@swap_command.command(
    "create",
    epilog=example(
        "nvmtool swap create vm1.swap --memory 4G", "nvmtool swap create vm1.swap --memory 4G --reservation pool.rsv --promise 2G"
    ),
)
@file_argument
@click.option("--memory", type=SIZE, required=True, help="Size of the VM's memory; the file can hold all of it.")
@click.option("--block-size", type=SIZE, help="Size of a storage block, 64 KiB to 16 MiB; the reservation's or 1 MiB unless said.")
@click.option("--reservation", type=click.Path(), metavar="RSV", help="Take storage from this reservation file, not from the file system.")
@click.option("--promise", type=SIZE, help="The most that it may ever take from the reservation; the size of the memory unless said.")
@output_options
def create_command(file: str, memory: int, block_size: int | None, reservation: str | None, promise: int | None, out: Output) -> None:
    """Create a swap file for a VM.

    It is thin: storage comes with the pages that are swapped out, and goes with them. With --reservation the VM gets what it was
    promised also on a full file system; when not all promises could be kept, no file is created, and the exit code is 8.
    """
    create_swap(file, memory_bytes=memory, block_bytes=block_size, reservation=reservation, promise_bytes=promise)
    with SwapFile.open(file) as swap:
        facts = swap_info(swap)
    backed = f", backed by {facts['reservation']}" if facts["reservation"] else ""
    out.done(facts, f"{file}: created for {human(memory)} of memory, storage blocks of {human(facts['block_size'])}{backed}")


@swap_command.command("info", epilog=example("nvmtool swap info vm1.swap --json"))
@file_argument
@output_options
def info_command(file: str, out: Output) -> None:
    """Show what a swap file holds, and how densely.

    May be run beside its VM, and shows the last committed state.

    In JSON, density.deciles[i] counts the storage blocks of whose slots more than i tenths are used, and at most i + 1 tenths.
    """
    with SwapFile.open(file) as swap:
        facts = swap_info(swap)
    out.result(facts, *_info_lines(facts), *_density_lines(facts["density"]))


def _info_lines(facts: dict[str, Any]) -> list[str]:
    used, slots_per_block = facts["used_slots"], facts["slots_per_block"]
    page_bytes = facts["block_size"] // slots_per_block
    allocated = count_of(facts["blocks_allocated"], "block")
    return [
        f"swap file    {facts['swap_file']}",
        f"format       version {facts['format_version']}, uuid {facts['uuid']}",
        f"memory       {human(facts['memory_bytes'])}",
        f"swapped      {count_of(used, 'page')}, {human(used * page_bytes)}",
        f"storage      {allocated} of {human(facts['block_size'])} ({slots_per_block} slots); {facts['blocks_optimal']:,} would do",
        f"allocated    {human(facts['allocated_bytes'])}, {human(facts['metadata_bytes'])} of it metadata",
        f"reservation  {facts['reservation'] or 'none'}",
        f"in use by    {facts['in_use_by'] or 'nobody'}",
    ]


def _density_lines(density: dict[str, Any]) -> list[str]:
    deciles = density["deciles"]
    most = max(deciles)
    if not most:
        return []
    lines = ["", "storage blocks by the share of their slots that is used:"]
    for tenth, nblocks in enumerate(deciles):
        bar = "#" * -(-nblocks * _BAR_CELLS // most)
        lines.append(f"  to {tenth * 10 + 10:3}%  {nblocks:9,}  {bar}".rstrip())
    return lines


@swap_command.command("check", epilog=example("nvmtool swap check vm1.swap", "nvmtool swap check vm1.swap --repair"))
@file_argument
@repair_option
@reservation_option
@output_options
@click.pass_context
def check_command(ctx: click.Context, file: str, repair: bool, reservation: str | None, out: Output) -> None:
    """Check every structure of a swap file, and repair it.

    May be run beside its VM. Changes nothing without --repair. Exits with 1 when it leaves problems.
    """
    with out.progress() as progress:
        result = check_swap(file, repair=repair, reservation=reservation, progress=progress)
    note = f"storage was not compared: {result.not_compared}" if result.not_compared else ""
    report_check(ctx, out, {"swap_file": file}, result, repair=repair, note=note)


@swap_command.command("delete", epilog=example("nvmtool swap delete vm1.swap --dry-run"))
@file_argument
@reservation_option
@dry_run_option
@output_options
def delete_command(file: str, reservation: str | None, dry_run: bool, out: Output) -> None:
    """Delete a swap file and the pages in it.

    Storage from a reservation goes back there. Ends with exit code 6 while a VM runs the file.
    """
    result = delete_swap(file, reservation=reservation, dry_run=dry_run)
    facts = {"swap_file": file, "dry_run": dry_run, "bytes_released": result.bytes_released, "reservation": result.reservation}
    to = f", storage blocks to {result.reservation}" if result.reservation else ""
    out.done(facts, f"{file}: {'would be deleted' if dry_run else 'deleted'}; {human(result.bytes_released)} released{to}")
