"""Holes in the running point's array are filled once, however they came about in one process."""

from __future__ import annotations

from pathlib import Path

from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device

BLOCK, MIB = 4096, 1 << 20


def test_an_entry_that_was_taken_a_moment_ago_is_not_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "disk.nvm"
    format_device(path, size_bytes=32 * MIB, mass=tmp_path / "disk.mass")
    with Device.open(path, writable=True) as device:
        region = device.create_region("vm1", 8 * MIB)
        region.write(0, bytes(2 * 254 * BLOCK))  # no array block has room
        region.flush()
        region.discard(0, 10 * BLOCK)
        region.write(600 * BLOCK, bytes(3 * BLOCK))  # some of the holes are known and left
        region.flush()
        region.discard(10 * BLOCK, 5 * BLOCK)  # and here are more, in the same block of the array
        region.write(700 * BLOCK, bytes(12 * BLOCK))
        region.flush()
    assert check_device(path).clean
