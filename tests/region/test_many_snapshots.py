"""Hundreds of snapshots of one region: each reads its own state whatever was purged and deleted, and all space comes back."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.purge import purge
from nvmtool.region.snapshots import create_snapshot, delete_snapshot, list_snapshots

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 4096
NBLOCKS = 1024
# 2,000 work as well, but take a minute.
NSNAPSHOTS = 300
READ_EVERY = 10


def _data_ranges(path: Path) -> list[tuple[int, int]]:
    """Return (start, end) of the ranges of a file that occupy storage."""
    found, position = [], 0
    with path.open("rb") as file:
        while position < path.stat().st_size:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                break
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, position))
    return found


def _one_of_everything(device: Device) -> None:
    """Use and leave what a device keeps for good: the region table and the upper mass-slot tables."""
    region = device.create_region("first", BLOCK)
    region.write(0, b"1" * BLOCK)
    create_snapshot(region, "s")
    region.write(0, b"2" * BLOCK)
    purge(device, mode="virtblock")
    device.delete_region("first")


def test_many_snapshots_are_listed_purged_read_and_deleted_in_any_order_and_all_space_comes_back(tmp_path: Path) -> None:
    path, mass = tmp_path / "disk.nvm", tmp_path / "disk.mass"
    rng = random.Random(1)
    format_device(path, size_bytes=64 << 20, mass=mass)
    empty = _data_ranges(mass)
    states: dict[str, dict[int, bytes]] = {}
    now: dict[int, bytes] = {}
    with Device.open(path, writable=True) as device:
        _one_of_everything(device)
        free_blocks = device.blocks.free_blocks
        region = device.create_region("vm", NBLOCKS * BLOCK)
        for number in range(NSNAPSHOTS):
            index = rng.randrange(NBLOCKS)
            now = {**now, index: rng.randbytes(BLOCK)}
            region.write(index * BLOCK, now[index])
            create_snapshot(region, f"s{number}")
            states[f"s{number}"] = now
        region.write(0, b"r" * NBLOCKS * BLOCK)
        region.flush()

        listed = list_snapshots(region)
        assert [info.name for info in listed] == list(states)
        assert {info.owned_bytes for info in listed} == {BLOCK}

        order = rng.sample(list(states), NSNAPSHOTS)
        quarter = NSNAPSHOTS // 4
        assert purge(device, mode="virtblock", snapshots=order[:quarter]).blocks_purged == quarter
        assert purge(device, mode="pointer-elimination", snapshots=order[quarter : 2 * quarter]).pointers_updated > quarter
        assert device.slots.used > quarter

        rng.shuffle(order)
        while order:
            delete_snapshot(region, order.pop())
            if order and len(order) % READ_EVERY == 0:
                name = rng.choice(order)
                found = region.read(0, NBLOCKS * BLOCK, name)
                expected = b"".join(states[name].get(index, bytes(BLOCK)) for index in range(NBLOCKS))
                assert found == expected, name
        assert list_snapshots(region) == []
        assert region.read(0, NBLOCKS * BLOCK) == b"r" * NBLOCKS * BLOCK
        assert (device.slots.used, region.record.get("slots"), region.record.get("nvm_blocks")) == (0, 0, NBLOCKS)
    assert check_device(path, scrub=True).findings == []
    assert _data_ranges(mass) == empty
    with Device.open(path, writable=True) as device:
        device.delete_region("vm")
        assert device.blocks.free_blocks == free_blocks
    assert check_device(path, scrub=True).findings == []
