"""purge, recall: moving blocks between NVM and the mass store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ..live.management import operate
from ..text import count_of, human
from .options import dry_run_option, example, image_argument, mass_option, output_options, state_name
from .output import Output
from .params import PERCENT, SECONDS, SIZE

max_bytes_option = click.option("--max-bytes", type=SIZE, help="Stop when so many bytes have moved.")


@click.command(
    "purge",
    epilog=example(
        "nvmtool purge disk.nvm --mode virtblock --dry-run",
        "nvmtool purge disk.nvm --mode pointer-elimination --free-target 25%",
    ),
)
@image_argument
@click.option(
    "--mode",
    type=click.Choice(["virtblock", "pointer-elimination"]),
    required=True,
    help="virtblock changes one pointer a block, pointer-elimination one for each page table that names it.",
)
@click.option("--region", metavar="NAME", help="Purge this region; all of them unless said.")
@click.option("--snapshot", "snapshots", metavar="NAME", multiple=True, help="Purge what this snapshot names; may be repeated.")
@max_bytes_option
@click.option("--max-seconds", type=SECONDS, help="Stop after so long.")
@click.option("--free-target", type=PERCENT, help="Stop when this share of the data area is free.")
@dry_run_option
@mass_option
@output_options
def purge_command(
    image: str,
    mode: str,
    region: str | None,
    snapshots: tuple[str, ...],
    max_bytes: int | None,
    max_seconds: float | None,
    free_target: float | None,
    dry_run: bool,
    mass: str | None,
    out: Output,
) -> None:
    """Move non-active blocks to the mass store.

    What snapshots read does not change. It can be stopped at any moment and run again.
    """
    arguments = {
        "mode": mode,
        "region": region,
        "snapshots": snapshots,
        "max_bytes": max_bytes,
        "max_seconds": max_seconds,
        "free_target": free_target,
    }
    with out.progress() as progress:
        facts = operate(image, "purge", arguments, mass=mass, progress=progress, dry_run=dry_run)
    out.done(
        {"image": image, **facts},
        f"{image}: {'would purge' if dry_run else 'purged'} {count_of(facts['blocks_purged'], 'block')} "
        f"({human(facts['bytes_purged'])}), {count_of(facts['pointers_updated'], 'pointer')} changed, "
        f"{count_of(facts['blocks_remaining'], 'non-active block')} left, {facts['seconds']:.2f} s",
        _free_line(facts),
    )


@click.command("recall", epilog=example("nvmtool recall disk.nvm --snapshot monday"))
@image_argument
@click.option("--region", metavar="NAME", help="Recall in this region; in all of them unless said.")
@click.option("--snapshot", metavar="NAME", help="Recall what this snapshot names; the running point's blocks unless said.")
@max_bytes_option
@dry_run_option
@mass_option
@output_options
def recall_command(
    image: str,
    region: str | None,
    snapshot: str | None,
    max_bytes: int | None,
    dry_run: bool,
    mass: str | None,
    out: Output,
) -> None:
    """Bring purged blocks back to NVM."""
    arguments = {"region": region, "snapshot": state_name(snapshot), "max_bytes": max_bytes}
    with out.progress() as progress:
        facts = operate(image, "recall", arguments, mass=mass, progress=progress, dry_run=dry_run)
    out.done(
        {"image": image, **facts},
        f"{image}: {'would recall' if dry_run else 'recalled'} {count_of(facts['blocks_recalled'], 'block')} "
        f"({human(facts['bytes_recalled'])}), {count_of(facts['pointers_updated'], 'pointer')} changed, "
        f"{facts['seconds']:.2f} s",
        _free_line(facts),
    )


def _free_line(facts: Mapping[str, Any]) -> str:
    return f"free in NVM: {human(facts['free_bytes_before'])} before, {human(facts['free_bytes_after'])} after"
