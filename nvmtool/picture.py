"""Drawing what lies where in a file: bands of cells for the terminal and as SVG, with an axis, and a legend that holds totals.

A cell shows the kind that has the most bytes in its stretch of the band; of equals, the first of the drawing's looks.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .text import human, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from rich.console import RenderableType

_TICK_CELLS = 16


class Look(NamedTuple):
    """How a kind is drawn. Glyphs differ in weight and fills in lightness, so that neither needs its colour.

    `ascii` is the glyph of a terminal without UTF-8, `fill` is SVG's.
    """

    glyph: str
    ascii: str
    colour: str
    fill: str


@dataclass(frozen=True, slots=True)
class Band:
    """One line of a picture: extents in order, which may leave gaps; offsets and lengths are bytes, kinds are codes (u1)."""

    label: str
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    size_bytes: int


@dataclass(frozen=True)
class Palette:
    """The kinds that a picture shows: their looks, and the code of each. The last one is what no extent covers.

    `definitions` are what fills refer to in SVG.
    """

    looks: Mapping[str, Look]
    codes: Sequence[int]
    definitions: str = ""

    def look_of(self, code: int) -> Look:
        """Return how a code is drawn."""
        return list(self.looks.values())[list(self.codes).index(code)]

    def totals(self, band: Band) -> dict[str, int]:
        """Return the bytes of each kind in a band."""
        totals = {kind: int(band.lengths[band.kinds == code].sum()) for kind, code in zip(self.looks, self.codes, strict=True)}
        totals[list(self.looks)[-1]] += band.size_bytes - sum(totals.values())
        return totals

    def cells(self, band: Band, ncells: int) -> NDArray[np.uint8]:
        """Return for each of `ncells` equal stretches the code with the most bytes in it (u1)."""
        edges = np.array([band.size_bytes * i // ncells for i in range(ncells + 1)], np.int64)
        in_cell = np.empty((len(self.codes), ncells), np.int64)
        for rank, code in enumerate(self.codes):
            chosen = band.kinds == code
            in_cell[rank] = np.diff(_bytes_below(band.offsets[chosen], band.lengths[chosen], edges))
        in_cell[-1] += np.diff(edges) - in_cell.sum(axis=0)
        cells: NDArray[np.uint8] = np.array(self.codes, np.uint8)[in_cell.argmax(axis=0)]
        return cells


def _bytes_below(offsets: NDArray[np.int64], lengths: NDArray[np.int64], edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many bytes of the extents lie below each edge."""
    if not len(offsets):
        return np.zeros_like(edges)
    before = np.cumsum(lengths) - lengths
    reached = np.searchsorted(offsets, edges, side="right") - 1
    inside = np.minimum(edges - offsets[reached], lengths[reached])
    return np.where(reached < 0, 0, before[reached] + inside)


def draw_on_terminal(palette: Palette, bands: Sequence[Band], title: str, *, width: int, utf8: bool, note: str = "") -> RenderableType:
    """Return the bands, an axis, a note and a legend with each band's totals; the first band is the widest."""
    # rich takes longer to load than most pictures to draw, and neither SVG nor JSON needs it.
    from rich.cells import cell_len, set_cell_size
    from rich.console import Group
    from rich.text import Text

    labels = [printable(band.label) for band in bands]
    label_width = min(width // 3, max(map(cell_len, labels)))
    labels = [set_cell_size(label, label_width) for label in labels]
    ncells = max(_TICK_CELLS, width - label_width - 2)
    lines = [Text(printable(title), style="bold")]
    for label, band in zip(labels, bands, strict=True):
        cells = palette.cells(band, _share_of(ncells, band, bands[0]))
        parts = [(palette.look_of(code), end - start) for code, start, end in _runs(cells)]
        lines.append(Text.assemble(label, "  ", *((_glyph(look, utf8) * length, look.colour) for look, length in parts)))
    lines.append(Text(" " * (label_width + 2) + _axis_text(bands[0].size_bytes, ncells), style="dim"))
    if note:
        lines.append(Text(note, style="dim"))
    for line in lines:
        line.no_wrap = True
    return Group(*lines, Text(), _legend(palette, labels, bands, width, utf8))


def _legend(palette: Palette, labels: Sequence[str], bands: Sequence[Band], width: int, utf8: bool) -> RenderableType:
    """Return a table of the bands' totals whose headings are the kinds; the kinds alone where it would not fit."""
    from rich.cells import cell_len
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    headings = [Text.assemble((_glyph(look, utf8) * 2, look.colour), " ", kind) for kind, look in palette.looks.items()]
    rows = [[human(size) for size in palette.totals(band).values()] for band in bands]
    widths = [max(map(cell_len, (heading.plain, *column))) for heading, *column in zip(headings, *rows, strict=True)]
    if cell_len(labels[0]) + sum(widths) + 2 * len(widths) > width:
        return Group(*headings)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for label, row in zip(labels, rows, strict=True):
        table.add_row(Text(label), *row)
    return table


def _glyph(look: Look, utf8: bool) -> str:
    return look.glyph if utf8 else look.ascii


def _share_of(ncells: int, band: Band, widest: Band) -> int:
    return max(1, ncells * band.size_bytes // widest.size_bytes)


def _runs(cells: NDArray[np.uint8]) -> Iterator[tuple[int, int, int]]:
    """Yield (code, first cell, cell behind the last) for each stretch of equal cells."""
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


def draw_svg(palette: Palette, bands: Sequence[Band], title: str) -> str:
    """Return an SVG document of its own: the bands, an axis, and a legend whose columns hold each band's totals."""
    label_width = _LETTER * min(_MAX_LETTERS, max(len(printable(band.label)) for band in bands)) + 16
    left = _MARGIN + label_width
    width = left + _CELLS + len(palette.looks) * _COLUMN + _MARGIN
    bottom = _HEAD + len(bands) * _ROW
    columns = [left + _CELLS + (i + 1) * _COLUMN for i in range(len(palette.looks))]
    parts = [palette.definitions, *svg_legend(palette.looks, columns, _HEAD - 14)]
    for row, band in enumerate(bands):
        parts += _svg_band(palette, band, _share_of(_CELLS, band, bands[0]), left, _HEAD + row * _ROW, columns)
    parts += _svg_axis(bands[0].size_bytes, left, bottom)
    return svg_document(title, width, bottom + 40, parts)


def svg_document(title: str, width: int, height: int, parts: Iterable[str]) -> str:
    """Return an SVG document with a title above its parts, of which empty ones are left out."""
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13" fill="#22303c">',
        f"<title>{svg_text(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_MARGIN}" y="38" font-size="18" font-weight="600">{svg_text(title)}</text>',
    ]
    return "\n".join([*head, *(part for part in parts if part), "</svg>", ""])


def svg_legend(looks: Mapping[str, Look], rights: Sequence[int], baseline: int) -> Iterator[str]:
    """Yield a swatch and a name for each kind; the names end at `rights`."""
    for (kind, look), right in zip(looks.items(), rights, strict=True):
        swatch = right - len(kind) * _LETTER - 25
        yield f'<rect x="{swatch}" y="{baseline - 12}" width="14" height="14" fill="{look.fill}" stroke="#9aa7b2"/>'
        yield f'<text x="{right}" y="{baseline}" text-anchor="end">{svg_text(kind)}</text>'


def _svg_band(palette: Palette, band: Band, ncells: int, left: int, top: int, columns: Sequence[int]) -> Iterator[str]:
    label = printable(band.label)
    shown = label if len(label) <= _MAX_LETTERS else label[: _MAX_LETTERS - 1] + "…"
    totals = palette.totals(band)
    facts = ", ".join(f"{kind} {human(size)}" for kind, size in totals.items())
    yield f"<g><title>{escape(label)}: {escape(facts)}</title>"
    yield f'<text x="{left - 12}" y="{top + 16}" text-anchor="end">{escape(shown)}</text>'
    # One path a kind, not one rectangle a run: a tenth of the text.
    paths: dict[int, str] = {}
    for code, start, end in _runs(palette.cells(band, ncells)):
        length = end - start
        paths[code] = paths.get(code, "") + f"M{left + start} {top}h{length}v{_BAND}h-{length}z"
    for code, path in sorted(paths.items()):
        yield f'<path d="{path}" fill="{palette.look_of(code).fill}" shape-rendering="crispEdges"/>'
    yield f'<rect x="{left}" y="{top}" width="{ncells}" height="{_BAND}" fill="none" stroke="#9aa7b2"/>'
    for size, right in zip(totals.values(), columns, strict=True):
        yield f'<text x="{right}" y="{top + 16}" text-anchor="end">{human(size)}</text>'
    yield "</g>"


def _svg_axis(size_bytes: int, left: int, top: int) -> Iterator[str]:
    for tick in _axis_ticks(size_bytes, 8):
        x = left + tick * _CELLS / size_bytes
        yield f'<path d="M{x:.1f} {top}v6" stroke="#6b7a88"/>'
        yield f'<text x="{x:.1f}" y="{top + 21}" font-size="11" text-anchor="middle">{human(tick)}</text>'


def svg_text(text: str) -> str:
    """Return a text that may stand in an SVG document."""
    return escape(printable(text))
