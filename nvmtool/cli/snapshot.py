"""snapshot create, list, delete, revert, diff."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import click

from ..live.management import operate
from ..region.device import Device
from ..region.snapshots import diff_states, list_snapshots
from ..text import human
from .options import (
    complete_snapshots,
    dry_run_option,
    example,
    image_argument,
    mass_option,
    output_options,
    region_option,
    state_name,
)
from .output import Grid, Output, change_line, print_json_rows

new_names_argument = click.argument("names", metavar="NAME...", nargs=-1, required=True)
names_argument = click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_snapshots)


@click.group("snapshot", no_args_is_help=False, epilog=example("nvmtool snapshot create disk.nvm monday"))
def snapshot_command() -> None:
    """Create, list, delete, revert to and compare snapshots."""


@snapshot_command.command("create", epilog=example("nvmtool snapshot create disk.nvm monday"))
@image_argument
@new_names_argument
@region_option
@mass_option
@output_options
def create_command(image: str, names: tuple[str, ...], region: str | None, mass: str | None, out: Output) -> None:
    """Keep the running point's present state under a name, or under several."""
    facts = operate(image, "snapshot create", {"region": region, "names": names}, mass=mass)
    out.done({"image": image, **facts}, f"{image}: created snapshot {', '.join(names)} of region {facts['region']}{_served_line(facts)}")


def _served_line(facts: Mapping[str, Any]) -> str:
    return f", its clients waited {facts['seconds'] * 1000:.1f} ms" if "seconds" in facts else ""


@snapshot_command.command("list", epilog=example("nvmtool snapshot list disk.nvm --json"))
@image_argument
@region_option
@mass_option
@output_options
def list_command(image: str, region: str | None, mass: str | None, out: Output) -> None:
    """List a region's snapshots, oldest first, and what deleting each would free.

    owned: blocks that no older state has. exclusive: blocks that no other state has.
    """
    with Device.open(image, mass=mass) as device:
        source = device.region(region)
        snapshots = list_snapshots(source)
        facts = {"image": image, "region": source.name, "snapshots": [dataclasses.asdict(s) for s in snapshots]}
    rows = [(s.name, s.created, human(s.owned_bytes), human(s.exclusive_bytes), human(s.purged_bytes)) for s in snapshots]
    out.result(facts, Grid(("snapshot", "created", "owned", "exclusive", "purged"), rows, nleft=2))


@snapshot_command.command("delete", epilog=example("nvmtool snapshot delete disk.nvm monday tuesday --dry-run"))
@image_argument
@names_argument
@region_option
@dry_run_option
@mass_option
@output_options
def delete_command(image: str, names: tuple[str, ...], region: str | None, dry_run: bool, mass: str | None, out: Output) -> None:
    """Delete snapshots, in the order given; the others stay exactly as they are."""
    with out.progress() as progress:
        facts = operate(image, "snapshot delete", {"region": region, "names": names}, mass=mass, progress=progress, dry_run=dry_run)
    lines = [change_line(f"{image}: snapshot {each['name']}", "deleted", {**each, "dry_run": dry_run}) for each in facts["deleted"]]
    out.done({"image": image, **facts}, *lines)


@snapshot_command.command("revert", epilog=example("nvmtool snapshot revert disk.nvm monday"))
@image_argument
@click.argument("name", shell_complete=complete_snapshots)
@region_option
@dry_run_option
@mass_option
@output_options
def revert_command(image: str, name: str, region: str | None, dry_run: bool, mass: str | None, out: Output) -> None:
    """Set the running point back to a snapshot; what was written since is gone, all snapshots stay."""
    with out.progress() as progress:
        facts = operate(image, "snapshot revert", {"region": region, "name": name}, mass=mass, progress=progress, dry_run=dry_run)
    out.done({"image": image, **facts}, change_line(f"{image}: region {facts['region']}", f"reverted to {name}", facts))


@snapshot_command.command(
    "diff",
    epilog=example("nvmtool snapshot diff disk.nvm monday tuesday", "nvmtool snapshot diff disk.nvm monday @current --json"),
)
@image_argument
@click.argument("a", shell_complete=complete_snapshots)
@click.argument("b", default="@current", shell_complete=complete_snapshots)
@region_option
@mass_option
@output_options
def diff_command(image: str, a: str, b: str, region: str | None, mass: str | None, out: Output) -> None:
    """List the extents in which two states differ; @current is the running point."""
    with Device.open(image, mass=mass) as device:
        source = device.region(region)
        extents = list(diff_states(source, state_name(a), state_name(b)))
        facts = {"image": image, "region": source.name, "a": a, "b": b}
    if out.as_json:
        print_json_rows(facts, "extents", offset=[offset for offset, _ in extents], length=[length for _, length in extents])
    else:
        cells = [(f"{offset}", f"{length}") for offset, length in extents]
        out.result(facts, Grid(("offset", "length"), cells, nleft=0) if cells else f"{a} and {b} do not differ")
