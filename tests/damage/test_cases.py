"""Damaged fields and structures: found, never a traceback; repair either mends all of it or changes no byte. A sample of `make fuzz`."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from nvmtool.errors import DamagedError
from nvmtool.media import word
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.purge import purge
from nvmtool.region.snapshots import list_snapshots
from nvmtool.region.transfer import export_file

from .anatomy import anatomy
from .cases import run_cases
from .edit import read_at, set_word, write_at
from .fields import field_cases
from .images import KINDS, direct_image, virtblock_image
from .structures import structure_cases

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CASES = 120


@pytest.mark.parametrize("kind", ["virtblock", "direct", "logged", "lent"])
@pytest.mark.parametrize("make", [field_cases, structure_cases], ids=["fields", "structures"])
def test_damage_is_found_and_repair_mends_all_or_nothing(kind: str, make: Callable, tmp_path: Path) -> None:
    image = KINDS[kind](tmp_path, 1)
    cases = list(make(image))
    run = run_cases(image, random.Random(kind).sample(cases, min(CASES, len(cases))))
    assert run.failures == []
    assert run.cases > 0


@pytest.mark.parametrize("make", [virtblock_image, direct_image])
def test_a_zeroed_pointer_is_found_by_check_and_by_export(make: Callable, tmp_path: Path) -> None:
    image = make(tmp_path)
    for target in [*anatomy(image).of("table-1"), *anatomy(image).of("table-2")]:
        write_at(image.path, target.index * 8, bytes(8))
        assert not check_device(image.path).clean, target
        refused = 0
        with Device.open(image.path) as device:
            for _, snapshot in image.model:
                try:
                    export_file(device.region(), str(tmp_path / "out"), snapshot)
                except DamagedError:
                    refused += 1
        assert refused, target
        write_at(image.path, target.index * 8, target.value.to_bytes(8, "little"))


@pytest.mark.parametrize(
    ("structure", "field", "payload"),
    [
        ("count", "word", 15 << word.VALUE_BITS | 1),
        ("count", "word", word.BLOCK << word.VALUE_BITS),
        ("group", "word", word.BLOCK << word.VALUE_BITS | 20),
        ("group", "word", word.GROUP << word.VALUE_BITS | 513),
        ("region record", "id", word.RECORD << word.VALUE_BITS | word.VALUE_MASK),
        ("region record", "parent", 1 << 40),
        ("region record", "flags", 16),
        ("region record", "flags", 0),
        ("snapshot record", "parent", 1 << 51),
        ("table-1", "entry", 7),
    ],
)
def test_a_rightly_sealed_value_that_cannot_be_is_found(structure: str, field: str, payload: int, tmp_path: Path) -> None:
    image = virtblock_image(tmp_path)
    target = next(each for each in anatomy(image).of(structure) if each.field == field)
    set_word(image.path, target, payload, mended=True)
    try:
        result = check_device(image.path)
    except DamagedError:
        return
    assert not result.clean


@pytest.mark.parametrize(("structure", "field"), [("region record", "nvm_blocks"), ("region record", "slots"), ("root", "used_slots")])
@pytest.mark.parametrize("payload", [0, word.PAYLOAD_MASK])
def test_a_counter_that_cannot_be_counted_on_ends_a_purge_with_an_error(structure: str, field: str, payload: int, tmp_path: Path) -> None:
    image = virtblock_image(tmp_path)
    target = next(each for each in anatomy(image).of(structure) if each.field == field)
    set_word(image.path, target, payload, mended=True)
    with suppress(DamagedError), Device.open(image.path, writable=True) as device:
        purge(device, mode="pointer-elimination")
    assert not check_device(image.path).clean


def test_a_lost_array_block_is_found(tmp_path: Path) -> None:
    image = virtblock_image(tmp_path)
    for block in {each.index // 512 for each in anatomy(image).of("array header")}:
        for lost in (bytes(4096), b"\xff" * 4096, bytes(32) + b"\xff" * 4064):
            good = read_at(image.path, block * 4096, 4096)
            write_at(image.path, block * 4096, lost)
            assert not check_device(image.path).clean
            write_at(image.path, block * 4096, good)


def test_snapshots_are_listed_where_an_upper_table_was_lost(tmp_path: Path) -> None:
    image = virtblock_image(tmp_path)
    for block in {each.index // 512 for each in anatomy(image).of("table-2")}:
        write_at(image.path, block * 4096, bytes(4096))
    with Device.open(image.path) as device:
        assert [snapshot.purged_bytes for snapshot in list_snapshots(device.region())] == [0, 0]
    assert not check_device(image.path).clean


def test_a_folder_in_the_mass_stores_place_is_an_error_of_this_kind(tmp_path: Path) -> None:
    image = virtblock_image(tmp_path)
    image.mass.unlink()
    image.mass.mkdir()
    with pytest.raises(Exception, match=r"disk\.mass: Is a directory") as caught:
        check_device(image.path)
    assert type(caught.value).__name__ == "StorageError"
