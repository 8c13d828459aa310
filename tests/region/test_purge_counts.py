"""Purging changes exactly one pointer per block with virtblocks, and one per naming table with pointer elimination."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from nvmtool.errors import DamagedError
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.purge import purge
from nvmtool.region.snapshots import create_snapshot, delete_snapshot, list_snapshots

BLOCK, SHARED, S = 4096, 50, 6


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """S snapshots that each hold a private table naming the same SHARED blocks, which the running point no longer names."""
    path = tmp_path / "disk.nvm"
    format_device(path, size_bytes=16 << 20, mass=tmp_path / "disk.mass", sparse=True)
    with Device.open(path, writable=True) as device:
        region = device.create_region("vm1", 512 * BLOCK)
        region.write(0, b"a" * BLOCK * SHARED)
        for number in range(S):
            region.write((100 + number) * BLOCK, bytes([number + 1]) * BLOCK)
            create_snapshot(region, f"s{number}")
        region.write(0, b"b" * BLOCK * SHARED)
    return path


@pytest.mark.parametrize(("mode", "pointers"), [("virtblock", 1), ("pointer-elimination", S)])
def test_pointers_are_exact_and_a_dry_run_says_the_same(path: Path, mode: str, pointers: int) -> None:
    with Device.open(path) as reader:
        planned = asdict(purge(reader, mode=mode, dry_run=True))
    with Device.open(path, writable=True) as device:
        done = asdict(purge(device, mode=mode))
        assert (done["blocks_purged"], done["pointers_updated"]) == (SHARED, SHARED * pointers)
        again = purge(device, mode=mode)
        assert (again.blocks_purged, again.pointers_updated, again.blocks_remaining) == (0, 0, 0)
        for number in range(S):
            assert device.region().read(0, SHARED * BLOCK, f"s{number}") == b"a" * BLOCK * SHARED
    del planned["seconds"], done["seconds"]
    assert planned == done
    assert check_device(path, scrub=True).clean


def test_a_budget_of_bytes_is_kept(path: Path) -> None:
    with Device.open(path, writable=True) as device:
        assert purge(device, mode="virtblock", max_bytes=7 * BLOCK).blocks_purged == 7
        assert purge(device, mode="virtblock").blocks_purged == SHARED - 7


def test_blocks_purged_by_snapshot_and_then_whole_share_their_slot(path: Path) -> None:
    with Device.open(path, writable=True) as device:
        purge(device, mode="pointer-elimination", snapshots=["s2"])
        purge(device, mode="pointer-elimination")
        assert device.slots.used == SHARED


def test_a_damaged_slot_is_never_handed_out(path: Path) -> None:
    with Device.open(path, writable=True) as device:
        purge(device, mode="virtblock")
    mass = path.with_name("disk.mass")
    content = bytearray(mass.read_bytes())
    content[BLOCK + 17] ^= 1
    mass.write_bytes(content)
    with Device.open(path) as device, pytest.raises(DamagedError):
        device.region().read(0, SHARED * BLOCK, "s0")
    assert not check_device(path, scrub=True).clean


def test_deleting_gives_the_storage_of_slots_back(path: Path) -> None:
    with Device.open(path, writable=True) as device:
        purge(device, mode="virtblock")
        before = path.with_name("disk.mass").stat().st_blocks
        for number in range(S):
            delete_snapshot(device.region(), f"s{number}")
        assert device.slots.used == 0
    assert before - path.with_name("disk.mass").stat().st_blocks >= SHARED * BLOCK // 512


def test_purged_bytes_are_counted_where_a_snapshot_has_no_table_of_its_own(tmp_path: Path) -> None:
    path, per_table = tmp_path / "disk.nvm", 512 * BLOCK
    format_device(path, size_bytes=32 << 20, mass=tmp_path / "disk.mass", sparse=True)
    with Device.open(path, writable=True) as device:
        region = device.create_region("vm1", 3 * per_table)
        for table in range(3):
            region.write(table * per_table, b"a" * BLOCK * 2)
        create_snapshot(region, "all")
        region.discard(0, per_table)
        create_snapshot(region, "two")
        region.discard(0, 3 * per_table)
        create_snapshot(region, "none")
        purge(device, mode="virtblock")
        assert [each.purged_bytes // BLOCK for each in list_snapshots(region)] == [6, 4, 0]
