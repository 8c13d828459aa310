"""Drawing where a region's data are: a band of cells for each state, for the terminal and as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..picture import Band, Look, Palette, draw_on_terminal, draw_svg
from .extents import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from rich.console import RenderableType

# Of equals in a cell, the first here is shown.
LOOKS = {
    "active": Look("█", "#", "blue", "#1f5f99"),
    "non-active": Look("▒", "x", "yellow", "#f2a33a"),
    "purged": Look("░", "o", "magenta", "url(#hatch)"),
    "hole": Look("·", ".", "bright_black", "#e9edf1"),
}
assert set(LOOKS) == set(KINDS)
_HATCH = (
    '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="5" height="5" fill="#e3d3f1"/><rect width="1.5" height="5" fill="#8e62b8"/></pattern></defs>'
)
_PALETTE = Palette(LOOKS, [KINDS.index(kind) for kind in LOOKS], _HATCH)


def band_totals(band: Band) -> dict[str, int]:
    """Return the bytes of each kind; what no extent covers is hole."""
    return _PALETTE.totals(band)


def band_cells(band: Band, ncells: int) -> NDArray[np.uint8]:
    """Return for each of `ncells` equal stretches the kind with the most bytes in it (u1, index into KINDS)."""
    return _PALETTE.cells(band, ncells)


def terminal_picture(bands: Sequence[Band], title: str, *, width: int, utf8: bool = True, left_out: int = 0) -> RenderableType:
    """Return the bands, an axis and a legend with each state's totals; says so when states were `left_out`."""
    note = f"and {left_out:,} older; --all shows them" if left_out else ""
    return draw_on_terminal(_PALETTE, bands, title, width=width, utf8=utf8, note=note)


def svg_picture(bands: Sequence[Band], title: str) -> str:
    """Return an SVG document of its own: the bands, an axis, and a legend whose columns hold each state's totals."""
    return draw_svg(_PALETTE, bands, title)
