"""send and receive: snapshots as streams."""

from __future__ import annotations

import dataclasses

import click

from ..media.stream import STREAM
from ..region.device import Device
from ..region.receive import receive
from ..region.send import send_snapshot
from ..text import human
from .options import complete_snapshots, dry_run_option, example, image_argument, mass_option, output_options, region_option
from .output import Output


@click.command(
    "send",
    epilog=example(
        "nvmtool send disk.nvm --snapshot monday monday.nvms",
        "nvmtool send disk.nvm --snapshot tuesday --from monday - | ssh backup nvmtool receive disk.nvm -",
    ),
)
@image_argument
@click.argument("dst", metavar="FILE", type=click.Path(allow_dash=True))
@click.option("--snapshot", metavar="NAME", required=True, shell_complete=complete_snapshots, help="Send this snapshot.")
@click.option(
    "--from",
    "base",
    metavar="NAME",
    shell_complete=complete_snapshots,
    help="Send only what differs from this snapshot, which the receiver has.",
)
@region_option
@mass_option
@output_options
def send_command(image: str, dst: str, snapshot: str, base: str | None, region: str | None, mass: str | None, out: Output) -> None:
    """Write a snapshot to a stream, whole or as what changed.

    FILE appears whole or not at all; - is stdout. Each block has a checksum, and purged blocks are verified. Holes stay holes.
    """
    with Device.open(image, mass=mass) as device, out.progress() as progress:
        source = device.region(region)
        result = send_snapshot(source, snapshot, dst, base, progress=progress)
        name = source.name
    facts = {"image": image, "region": name, "snapshot": snapshot, "from": base, "dst": dst, **dataclasses.asdict(result)}
    since = f" since {base}" if base is not None else ""
    out.done(
        facts,
        f"{image}: sent snapshot {snapshot} of region {name}{since}, {human(result.stream_bytes)}, in {result.seconds:.2f} s",
        to_stderr=dst == STREAM,
    )


@click.command("receive", epilog=example("nvmtool receive backup.nvm monday.nvms", "nvmtool receive backup.nvm tuesday.nvms --dry-run"))
@image_argument
@click.argument("src", metavar="FILE", type=click.Path(allow_dash=True))
@click.option("--region", metavar="NAME", help="The region's name here; as in the stream unless said.")
@click.option("--force", is_flag=True, help="Discard what was written to the region since the snapshot that the stream stands on.")
@dry_run_option
@mass_option
@output_options
def receive_command(image: str, src: str, region: str | None, force: bool, dry_run: bool, mass: str | None, out: Output) -> None:
    """Make a region and its snapshot, or a further snapshot, of a stream.

    FILE is one that send wrote, or - for stdin. All of it is verified before anything changes; cut off, damaged, or standing on another
    snapshot than the one that is here, it changes nothing. A region that was received takes what changes by further streams.
    """
    with Device.open(image, writable=not dry_run, mass=mass) as device, out.progress() as progress:
        result = receive(device, src, region, force=force, dry_run=dry_run, progress=progress)
    facts = {"image": image, "src": src, "dry_run": dry_run, **dataclasses.asdict(result)}
    facts["from"] = facts.pop("base")
    verb = "would receive" if dry_run else "received"
    since = f" since {result.base}" if result.base is not None else ""
    out.done(
        facts,
        f"{image}: {verb} snapshot {result.snapshot} of region {result.region}{since}, "
        f"{human(result.blocks * 4096)} of data, in {result.seconds:.2f} s",
    )
