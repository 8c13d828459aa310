"""Purging: exact pointer counts, exact predictions, storage that comes back, damage that is named."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

import pytest

from nvmtool.errors import DamagedError, UsageError
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.purge import PurgeResult, purge
from nvmtool.region.recall import recall
from nvmtool.region.snapshots import create_snapshot, delete_snapshot, revert_region

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 4096
NSNAPSHOTS = 16
MODES = ("virtblock", "pointer-elimination")


def _image(folder: Path, mapping: str = "virtblock") -> tuple[Path, bytes]:
    """Make an image whose 16 snapshots each have a private level-1 table that names the same 400 blocks; return it with their data."""
    path = folder / "disk.nvm"
    format_device(path, size_bytes=32 << 20, mass=folder / "disk.mass")
    data = os.urandom(400 * BLOCK)
    with Device.open(path, writable=True) as device:
        region = device.create_region("vm", 1024 * BLOCK, mapping)
        region.write(0, data)
        for number in range(NSNAPSHOTS):
            region.write(500 * BLOCK, os.urandom(BLOCK))
            create_snapshot(region, f"s{number}")
        region.write(0, os.urandom(400 * BLOCK))
    return path, data


def _purge(path: Path, mode: str, **options: object) -> PurgeResult:
    with Device.open(path, writable=not options.get("dry_run", False)) as device:
        return purge(device, mode=mode, **options)


def test_virtblock_purge_changes_one_pointer_a_block(tmp_path: Path) -> None:
    path, _ = _image(tmp_path)
    result = _purge(path, "virtblock")
    assert (result.blocks_purged, result.pointers_updated, result.blocks_remaining) == (415, 415, 0)


@pytest.mark.parametrize("mapping", ["virtblock", "direct"])
def test_pointer_elimination_changes_one_pointer_a_table(tmp_path: Path, mapping: str) -> None:
    path, data = _image(tmp_path, mapping)
    result = _purge(path, "pointer-elimination")
    assert (result.blocks_purged, result.pointers_updated) == (415, 400 * NSNAPSHOTS + 15)
    with Device.open(path) as device:
        assert device.slots.used == 415
        assert device.region().read(0, 400 * BLOCK, "s3") == data
    assert check_device(path, scrub=True).clean


@pytest.mark.parametrize("mode", MODES)
def test_second_purge_purges_nothing(tmp_path: Path, mode: str) -> None:
    path, _ = _image(tmp_path)
    _purge(path, mode)
    again = _purge(path, mode)
    assert (again.blocks_purged, again.pointers_updated, again.free_bytes_before) == (0, 0, again.free_bytes_after)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [{}, {"max_bytes": 100 * BLOCK}, {"free_target": 0.9}, {"snapshots": ["s2"]}])
def test_dry_run_predicts_the_real_run_and_changes_no_byte(tmp_path: Path, mode: str, options: dict[str, object]) -> None:
    path, _ = _image(tmp_path)
    before = path.read_bytes(), (tmp_path / "disk.mass").read_bytes()
    predicted = _purge(path, mode, dry_run=True, **options)
    assert (path.read_bytes(), (tmp_path / "disk.mass").read_bytes()) == before
    real = _purge(path, mode, **options)
    assert dataclasses.replace(predicted, seconds=0) == dataclasses.replace(real, seconds=0)


def test_blocks_purged_snapshot_by_snapshot_share_one_copy(tmp_path: Path) -> None:
    path, data = _image(tmp_path, "direct")
    for number in range(NSNAPSHOTS):
        _purge(path, "pointer-elimination", snapshots=[f"s{number}"])
    with Device.open(path) as device:
        assert device.slots.used == 415
        assert all(device.region().read(0, 400 * BLOCK, f"s{number}") == data for number in range(NSNAPSHOTS))
    assert check_device(path, scrub=True).clean


def test_virtblock_mode_on_a_direct_region_names_the_command_that_helps(tmp_path: Path) -> None:
    path, _ = _image(tmp_path, "direct")
    with pytest.raises(UsageError, match="nvmtool region convert"):
        _purge(path, "virtblock")


@pytest.mark.parametrize("mode", MODES)
def test_revert_and_recall_after_a_purge_restore_every_block(tmp_path: Path, mode: str) -> None:
    path, data = _image(tmp_path)
    _purge(path, mode)
    with Device.open(path, writable=True) as device:
        region = device.region()
        revert_region(region, "s5")
        assert region.read(0, 400 * BLOCK) == data
        recalled = recall(device)
        assert recalled.blocks_recalled == 401
        assert region.read(0, 400 * BLOCK) == data
        assert region.record.get("mapped_purged") == 0
    assert check_device(path, scrub=True).clean


@pytest.mark.parametrize("mode", MODES)
def test_deleting_snapshots_gives_their_slots_back_to_the_file_system(tmp_path: Path, mode: str) -> None:
    path, _ = _image(tmp_path)
    _purge(path, mode)
    occupied = (tmp_path / "disk.mass").stat().st_blocks
    with Device.open(path, writable=True) as device:
        for number in range(NSNAPSHOTS):
            delete_snapshot(device.region(), f"s{number}")
        assert device.slots.used == 0
    assert (tmp_path / "disk.mass").stat().st_blocks * 512 <= occupied * 512 - 400 * BLOCK
    assert check_device(path, scrub=True).clean


def test_a_damaged_slot_is_an_error_and_never_data(tmp_path: Path) -> None:
    path, data = _image(tmp_path)
    _purge(path, "virtblock")
    with (tmp_path / "disk.mass").open("r+b") as mass:
        mass.seek(3 * BLOCK + 77)
        mass.write(bytes([data[0] ^ 0x55, 1, 2, 3]))
    with Device.open(path) as device, pytest.raises(DamagedError, match="slot 3"):
        device.region().read(0, 400 * BLOCK, "s0")
    result = check_device(path, scrub=True)
    assert [finding.structure for finding in result.findings] == ["mass slot"]
