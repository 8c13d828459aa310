"""Importing and exporting keep data and holes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nvmtool.errors import BusyError, DamagedError
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.send import send_snapshot
from nvmtool.region.snapshots import create_snapshot, diff_states
from nvmtool.region.transfer import export_file, import_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


MIB = 1 << 20


def _device(folder: Path) -> Path:
    path = folder / "disk.nvm"
    format_device(path, size_bytes=32 * MIB, mass=folder / "disk.mass")
    with Device.open(path, writable=True) as device:
        device.create_region("vm", 16 * MIB)
    return path


def test_importing_the_same_file_again_changes_nothing(tmp_path: Path) -> None:
    path = _device(tmp_path)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3 * MIB) + bytes(MIB) + os.urandom(MIB + 100))
    with Device.open(path, writable=True) as device:
        region = device.region()
        import_file(region, str(source))
        create_snapshot(region, "first")
        again = import_file(region, str(source))
        assert list(diff_states(region, "first", None)) in ([], [(5 * MIB, 4096)])
        assert again.bytes_written <= 100


def test_import_then_export_is_the_same_file_with_its_holes(tmp_path: Path) -> None:
    path = _device(tmp_path)
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(16 * MIB)
        file.seek(5 * MIB)
        file.write(os.urandom(MIB))
    with Device.open(path, writable=True) as device:
        import_file(device.region(), str(source))
    with Device.open(path) as device:
        result = export_file(device.region(), str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert result.bytes_data == MIB
    assert (tmp_path / "copy").stat().st_blocks * 512 < 2 * MIB


@pytest.mark.parametrize("copy", [export_file, send_snapshot])
def test_a_reader_that_a_server_did_not_wait_for_publishes_no_file(copy: Callable[..., object], tmp_path: Path) -> None:
    path, target = _device(tmp_path), tmp_path / "copy"
    target.write_bytes(b"what was there before")
    with Device.open(path, writable=True) as device:
        device.region().write(0, os.urandom(8 * MIB))
        create_snapshot(device.region(), "monday")
    evictions = []

    def go_on_without(*_: object) -> None:
        if not evictions:
            with Device.open(path, writable=True) as device:
                device.evict_readers_after(0)
                device.region().write(0, bytes(MIB))
                device.region().flush()
                device.journal.checkpoint()
            evictions.append(1)

    told = "while it was being read"
    with pytest.raises(BusyError, match=told), Device.open(path) as device, pytest.raises(BusyError, match=told):
        copy(device.region(), dst=str(target), snapshot="monday", progress=go_on_without)
    assert evictions
    assert target.read_bytes() == b"what was there before"


def test_import_over_data_leaves_zeros_where_the_source_has_them(tmp_path: Path) -> None:
    path = _device(tmp_path)
    source = tmp_path / "source"
    source.write_bytes(bytes(4 * MIB))
    with Device.open(path, writable=True) as device:
        region = device.region()
        region.write(0, os.urandom(6 * MIB))
        tail = region.read(4 * MIB, 2 * MIB)
        import_file(region, str(source))
        assert region.read(0, 6 * MIB) == bytes(4 * MIB) + tail
        assert region.record.get("mapped") == 512


def test_a_block_mapped_past_the_regions_end_is_damage_and_is_not_exported(tmp_path: Path) -> None:
    path = _device(tmp_path)
    with Device.open(path, writable=True) as device:
        region = device.create_region("odd", 100 * 4096)
        region.write(0, b"x" * 4096)
        region.flush()
        with device.transaction():
            region.pages.map(np.array([200]), device.blocks.take(1))
        with pytest.raises(DamagedError, match="past its end"):
            export_file(region, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert any("past the region's end" in finding.what for finding in check_device(path).findings)
