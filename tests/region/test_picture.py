"""The picture of a map: which kind a cell shows, and that both drawings say what the numbers say."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ElementTree
from io import StringIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nvmtool.picture import Band
from nvmtool.region.extents import KINDS
from nvmtool.region.picture import LOOKS, band_cells, band_totals, svg_picture, terminal_picture

ACTIVE, NON_ACTIVE, PURGED, HOLE = (KINDS.index(k) for k in ("active", "non-active", "purged", "hole"))
BY_RANK = [ACTIVE, NON_ACTIVE, PURGED, HOLE]  # max() takes the first of equals
SVG = "{http://www.w3.org/2000/svg}"


def band(size_bytes: int, *extents: tuple[int, int, int], label: str = "@current") -> Band:
    columns = list(zip(*extents, strict=True)) or [(), (), ()]
    return Band(label, np.array(columns[0], "i8"), np.array(columns[1], "i8"), np.array(columns[2], "u1"), size_bytes)


def shown(*bands: Band, width: int = 80, **options: Any) -> str:
    console = Console(file=StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(terminal_picture(bands, "disk.nvm: region vm1", width=width, **options))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_cell_shows_the_kind_with_most_bytes() -> None:
    cells = band_cells(band(400, (0, 60, ACTIVE), (60, 91, PURGED), (151, 60, ACTIVE), (300, 100, NON_ACTIVE)), 4)
    assert [KINDS[c] for c in cells.tolist()] == ["active", "purged", "hole", "non-active"]


def test_what_no_extent_covers_is_hole() -> None:
    assert set(band_cells(band(1 << 44), 60).tolist()) == {HOLE}
    assert band_totals(band(1 << 44, (4096, 8192, PURGED))) == {
        "active": 0,
        "non-active": 0,
        "purged": 8192,
        "hole": (1 << 44) - 8192,
    }


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, len(KINDS) - 1), st.booleans()), max_size=40),
    st.integers(1, 30),
    st.integers(0, 9),
)
def test_cells_equal_those_counted_byte_by_byte(pieces: list[tuple[int, int, bool]], ncells: int, tail: int) -> None:
    kinds: list[int] = []
    extents = []
    for length, kind, listed in pieces:
        if listed:
            extents.append((len(kinds), length, kind))
        kinds += [kind if listed else HOLE] * length
    kinds += [HOLE] * (tail + 1)
    size = len(kinds)
    want = []
    for i in range(ncells):
        cell = kinds[size * i // ncells : size * (i + 1) // ncells]
        want.append(max(BY_RANK, key=cell.count))
    assert band_cells(band(size, *extents), ncells).tolist() == want


def test_terminal_picture_tells_kinds_apart_without_colour() -> None:
    quarter = 1 << 28
    text = shown(
        band(4 * quarter, (0, quarter, ACTIVE), (quarter, quarter, NON_ACTIVE), (2 * quarter, quarter, PURGED)),
        width=82,
    )
    row = text.splitlines()[1]
    assert row.startswith("@current  ")
    assert row.split()[1] == "█" * 18 + "▒" * 18 + "░" * 18 + "·" * 18
    for kind in KINDS:
        assert f"{LOOKS[kind][0] * 2} {kind}" in text
    assert text.count("256 MiB") == 5, "four totals and a tick"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_terminal_picture_fits_its_width(width: int) -> None:
    label = "a snapshot with a name that is far too long for its column"
    text = shown(band(1 << 44, (0, 1 << 43, ACTIVE)), band(1 << 44, label=label), width=width)
    assert max(map(len, text.splitlines())) <= max(width, 66)
    assert all(len(line) == width for line in text.splitlines()[1:3])


def test_terminal_picture_without_utf8_is_ascii() -> None:
    assert shown(band(1 << 20, (0, 4096, ACTIVE)), utf8=False).isascii()


def test_states_left_out_are_mentioned() -> None:
    assert "and 9,984 older; --all shows them" in shown(band(4096), left_out=9984)


def test_svg_is_wellformed_whatever_the_names_are() -> None:
    evil = "<b>&\"']]>\x1b[31m\n\x00\udc80 "
    tree = ElementTree.fromstring(svg_picture([band(1 << 30, (0, 4096, PURGED), label=evil)], evil))
    assert tree.tag == SVG + "svg"
    title = tree.find(SVG + "title")
    assert title is not None
    assert title.text is not None
    assert title.text.startswith("<b>&\"']]>\\x1b[31m\\n\\x00\\udc80")


def test_svg_bands_cover_what_the_cells_say() -> None:
    half = 1 << 33
    tree = ElementTree.fromstring(svg_picture([band(2 * half, (0, half, ACTIVE), (half, half, PURGED))], "t"))
    group = tree.find(SVG + "g")
    assert group is not None
    assert [path.get("fill") for path in group.findall(SVG + "path")] == [LOOKS["active"][3], LOOKS["purged"][3]]
    assert [path.get("d", "").split("h")[1].split("v")[0] for path in group.findall(SVG + "path")] == ["380", "380"]
    texts = [element.text for element in tree.iter(SVG + "text")]
    assert {"active", "non-active", "purged", "hole", "8 GiB", "16 GiB"} <= set(texts)


def test_purging_changes_the_picture() -> None:
    before = band(1 << 30, (0, 1 << 29, NON_ACTIVE))
    after = band(1 << 30, (0, 1 << 29, PURGED))
    assert shown(before) != shown(after)
    assert svg_picture([before], "t") != svg_picture([after], "t")


def test_a_million_extents_over_16_tib_are_drawn_quickly() -> None:
    n = 1 << 20
    offsets = np.arange(n, dtype="i8") * (1 << 24)
    large = Band("@current", offsets, np.full(n, 1 << 23, "i8"), (np.arange(n) % 3).astype("u1"), 1 << 44)
    start = time.perf_counter()
    svg_picture([large], "t")
    shown(large)
    assert time.perf_counter() - start < 2
    assert sum(band_totals(large).values()) == 1 << 44
