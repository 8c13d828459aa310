"""swap map: how densely the storage of a swap file is used."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from ..errors import RefusedError
from ..media.stream import STREAM
from ..swap.info import swap_info
from ..swap.picture import density_bands, svg_picture, terminal_picture
from ..swap.swapfile import SwapFile
from ..text import count_of, human
from .options import example, output_options, svg_option
from .output import Output, print_json_rows
from .pictures import print_picture, require_one_stdout, write_svg


@click.command("map", epilog=example("nvmtool swap map vm1.swap", "nvmtool swap map vm1.swap --svg density.svg"))
@click.argument("file", type=click.Path())
@svg_option
@output_options
def map_command(file: str, svg: str | None, out: Output) -> None:
    """Draw how densely a swap file's storage is used.

    Each cell is a stretch of storage blocks, dark where most of their slots hold a page. May be run beside its VM. --json lists the
    blocks that have storage, with their used slots.
    """
    require_one_stdout(svg, out)
    if svg is not None and svg != STREAM and Path(svg).exists() and Path(svg).samefile(file):
        raise RefusedError(f"{svg}: is the swap file itself")
    with SwapFile.open(file) as swap:
        used, facts = swap.used.copy(), swap_info(swap)
    bands = density_bands(used, facts["slots_per_block"], facts["block_size"])
    blocks = f"{count_of(facts['blocks_allocated'], 'storage block')} of {human(facts['block_size'])}"
    title = f"{file}: {count_of(facts['used_slots'], 'page')} in {blocks}; {facts['blocks_optimal']:,} would do"
    if svg is not None:
        write_svg(svg, svg_picture(bands, title))
    if out.as_json:
        stored = np.flatnonzero(used >= 0)
        print_json_rows({**facts, "nblocks": len(used)}, "blocks", block=stored.tolist(), used_slots=used[stored].tolist())
    elif svg is None:
        print_picture(lambda width, utf8: terminal_picture(bands, title, width=width, utf8=utf8))
