"""A damaged reservation is never silent and never costs its swap file a page; a sample here, all of it in `make fuzz`."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from nvmtool.errors import DamagedError
from nvmtool.swap.reservation import reservation_info
from nvmtool.swap.reservation_check import check_reservation
from tests.crash.borrowed.ground import standing_on

from .cases import run_cases
from .edit import set_word
from .reservationcases import ReservationFlipper, field_cases, structure_cases
from .reservationfiles import KINDS, ReservationProbe, anatomy_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FLIPS = 100
CASES = 25


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_of_a_reservation_is_silent(kind: str, tmp_path: Path) -> None:
    flipper = ReservationFlipper(KINDS[kind](tmp_path))
    figures = flipper.run(random.Random(kind).sample(flipper.targets(bits=1, seed=1), FLIPS))
    assert figures.failures == []
    assert figures.checks.get("found", 0) > FLIPS // 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [field_cases, structure_cases], ids=["fields", "structures"])
def test_damage_of_a_reservation_is_found_and_repair_mends_all_or_nothing(kind: str, make: Callable, tmp_path: Path) -> None:
    image = KINDS[kind](tmp_path)
    cases = list(make(image))
    run = run_cases(image, random.Random(kind).sample(cases, min(CASES, len(cases))), ReservationProbe(image))
    assert run.failures == []
    assert run.cases > 0


def test_a_lenders_path_with_a_nul_byte_is_damage(tmp_path: Path) -> None:
    image = KINDS["plain"](tmp_path)
    path = next(each for each in anatomy_of(image).of("lender") if each.field == "path")
    set_word(image.path, path, 1, mended=True)
    with standing_on(image.ground), pytest.raises(DamagedError, match="path is out of range"):
        reservation_info(image.path)


def test_a_reservation_with_another_uuid_than_its_swap_file_says_is_found(tmp_path: Path) -> None:
    image = KINDS["plain"](tmp_path)
    [case] = [each for each in field_cases(image) if each.name == "header A and B uuid: ones, checksum mended"]
    case.apply(image)
    with standing_on(image.ground):
        [finding] = check_reservation(image.path).findings
    assert finding.structure == "swap file"
    assert "borrows from another reservation" in finding.what
