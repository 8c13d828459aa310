"""Damage of a host's files is found and named, never shown as other data; a sample here, all of it in `make fuzz`."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .fuzz import ram_folder
from .hostfiles import HostImage, cases, flip_bits, noise, run_cases

FLIPS = 60
CASES = 16


@pytest.fixture(scope="module")
def image() -> Iterator[HostImage]:
    with tempfile.TemporaryDirectory(dir=ram_folder()) as folder:
        yield HostImage(Path(folder))


def test_no_flipped_bit_of_records_and_saved_maps_is_silent(image: HostImage) -> None:
    rng = random.Random(1)
    figures = flip_bits(image, rng.sample(image.targets(), FLIPS), rng.sample(range(64), 2))
    assert figures.failures == []
    assert sum(count for what, count in figures.outcomes.items() if not what.startswith("check clean")) > FLIPS // 2


def test_files_that_are_cut_gone_exchanged_or_anothers_are_named(image: HostImage) -> None:
    figures = run_cases(image, random.Random(2).sample(list(cases(image)), CASES))
    assert figures.failures == []
    assert figures.damages == CASES


def test_noise_in_volatile_words_breaks_nothing_down(image: HostImage) -> None:
    figures = noise(image, seed=3, count=12)
    assert figures.failures == []
