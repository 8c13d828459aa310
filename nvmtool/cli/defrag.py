"""defrag: moving a swap file's pages together."""

from __future__ import annotations

import dataclasses
import os

import click

from ..swap.defrag import defragment, plan_defrag
from ..swap.swapfile import SwapFile
from ..text import count_of, human
from .options import dry_run_option, example, output_options, reservation_option
from .output import Output
from .params import SECONDS, SIZE

# A running VM's faults come first.
_NICENESS = 10


@click.command("defrag", epilog=example("nvmtool defrag vm1.swap", "nvmtool defrag vm1.swap --max-seconds 30 --json"))
@click.argument("file", type=click.Path())
@click.option("--max-seconds", type=SECONDS, help="Stop after so long; what was moved stays so.")
@click.option("--max-bytes", type=SIZE, help="Stop when so many bytes have moved; what was moved stays so.")
@reservation_option
@dry_run_option
@output_options
def defrag_command(
    file: str, max_seconds: float | None, max_bytes: int | None, reservation: str | None, dry_run: bool, out: Output
) -> None:
    """Move a swap file's pages together and give back what is empty.

    Pages leave the storage blocks of which the fewest slots are used, and fill the densest ones; empty blocks go back to the
    file system, or to the reservation.

    Works while the VM runs, or without it. It can be stopped or killed at any moment and run again. Exits with 0 also where a
    running VM or a budget left something to do, and says so.
    """
    if dry_run:
        with SwapFile.open(file) as swap:
            result = plan_defrag(swap)
    else:
        os.nice(_NICENESS)
        with out.progress() as progress:
            result = defragment(file, reservation=reservation, max_bytes=max_bytes, max_seconds=max_seconds, progress=progress)
    blocks = f"{count_of(result.blocks_before, 'storage block')} before, {result.blocks_after:,} after, {result.blocks_optimal:,} optimal"
    out.done(
        {"swap_file": file, "dry_run": dry_run, **dataclasses.asdict(result)},
        f"{file}: {'would move' if dry_run else 'moved'} {count_of(result.pages_moved, 'page')}, {blocks}, "
        f"{human(result.bytes_released)} given back, {result.seconds:.2f} s" + ("" if result.complete else "; not complete, run it again"),
    )
