"""map: where the data of a region are."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import click

from ..picture import Band
from ..region.device import Device
from ..region.extents import KINDS, map_arrays
from ..region.picture import band_totals, svg_picture, terminal_picture
from ..region.snapshots import require_snapshots
from ..text import human
from .options import CURRENT, example, image_argument, mass_option, output_options, region_option, state_name, svg_option
from .output import Output, print_json_rows
from .pictures import print_picture, require_one_stdout, write_svg

if TYPE_CHECKING:
    from ..region.region import Region

_MOST_STATES = 16
_LINES_BESIDE_STATES = 6


@click.command("map", epilog=example("nvmtool map disk.nvm", "nvmtool map disk.nvm --svg map.svg"))
@image_argument
@region_option
@click.option("--snapshot", metavar="NAME", help="Draw this snapshot alone; @current is the running point.")
@click.option("--all", "all_states", is_flag=True, help="Draw all snapshots, not just the newest that fit.")
@svg_option
@mass_option
@output_options
def map_command(
    image: str,
    region: str | None,
    snapshot: str | None,
    all_states: bool,
    svg: str | None,
    mass: str | None,
    out: Output,
) -> None:
    """Draw where the data of a region are.

    The running point comes first, then the snapshots, newest first. --json lists the extents of the first.
    """
    require_one_stdout(svg, out)
    with Device.open(image, mass=mass) as device:
        if svg is not None:
            device.require_other_file(svg)
        source = device.region(region)
        names = [snapshot] if snapshot is not None else _state_names(source)
        shown = names if all_states else names[: _states_that_fit(out, svg)]
        bands = [_band(source, name) for name in shown]
        title = f"{image}: region {source.name}, {human(source.size_bytes)}, {source.mapping} mapping"
        facts = {"image": image, "region": source.name, "size_bytes": source.size_bytes, "mapping": source.mapping}
    if svg is not None:
        write_svg(svg, svg_picture(bands, title))
    if out.as_json:
        _print_extents(facts, bands)
    elif svg is None:
        left_out = len(names) - len(shown)
        print_picture(lambda width, utf8: terminal_picture(bands, title, width=width, utf8=utf8, left_out=left_out))


def _band(region: Region, name: str) -> Band:
    offsets, lengths, kinds = map_arrays(region, state_name(name))
    return Band(name, offsets, lengths, kinds, region.size_bytes)


def _state_names(region: Region) -> list[str]:
    return [CURRENT, *(snapshot.name for snapshot in reversed(require_snapshots(region, ())))]


def _states_that_fit(out: Output, svg: str | None) -> int:
    if svg is not None or out.as_json or not sys.stdout.isatty():
        return _MOST_STATES
    # Each state has a line in the picture and one in the legend.
    return max(1, (shutil.get_terminal_size().lines - _LINES_BESIDE_STATES) // 2)


def _print_extents(facts: dict[str, object], bands: list[Band]) -> None:
    states = []
    for band in bands:
        totals = {f"{kind.replace('-', '_')}_bytes": size for kind, size in band_totals(band).items()}
        states.append({"name": band.label, **totals})
    first = bands[0]
    kinds = [KINDS[kind] for kind in first.kinds.tolist()]
    facts = {**facts, "state": first.label, "states": states}
    print_json_rows(facts, "extents", offset=first.offsets.tolist(), length=first.lengths.tolist(), kind=kinds)
