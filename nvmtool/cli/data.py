"""import, export, read, write, discard: the bytes of a region."""

from __future__ import annotations

import dataclasses
import sys

import click

from ..errors import UsageError
from ..media.stream import STREAM
from ..region.device import Device
from ..region.transfer import export_file, import_file
from ..text import human
from .options import (
    debug_option,
    dry_run_option,
    example,
    image_argument,
    mass_option,
    offset_option,
    output_options,
    region_option,
    snapshot_option,
    state_name,
)
from .output import Output, change_line
from .params import OFFSET, SIZE

_CHUNK_BYTES = 4 << 20


@click.command(
    "import",
    epilog=example("nvmtool import disk.nvm rootfs.ext4", "zcat dump.gz | nvmtool import disk.nvm - --region vm1"),
)
@image_argument
@click.argument("src", type=click.Path(allow_dash=True))
@region_option
@click.option("--offset", type=OFFSET, default="0", help="Where in the region to begin, in bytes.")
@mass_option
@output_options
def import_command(image: str, src: str, region: str | None, offset: int, mass: str | None, out: Output) -> None:
    """Copy a raw, sparse or qcow2 file into a region.

    SRC is a file, or - for stdin. Holes stay holes; qcow2 files go through qemu-img.
    """
    with Device.open(image, writable=True, mass=mass) as device, out.progress() as progress:
        target = device.region(region)
        result = import_file(target, src, offset=offset, progress=progress)
        name = target.name
    facts = {"image": image, "region": name, "offset": offset, **dataclasses.asdict(result)}
    out.done(
        facts,
        f"{image}: imported {human(result.bytes_read)} into region {name}, "
        f"{human(result.bytes_written)} of it data, in {result.seconds:.2f} s",
    )


@click.command("export", epilog=example("nvmtool export disk.nvm monday.raw --snapshot monday"))
@image_argument
@click.argument("dst", type=click.Path(allow_dash=True))
@region_option
@snapshot_option
@mass_option
@output_options
def export_command(image: str, dst: str, region: str | None, snapshot: str | None, mass: str | None, out: Output) -> None:
    """Copy a region or a snapshot into a sparse file.

    DST is a file, or - for stdout.
    """
    with Device.open(image, mass=mass) as device, out.progress() as progress:
        source = device.region(region)
        result = export_file(source, dst, snapshot=state_name(snapshot), progress=progress)
        name = source.name
    facts = {"image": image, "region": name, "snapshot": snapshot, "dst": dst, **dataclasses.asdict(result)}
    out.done(
        facts,
        f"{image}: exported {human(result.bytes_total)} of region {name}, {human(result.bytes_data)} of it data, in {result.seconds:.2f} s",
        to_stderr=dst == STREAM,
    )


@click.command("read", epilog=example("nvmtool read disk.nvm --offset 1K --length 1K | xxd"))
@image_argument
@offset_option
@click.option("--length", type=SIZE, help="How many bytes; to the end of the region unless said.")
@region_option
@snapshot_option
@mass_option
@debug_option
def read_command(image: str, offset: int, length: int | None, region: str | None, snapshot: str | None, mass: str | None) -> None:
    """Write bytes of a region to stdout."""
    with Device.open(image, mass=mass) as device:
        source = device.region(region)
        end = max(offset, source.size_bytes) if length is None else offset + length
        # Refused before the first byte is out, not behind the last that there is.
        source.check_range(offset, end - offset)
        for start in range(offset, end, _CHUNK_BYTES):
            sys.stdout.buffer.write(source.read(start, min(_CHUNK_BYTES, end - start), snapshot=state_name(snapshot)))


@click.command("write", epilog=example("echo hello | nvmtool write disk.nvm --offset 1M"))
@image_argument
@offset_option
@click.option("--length", type=SIZE, help="Take at most so many bytes from stdin.")
@region_option
@mass_option
@output_options
def write_command(image: str, offset: int, length: int | None, region: str | None, mass: str | None, out: Output) -> None:
    """Write bytes from stdin to a region.

    They are durable when the command ends.
    """
    written = 0
    with Device.open(image, writable=True, mass=mass) as device:
        target = device.region(region)
        target.check_range(offset, 0)
        while data := sys.stdin.buffer.read(_CHUNK_BYTES if length is None else min(_CHUNK_BYTES, length - written)):
            if offset + written + len(data) > target.size_bytes:
                target.flush()
                raise UsageError(f"stdin goes past the end of region {target.name!r}; its first {written} bytes are written")
            target.write(offset + written, data)
            written += len(data)
        target.flush()
        name = target.name
    facts = {"image": image, "region": name, "offset": offset, "bytes_written": written}
    out.done(facts, f"{image}: wrote {human(written)} at {offset} of region {name}")


@click.command("discard", epilog=example("nvmtool discard disk.nvm --offset 1M --length 64K"))
@image_argument
@offset_option
@click.option("--length", type=SIZE, required=True, help="How many bytes.")
@region_option
@dry_run_option
@mass_option
@output_options
def discard_command(image: str, offset: int, length: int, region: str | None, dry_run: bool, mass: str | None, out: Output) -> None:
    """Make a hole in a region.

    It reads as zeros; snapshots keep what they have.
    """
    with Device.open(image, writable=not dry_run, mass=mass) as device, out.progress() as progress:
        target = device.region(region)
        change = target.discard(offset, length, dry_run=dry_run, progress=progress)
        if not dry_run:
            target.flush()
        name = target.name
    facts = {"image": image, "region": name, "offset": offset, "length": length, "dry_run": dry_run}
    facts |= dataclasses.asdict(change)
    out.done(facts, change_line(f"{image}: {human(length)} at {offset} of region {name}", "discarded", facts))
