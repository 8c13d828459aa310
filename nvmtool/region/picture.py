"""Drawing where a region's data are: a band of cells for each state, for the terminal and as SVG.

A cell shows the kind that has the most bytes in its stretch of the region; of equals, the first of LOOKS.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from ..text import human, printable
from .extents import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from rich.console import RenderableType
    from rich.text import Text

# kind: glyph, glyph of a terminal without UTF-8, terminal colour, SVG fill. The glyphs differ in weight and the colours
# in lightness, so that neither needs the other. Of equals in a cell, the first here is shown.
LOOKS = {
    "active": ("█", "#", "blue", "#1f5f99"),
    "non-active": ("▒", "x", "yellow", "#f2a33a"),
    "purged": ("░", "o", "magenta", "url(#hatch)"),
    "hole": ("·", ".", "bright_black", "#e9edf1"),
}
assert set(LOOKS) == set(KINDS)
_CODES = [KINDS.index(kind) for kind in LOOKS]

_TICK_CELLS = 16


@dataclass(frozen=True, slots=True)
class Band:
    """One state of a region: its extents in order, with or without the holes; offsets and lengths are bytes."""

    label: str
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    size_bytes: int


def band_totals(band: Band) -> dict[str, int]:
    """Return the bytes of each kind; what no extent covers is hole."""
    totals = {kind: int(band.lengths[band.kinds == code].sum()) for kind, code in zip(LOOKS, _CODES, strict=True)}
    totals["hole"] += band.size_bytes - sum(totals.values())
    return totals


def band_cells(band: Band, ncells: int) -> NDArray[np.uint8]:
    """Return for each of `ncells` equal stretches the kind with the most bytes in it (u1, index into KINDS)."""
    edges = np.array([band.size_bytes * i // ncells for i in range(ncells + 1)], np.int64)
    in_cell = np.empty((len(LOOKS), ncells), np.int64)
    for rank, code in enumerate(_CODES):
        chosen = band.kinds == code
        in_cell[rank] = np.diff(_bytes_below(band.offsets[chosen], band.lengths[chosen], edges))
    in_cell[_CODES.index(KINDS.index("hole"))] += np.diff(edges) - in_cell.sum(axis=0)
    cells: NDArray[np.uint8] = np.array(_CODES, np.uint8)[in_cell.argmax(axis=0)]
    return cells


def _bytes_below(offsets: NDArray[np.int64], lengths: NDArray[np.int64], edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many bytes of the extents lie below each edge."""
    if not len(offsets):
        return np.zeros_like(edges)
    before = np.cumsum(lengths) - lengths
    reached = np.searchsorted(offsets, edges, side="right") - 1
    inside = np.minimum(edges - offsets[reached], lengths[reached])
    return np.where(reached < 0, 0, before[reached] + inside)


def terminal_picture(bands: Sequence[Band], title: str, *, width: int, utf8: bool = True, left_out: int = 0) -> RenderableType:
    """Return the bands, an axis and a legend with each state's totals; says so when states were `left_out`."""
    # rich takes longer to load than most maps to draw, and neither SVG nor JSON needs it.
    from rich.cells import cell_len, set_cell_size
    from rich.console import Group
    from rich.text import Text

    glyph = 0 if utf8 else 1
    labels = [printable(band.label) for band in bands]
    label_width = min(width // 3, max(map(cell_len, labels)))
    labels = [set_cell_size(label, label_width) for label in labels]
    ncells = max(_TICK_CELLS, width - label_width - 2)
    lines = [Text(printable(title), style="bold")]
    for label, band in zip(labels, bands, strict=True):
        cells = [(LOOKS[KINDS[kind]], end - start) for kind, start, end in _runs(band_cells(band, ncells))]
        lines.append(Text.assemble(label, "  ", *((look[glyph] * length, look[2]) for look, length in cells)))
    lines.append(Text(" " * (label_width + 2) + _axis_text(bands[0].size_bytes, ncells), style="dim"))
    if left_out:
        lines.append(Text(f"and {left_out:,} older; --all shows them", style="dim"))
    for line in lines:
        line.no_wrap = True
    return Group(*lines, Text(), _legend(labels, bands, glyph))


def _legend(labels: Sequence[str], bands: Sequence[Band], glyph: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    table.add_column("", no_wrap=True)
    for kind, look in LOOKS.items():
        heading: Text = Text.assemble((look[glyph] * 2, look[2]), " ", kind)
        table.add_column(heading, justify="right", no_wrap=True)
    for label, band in zip(labels, bands, strict=True):
        table.add_row(Text(label), *map(human, band_totals(band).values()))
    return table


def _runs(cells: NDArray[np.uint8]) -> Iterator[tuple[int, int, int]]:
    """Yield (kind, first cell, cell behind the last) for each stretch of equal cells."""
    edges = [0, *(np.flatnonzero(np.diff(cells)) + 1).tolist(), len(cells)]
    for start, end in itertools.pairwise(edges):
        yield int(cells[start]), start, end


def _axis_ticks(size_bytes: int, nticks: int) -> range:
    """Return positions from 0 on, at most `nticks` + 1 of them; the step is a power of two."""
    step = 1 << (-(-size_bytes // nticks) - 1).bit_length()
    return range(0, size_bytes + 1, step)


def _axis_text(size_bytes: int, ncells: int) -> str:
    """Return the axis as one line: each tick's mark is in its cell, the text behind it."""
    line = ""
    for tick in _axis_ticks(size_bytes, ncells // _TICK_CELLS):
        mark = f"{'':{tick * ncells // size_bytes - len(line)}}|{human(tick)}"
        if len(line) + len(mark) <= ncells:
            line += mark
    return line


# SVG, in pixels.
_MARGIN = 24
_CELLS = 760
_ROW = 30
_BAND = 22
_COLUMN = 104
_LETTER = 7
_MAX_LETTERS = 32
_HEAD = 88
_HATCH = (
    '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="5" height="5" fill="#e3d3f1"/><rect width="1.5" height="5" fill="#8e62b8"/></pattern></defs>'
)


def svg_picture(bands: Sequence[Band], title: str) -> str:
    """Return an SVG document of its own: the bands, an axis, and a legend whose columns hold each state's totals."""
    label_width = _LETTER * min(_MAX_LETTERS, max(len(printable(band.label)) for band in bands)) + 16
    left = _MARGIN + label_width
    width = left + _CELLS + len(LOOKS) * _COLUMN + _MARGIN
    bottom = _HEAD + len(bands) * _ROW
    height = bottom + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13" fill="#22303c">',
        f"<title>{_svg_text(title)}</title>",
        _HATCH,
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_MARGIN}" y="38" font-size="18" font-weight="600">{_svg_text(title)}</text>',
    ]
    columns = [left + _CELLS + (i + 1) * _COLUMN for i in range(len(LOOKS))]
    for (kind, look), right in zip(LOOKS.items(), columns, strict=True):
        swatch = right - len(kind) * _LETTER - 22
        parts.append(f'<rect x="{swatch}" y="{_HEAD - 26}" width="14" height="14" fill="{look[3]}" stroke="#9aa7b2"/>')
        parts.append(f'<text x="{right}" y="{_HEAD - 14}" text-anchor="end">{kind}</text>')
    for row, band in enumerate(bands):
        parts += _svg_band(band, left, _HEAD + row * _ROW, columns)
    parts += _svg_axis(bands[0].size_bytes, left, bottom)
    return "\n".join([*parts, "</svg>", ""])


def _svg_band(band: Band, left: int, top: int, columns: Sequence[int]) -> Iterator[str]:
    label = printable(band.label)
    shown = label if len(label) <= _MAX_LETTERS else label[: _MAX_LETTERS - 1] + "…"
    totals = band_totals(band)
    facts = ", ".join(f"{kind} {human(size)}" for kind, size in totals.items())
    yield f"<g><title>{escape(label)}: {escape(facts)}</title>"
    yield f'<text x="{left - 12}" y="{top + 16}" text-anchor="end">{escape(shown)}</text>'
    # One path a kind, not one rectangle a run: a tenth of the text.
    paths: dict[int, str] = {}
    for kind, start, end in _runs(band_cells(band, _CELLS)):
        length = end - start
        paths[kind] = paths.get(kind, "") + f"M{left + start} {top}h{length}v{_BAND}h-{length}z"
    for kind, path in sorted(paths.items()):
        yield f'<path d="{path}" fill="{LOOKS[KINDS[kind]][3]}" shape-rendering="crispEdges"/>'
    yield f'<rect x="{left}" y="{top}" width="{_CELLS}" height="{_BAND}" fill="none" stroke="#9aa7b2"/>'
    for size, right in zip(totals.values(), columns, strict=True):
        yield f'<text x="{right}" y="{top + 16}" text-anchor="end">{human(size)}</text>'
    yield "</g>"


def _svg_axis(size_bytes: int, left: int, top: int) -> Iterator[str]:
    for tick in _axis_ticks(size_bytes, 8):
        x = left + tick * _CELLS / size_bytes
        yield f'<path d="M{x:.1f} {top}v6" stroke="#6b7a88"/>'
        yield f'<text x="{x:.1f}" y="{top + 21}" font-size="11" text-anchor="middle">{human(tick)}</text>'


def _svg_text(text: str) -> str:
    return escape(printable(text))
