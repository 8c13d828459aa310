"""region create, list, delete, convert."""

from __future__ import annotations

import click

from ..live.management import operate
from ..region.device import Device
from ..region.info import device_info
from ..text import human
from .options import dry_run_option, example, image_argument, mass_option, output_options
from .output import Grid, Output, change_line
from .params import SIZE

MAPPINGS = click.Choice(["virtblock", "direct"])
name_argument = click.argument("name")


@click.group("region", no_args_is_help=False, epilog=example("nvmtool region create disk.nvm vm1 --size 1G"))
def region_command() -> None:
    """Create, list, delete and convert regions."""


@region_command.command("create", epilog=example("nvmtool region create disk.nvm vm1 --size 16T"))
@image_argument
@name_argument
@click.option("--size", type=SIZE, required=True, help="Size of the region; it is thin, so more than the image has is fine.")
@click.option("--mapping", type=MAPPINGS, default="virtblock", help="How page tables name data blocks.")
@mass_option
@output_options
def create_command(image: str, name: str, size: int, mapping: str, mass: str | None, out: Output) -> None:
    """Create an empty region."""
    facts = operate(image, "region create", {"name": name, "size_bytes": size, "mapping": mapping}, mass=mass)
    out.done({"image": image, **facts}, f"{image}: created region {name}, {human(size)}, {mapping} mapping")


@region_command.command("list", epilog=example("nvmtool region list disk.nvm --json"))
@image_argument
@mass_option
@output_options
def list_command(image: str, mass: str | None, out: Output) -> None:
    """List the regions."""
    with Device.open(image, mass=mass) as device:
        regions = device_info(device)["regions"]
    rows = [(r["name"], r["mapping"], human(r["size_bytes"]), f"{r['snapshots']:,}") for r in regions]
    out.result({"image": image, "regions": regions}, Grid(("region", "mapping", "size", "snapshots"), rows, nleft=2))


@region_command.command("delete", epilog=example("nvmtool region delete disk.nvm vm1 --dry-run"))
@image_argument
@name_argument
@dry_run_option
@mass_option
@output_options
def delete_command(image: str, name: str, dry_run: bool, mass: str | None, out: Output) -> None:
    """Delete a region and all its snapshots."""
    with out.progress() as progress:
        facts = operate(image, "region delete", {"name": name}, mass=mass, progress=progress, dry_run=dry_run)
    out.done({"image": image, **facts}, change_line(f"{image}: region {name}", "deleted", facts))


@region_command.command("convert", epilog=example("nvmtool region convert disk.nvm vm1 --mapping direct"))
@image_argument
@name_argument
@click.option("--mapping", type=MAPPINGS, required=True, help="The mapping it is to have.")
@dry_run_option
@mass_option
@output_options
def convert_command(image: str, name: str, mapping: str, dry_run: bool, mass: str | None, out: Output) -> None:
    """Change how a region's page tables name data blocks.

    No data move. Purging with `--mode virtblock` needs the virtblock mapping.
    """
    with out.progress() as progress:
        facts = operate(image, "region convert", {"name": name, "mapping": mapping}, mass=mass, progress=progress, dry_run=dry_run)
    out.done({"image": image, **facts}, change_line(f"{image}: region {name}", f"converted to {mapping}", facts))
