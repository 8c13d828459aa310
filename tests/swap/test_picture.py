"""The picture of a swap file's density: both drawings say what the counts say, at any width, with and without colour."""

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
from nvmtool.swap.info import density_facts
from nvmtool.swap.picture import LOOKS, density_bands, svg_picture, terminal_picture

SLOTS, BLOCK = 256, 1 << 20
SVG = "{http://www.w3.org/2000/svg}"


def bands_of(*used: int) -> list[Band]:
    return density_bands(np.array(used, np.int64), SLOTS, BLOCK)


def shown(bands: list[Band], width: int = 80, **options: Any) -> str:
    console = Console(file=StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(terminal_picture(bands, "vm.swap", width=width, **options))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_five_levels_are_told_apart_without_colour() -> None:
    row = shown(bands_of(256, 192, 128, 64, -1), width=85).splitlines()[1]
    assert row == "0 B  " + "█" * 16 + "▓" * 16 + "▒" * 16 + "░" * 16 + "·" * 16
    assert len({look.glyph for look in LOOKS.values()}) == len({look.ascii for look in LOOKS.values()}) == len(LOOKS) == 5


@pytest.mark.parametrize(
    ("used", "level"),
    [
        *[(-1, "no storage"), (0, "to 25%"), (1, "to 25%"), (64, "to 25%"), (65, "to 50%"), (128, "to 50%"), (129, "to 75%")],
        *[(192, "to 75%"), (193, "to 100%"), (256, "to 100%")],
    ],
)
def test_limits_of_the_levels(used: int, level: str) -> None:
    assert LOOKS[level].glyph * 16 in shown(bands_of(used)).splitlines()[1]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("nblocks", [1, 63, 65, 1025, 100_001])
def test_it_fits_its_width(width: int, nblocks: int) -> None:
    used = np.arange(nblocks, dtype=np.int64) % (SLOTS + 2) - 1
    text = shown(density_bands(used, SLOTS, BLOCK), width=width)
    assert max(map(len, text.splitlines())) <= width
    for level in LOOKS:
        assert level in text


def test_without_utf8_it_is_ascii() -> None:
    assert shown(bands_of(-1, 0, 100, 150, 256), utf8=False).isascii()


@given(st.lists(st.integers(-1, SLOTS), min_size=1, max_size=700))
def test_rows_hold_all_blocks_in_order(used: list[int]) -> None:
    bands = bands_of(*used)
    assert sum(band.size_bytes for band in bands) == len(used) * BLOCK
    codes = np.concatenate([np.repeat(band.kinds, band.lengths // BLOCK) for band in bands])
    assert codes.tolist() == [0 if each < 0 else max(-(-each * 4 // SLOTS), 1) for each in used]
    assert len(bands) <= 8


def test_svg_is_wellformed_and_has_the_legend() -> None:
    tree = ElementTree.fromstring(svg_picture(bands_of(*range(-1, 257)), "<vm>&.swap"))
    assert tree.findtext(SVG + "title") == "<vm>&.swap"
    texts = {element.text for element in tree.iter(SVG + "text")}
    assert set(LOOKS) <= texts
    fills = {path.get("fill") for path in tree.iter(SVG + "path")}
    assert {look.fill for look in LOOKS.values()} <= fills


def test_a_tib_is_drawn_quickly() -> None:
    used = np.random.default_rng(1).integers(-1, SLOTS + 1, (1 << 20) + 1)
    start = time.perf_counter()
    bands = density_bands(used, SLOTS, BLOCK)
    svg_picture(bands, "t")
    shown(bands)
    density_facts(used, SLOTS)
    assert time.perf_counter() - start < 2


@given(st.lists(st.integers(-1, SLOTS), min_size=1, max_size=100))
def test_density_facts_add_up(used: list[int]) -> None:
    facts = density_facts(np.array(used, np.int64), SLOTS)
    deciles = [sum(each > 0 and tenth * SLOTS < each * 10 <= (tenth + 1) * SLOTS for each in used) for tenth in range(10)]
    assert facts == {"deciles": deciles, "empty": used.count(0), "full": used.count(SLOTS), "absent": used.count(-1)}
    assert sum(deciles) + facts["empty"] + facts["absent"] == len(used)
