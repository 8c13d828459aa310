"""format, info, check: a device image as a whole."""

from __future__ import annotations

from typing import Any

import click

from ..region.check import check_device
from ..region.device import Device
from ..region.format import format_device
from ..region.info import device_info
from ..text import human
from .checks import report_check
from .options import example, image_argument, mass_option, output_options, repair_option
from .output import Grid, Output
from .params import SIZE


@click.command("format", epilog=example("nvmtool format disk.nvm --size 4G --mass disk.mass"))
@image_argument
@click.option("--size", type=SIZE, required=True, help="Size of the image, metadata included.")
@click.option("--mass", type=click.Path(), metavar="FILE", required=True, help="The mass store; created if absent.")
@click.option("--block-size", type=SIZE, default="4KiB", help="Size of a data block; 4 KiB is the only one of this version.")
@click.option("--sparse", is_flag=True, help="Do not allocate the image's space now: a full file system may then kill a writer.")
@click.option("--force", is_flag=True, help="Format over an image that is there.")
@output_options
def format_command(image: str, size: int, mass: str, block_size: int, sparse: bool, force: bool, out: Output) -> None:
    """Create a device image and its mass store.

    IMAGE is a file, which is created, or a block device such as /dev/pmem0.
    """
    format_device(image, size_bytes=size, mass=mass, block_size=block_size, sparse=sparse, force=force)
    facts = {"image": image, "size_bytes": size, "block_size": block_size, "mass": {"path": mass}}
    out.done(facts, f"{image}: formatted, {human(size)}, mass store {mass}")


@click.command("info", epilog=example("nvmtool info disk.nvm --json"))
@image_argument
@mass_option
@output_options
def info_command(image: str, mass: str | None, out: Output) -> None:
    """Show an image's sizes, its mass store and its regions."""
    with Device.open(image, mass=mass) as device:
        facts = device_info(device)
    out.result(facts, *_info_lines(facts), _region_grid(facts))


def _info_lines(facts: dict[str, Any]) -> list[str]:
    mass = facts["mass"]
    return [
        f"image       {facts['image']}",
        f"format      version {facts['format_version']}, uuid {facts['uuid']}, blocks of {human(facts['block_size'])}",
        f"size        {human(facts['size_bytes'])}",
        f"free        {human(facts['free_bytes'])}",
        f"used        {human(facts['used_bytes'])}",
        f"metadata    {human(facts['metadata_bytes'])}",
        f"lent        {human(facts['lent_bytes'])}",
        f"mass store  {mass['path']}, {human(mass['used_bytes'])} used",
        f"flush       {facts['flush']}",
        "",
    ]


def _region_grid(facts: dict[str, Any]) -> Grid | str:
    if not facts["regions"]:
        return "no regions yet; make one with: nvmtool region create"
    rows = [
        (
            region["name"],
            region["mapping"],
            human(region["size_bytes"]),
            f"{region['snapshots']:,}",
            human(region["active_bytes"]),
            human(region["non_active_bytes"]),
            human(region["purged_bytes"]),
        )
        for region in facts["regions"]
    ]
    return Grid(("region", "mapping", "size", "snapshots", "active", "non-active", "purged"), rows, nleft=2)


@click.command("check", epilog=example("nvmtool check disk.nvm --scrub", "nvmtool check disk.nvm --repair"))
@image_argument
@repair_option
@click.option("--scrub", is_flag=True, help="Verify every purged block's checksum too.")
@mass_option
@output_options
@click.pass_context
def check_command(ctx: click.Context, image: str, repair: bool, scrub: bool, mass: str | None, out: Output) -> None:
    """Check every structure of an image, and repair it.

    Changes nothing without --repair. Exits with 1 when it leaves problems.
    """
    with out.progress() as progress:
        result = check_device(image, repair=repair, scrub=scrub, mass=mass, progress=progress)
    report_check(ctx, out, {"image": image}, result, repair=repair)
