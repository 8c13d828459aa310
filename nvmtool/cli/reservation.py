"""reservation create, info, resize, check, forget: the blocks that swap files borrow."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from ..swap.reservation import create_reservation, forget_lender, reservation_info
from ..swap.reservation_check import check_reservation
from ..swap.reservation_resize import resize_reservation
from ..text import count_of, human
from .checks import PROBLEMS_FOUND
from .options import dry_run_option, example, output_options
from .output import Grid, Output
from .params import SIZE

reservation_argument = click.argument("reservation", type=click.Path())


@click.group("reservation", no_args_is_help=False, epilog=example("nvmtool reservation create pool.rsv --size 64G"))
def reservation_command() -> None:
    """Create, show, resize and check reservations of swap files.

    A reservation is a file that has all of its storage from the start. Its swap files borrow blocks from it and give them back, so that no
    VM meets a full file system. Make swap files for it with `nvmtool swap create FILE --reservation RESERVATION`.
    """


@reservation_command.command("create", epilog=example("nvmtool reservation create pool.rsv --size 64G"))
@reservation_argument
@click.option("--size", type=SIZE, required=True, help="How much its swap files may hold together.")
@click.option("--block-size", type=SIZE, default="1MiB", help="Size of a storage block, of its swap files too.")
@output_options
def create_command(reservation: str, size: int, block_size: int, out: Output) -> None:
    """Create a reservation, with all of its storage.

    It is written with zeros from end to end, which takes its time. Its swap files must be on the same file system. On XFS and btrfs the
    very blocks move to them (clone), elsewhere storage is allocated on one side and released on the other (allocate).
    """
    with out.progress() as progress:
        create_reservation(reservation, size, block_size, progress)
    facts = reservation_info(reservation)
    out.done(facts, f"{reservation}: created, {human(size)} in blocks of {human(block_size)}, which move by {facts['block_move']}")


@reservation_command.command("info", epilog=example("nvmtool reservation info pool.rsv --json"))
@reservation_argument
@output_options
def info_command(reservation: str, out: Output) -> None:
    """Show what is held, what is lent, and what was promised to whom."""
    facts = reservation_info(reservation)
    out.result(facts, *_info_lines(facts), _lender_grid(facts))


def _info_lines(facts: dict[str, Any]) -> list[str]:
    return [
        f"reservation  {facts['reservation']}",
        f"format       version {facts['format_version']}, uuid {facts['uuid']}, blocks of {human(facts['block_size'])}",
        f"size         {human(facts['size_bytes'])}",
        f"held         {human(facts['held_bytes'])}",
        f"lent         {human(facts['lent_bytes'])}",
        f"promised     {human(facts['promised_bytes'])}",
        f"allocated    {human(facts['allocated_bytes'])}",
        f"block move   {facts['block_move']}",
        "",
    ]


def _lender_grid(facts: dict[str, Any]) -> Grid | str:
    if not facts["lent_to"]:
        return "promised to no swap file yet; do it with: nvmtool swap create FILE --reservation"
    rows = [(each["swap_file"], human(each["bytes"]), human(each["promise_bytes"])) for each in facts["lent_to"]]
    return Grid(("swap file", "lent", "promised"), rows)


@reservation_command.command("resize", epilog=example("nvmtool reservation resize pool.rsv --size 128G"))
@reservation_argument
@click.option("--size", type=SIZE, required=True, help="The size it is to have; not below what is promised.")
@output_options
def resize_command(reservation: str, size: int, out: Output) -> None:
    """Let a reservation grow or shrink while its swap files are in use.

    Refuses (exit code 8) to become smaller than what is promised. Killed, it is whole, and the same command finishes.
    """
    with out.progress() as progress:
        change = resize_reservation(reservation, size, progress)
    line = f"{reservation}: {human(change['size_bytes_before'])} before, {human(size)} now"
    out.done({"reservation": reservation, **change}, line)


@reservation_command.command("check", epilog=example("nvmtool reservation check pool.rsv", "nvmtool reservation check pool.rsv --repair"))
@reservation_argument
@click.option("--repair", is_flag=True, help="Mend what is proven: leaks, blocks cut off on their way, swap files that are gone.")
@output_options
@click.pass_context
def check_command(ctx: click.Context, reservation: str, repair: bool, out: Output) -> None:
    """Check a reservation, and what its swap files say.

    Changes nothing without --repair. Exits with 1 when it leaves problems.
    """
    with out.progress() as progress:
        result = check_reservation(reservation, repair=repair, progress=progress)
    found = [f"{f.severity}: {f.structure} at {f.where}: {f.what}" for f in result.findings]
    summary = f"{reservation}: {'clean' if result.clean else 'not clean'}"
    if result.leaked_blocks:
        summary += f", {count_of(result.leaked_blocks, 'leaked block')}"
    if repair:
        summary += f", {count_of(result.repaired, 'repair')}"
    out.result({"reservation": reservation, **dataclasses.asdict(result)}, *found, summary)
    if not result.clean:
        ctx.exit(PROBLEMS_FOUND)


@reservation_command.command("forget", epilog=example("nvmtool reservation forget pool.rsv vm1.swap"))
@reservation_argument
@click.argument("swap_file", type=click.Path())
@dry_run_option
@output_options
def forget_command(reservation: str, swap_file: str, dry_run: bool, out: Output) -> None:
    """Take back the promise and the blocks of a swap file that is gone.

    For one that was removed with `rm` and not with `nvmtool swap delete`: its storage went with it, so the blocks are allocated anew.
    Refuses while the swap file is there.
    """
    change = forget_lender(reservation, swap_file, dry_run=dry_run)
    facts = {"reservation": reservation, "swap_file": swap_file, "dry_run": dry_run, **change}
    verb, blocks = "would forget" if dry_run else "forgot", count_of(change["blocks"], "block")
    out.done(facts, f"{reservation}: {verb} {swap_file}, {blocks} ({human(change['bytes'])}) allocated anew")
