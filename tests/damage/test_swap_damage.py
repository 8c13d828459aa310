"""A damaged swap file is never silent: the same data, an error of one line, or repaired; a sample here, all of it in `make fuzz`."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from nvmtool.errors import DamagedError
from nvmtool.swap.check import check_swap
from nvmtool.swap.swapfile import SwapFile

from .cases import run_cases
from .edit import set_word
from .swapcases import SwapFlipper, field_cases, structure_cases
from .swapfiles import KINDS, SwapProbe, anatomy_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FLIPS = 400
CASES = 150


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_of_a_swap_file_is_silent(kind: str, tmp_path: Path) -> None:
    flipper = SwapFlipper(KINDS[kind](tmp_path))
    figures = flipper.run(random.Random(kind).sample(flipper.targets(bits=1, seed=1), FLIPS))
    assert figures.failures == []
    assert figures.checks.get("found", 0) > FLIPS // 20


def test_two_frames_in_one_slot_are_an_error_where_all_counts_are_right(tmp_path: Path) -> None:
    image = KINDS["plain"](tmp_path)
    frames = anatomy_of(image).of("frame")
    # Frame 2 is in memory.
    set_word(image.path, frames[2], frames[0].value >> 8, mended=True)
    with pytest.raises(DamagedError, match="two frames name one slot"):
        SwapFile.open(image.path, writable=True)
    assert not check_swap(image.path).clean


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [field_cases, structure_cases], ids=["fields", "structures"])
def test_damage_of_a_swap_file_is_found_and_repair_mends_all_or_nothing(kind: str, make: Callable, tmp_path: Path) -> None:
    image = KINDS[kind](tmp_path)
    cases = list(make(image))
    run = run_cases(image, random.Random(kind).sample(cases, min(CASES, len(cases))), SwapProbe(image))
    assert run.failures == []
    assert run.cases > 0
