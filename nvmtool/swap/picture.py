"""Drawing how densely the storage of a swap file is used: rows of cells, for the terminal and as SVG.

A row is a stretch of the file's storage blocks; a cell shows the density that most of its blocks have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..picture import Band, Look, Palette, draw_on_terminal, draw_svg
from ..text import human

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from rich.console import RenderableType

# What of a block's slots is used, at most; the code is the position from the last one. Of equals in a cell, the densest is shown.
LOOKS = {
    "to 100%": Look("█", "#", "blue", "#0b3c6f"),
    "to 75%": Look("▓", "x", "blue", "#2f7cc0"),
    "to 50%": Look("▒", "+", "blue", "#7db8e0"),
    "to 25%": Look("░", ":", "blue", "#c3dff2"),
    "no storage": Look("·", ".", "bright_black", "#f6f7f9"),
}
_PALETTE = Palette(LOOKS, range(len(LOOKS) - 1, -1, -1))
_LEVELS = len(LOOKS) - 1
_MOST_ROWS = 8
_BLOCKS_A_ROW = 64


def density_bands(used: NDArray[np.int64], slots_per_block: int, block_bytes: int) -> list[Band]:
    """Return the rows of a picture from the used slots of all storage blocks, -1 where there is no storage.

    Blocks with storage that hold no page count among the least dense. A small file is one row, a large one eight; the last may be shorter.
    """
    nrows = 1
    while nrows < _MOST_ROWS and len(used) > nrows * _BLOCKS_A_ROW:
        nrows *= 2
    a_row = -(-len(used) // nrows)
    codes = np.where(used < 0, 0, np.maximum(-(-used * _LEVELS // slots_per_block), 1)).astype(np.uint8)
    return [_row(codes[first : first + a_row], first, block_bytes) for first in range(0, len(used), a_row)]


def _row(codes: NDArray[np.uint8], first: int, block_bytes: int) -> Band:
    starts = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1])
    lengths = np.diff(np.append(starts, len(codes)))
    return Band(human(first * block_bytes), starts * block_bytes, lengths * block_bytes, codes[starts], len(codes) * block_bytes)


def terminal_picture(bands: Sequence[Band], title: str, *, width: int, utf8: bool = True) -> RenderableType:
    """Return the rows, an axis, and a legend with the bytes of storage blocks that each row has of each density."""
    return draw_on_terminal(_PALETTE, bands, title, width=width, utf8=utf8)


def svg_picture(bands: Sequence[Band], title: str) -> str:
    """Return an SVG document of its own with the same rows, axis and legend."""
    return draw_svg(_PALETTE, bands, title)
