"""No flipped bit of the metadata is ever silent: a sample here, all of them in `make fuzz`."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from nvmtool.region.device import Device
from nvmtool.region.transfer import export_file

from .anatomy import anatomy
from .bits import BitRun, Flipper, judge, sound_bits
from .images import BLOCK, KINDS
from .probe import read_state

if TYPE_CHECKING:
    from pathlib import Path

FLIPS = 250


@pytest.mark.parametrize("kind", ["virtblock", "direct", "logged"])
def test_no_flipped_bit_is_silent(kind: str, tmp_path: Path) -> None:
    flipper = Flipper(KINDS[kind](tmp_path, 1))
    figures = BitRun()
    targets = list(flipper.targets(bits=1, seed=1))
    for file, offset, bit in random.Random(kind).sample(targets, FLIPS):
        name = flipper.structure(file, offset)
        judge(figures, flipper.flip(file, offset, bit), name, f"{name} byte 0x{offset:x} bit {bit}", in_log=name == "log record")
    assert figures.failures == []
    assert figures.checks.get("found", 0) > FLIPS // 20


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_word_that_is_present_is_never_sound_or_absent_with_one_bit_flipped(kind: str, tmp_path: Path) -> None:
    whole = anatomy(KINDS[kind](tmp_path, 1))
    # A number that is 0 has a checksum alone; for numbers the word 0 does not mean absent, it is a wrong checksum.
    assert not [whole.words[index] for index in sound_bits(whole) if whole.words[index].value >> 8]


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_reader_of_this_harness_reads_what_export_writes(kind: str, tmp_path: Path) -> None:
    image = KINDS[kind](tmp_path, 1)
    with Device.open(image.path) as device:
        for (region, snapshot), state in image.model.items():
            assert read_state(device, region, snapshot) == state
            export_file(device.region(region), str(tmp_path / "out"), snapshot)
            exported = (tmp_path / "out").read_bytes()
            blocks = {start // BLOCK: exported[start : start + BLOCK] for start in range(0, len(exported), BLOCK)}
            assert {index: data for index, data in blocks.items() if any(data)} == state
