"""Devices: several processes at once, full devices, and files that are not what they should be."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nvmtool.errors import BusyError, DamagedError, FormatError, NoSpaceError, NotFoundError, StorageError
from nvmtool.media.newfile import NewFile
from nvmtool.region import layout as lay
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.purge import purge
from nvmtool.region.snapshots import create_snapshot, delete_snapshot, revert_region
from nvmtool.region.sweep import mark_deleted

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 4096
HOLD = """
import sys, time
from nvmtool.region.device import Device
with Device.open(sys.argv[1], writable=True) as device:
    print("ready", flush=True)
    sys.stdin.read()
"""


def _image(folder: Path, size: int = 16 << 20) -> Path:
    path = folder / "disk.nvm"
    format_device(path, size_bytes=size, mass=folder / "disk.mass")
    with Device.open(path, writable=True) as device:
        device.create_region("vm", 64 << 20)
    return path


def test_a_second_writer_is_told_who_holds_the_image(tmp_path: Path) -> None:
    path = _image(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(BusyError, match=f"process {other.pid}"):
            Device.open(path, writable=True)
        other.kill()
    with Device.open(path, writable=True):
        pass


def test_a_reader_keeps_its_state_while_a_writer_goes_on(tmp_path: Path) -> None:
    path = _image(tmp_path)
    first = os.urandom(50 * BLOCK)
    with Device.open(path, writable=True) as writer:
        writer.region().write(0, first)
        writer.flush()
        with Device.open(path) as reader:
            for _ in range(20):
                writer.region().write(0, os.urandom(50 * BLOCK))
                writer.flush()
            assert reader.region().read(0, 50 * BLOCK) == first
    assert check_device(path).clean


def test_a_small_device_can_be_filled_to_its_reserve_with_single_and_joint_writes(tmp_path: Path) -> None:
    path = _image(tmp_path, 1 << 20)
    with Device.open(path, writable=True) as device:
        device.region().write(0, os.urandom(BLOCK))
        device.region().write(40 * BLOCK, os.urandom(100 * BLOCK))
    assert check_device(path).clean


def test_a_full_device_refuses_the_write_and_loses_nothing_else(tmp_path: Path) -> None:
    path = _image(tmp_path, 4 << 20)
    written = {}
    with Device.open(path, writable=True) as device:
        region = device.region()
        create_snapshot(region, "empty")
        with pytest.raises(NoSpaceError, match="device full"):
            for index in range(0, 16000, 3):
                data = os.urandom(BLOCK)
                region.write(index * BLOCK, data)
                written[index] = data
        region.flush()
    with Device.open(path, writable=True) as device:
        region = device.region()
        assert all(region.read(index * BLOCK, BLOCK) == data for index, data in written.items())
        create_snapshot(region, "full")
        region.discard(0, 32 << 20)
        # Purging works on a full device, and makes room.
        assert purge(device, mode="virtblock").blocks_purged > 100
        region.write(0, os.urandom(100 * BLOCK))
        region.flush()
        assert all(region.read(index * BLOCK, BLOCK, "full") == data for index, data in written.items())
        delete_snapshot(region, "full")
    assert check_device(path, scrub=True).clean


@pytest.mark.parametrize("size", [0, 100, 4096, 8192, 100000, (16 << 20) - 1])
def test_a_truncated_image_is_named(tmp_path: Path, size: int) -> None:
    path = _image(tmp_path)
    os.truncate(path, size)
    with pytest.raises((FormatError, DamagedError), match=r"disk\.nvm"):
        Device.open(path)


def test_a_missing_foreign_or_truncated_mass_store_is_named(tmp_path: Path) -> None:
    path = _image(tmp_path)
    with Device.open(path, writable=True) as device:
        device.region().write(0, os.urandom(50 * BLOCK))
        create_snapshot(device.region(), "s")
        device.region().write(0, os.urandom(50 * BLOCK))
        purge(device, mode="virtblock")
    mass = tmp_path / "disk.mass"
    whole = mass.read_bytes()
    (tmp_path / "other").mkdir()
    _image(tmp_path / "other")
    mass.write_bytes((tmp_path / "other" / "disk.mass").read_bytes().ljust(len(whole), b"\0"))
    with pytest.raises(FormatError, match="belongs to device"):
        Device.open(path)
    mass.write_bytes(whole[: 20 * BLOCK])
    with pytest.raises(DamagedError, match="its slots end at"):
        Device.open(path)
    mass.unlink()
    with pytest.raises(StorageError, match="cannot be opened"):
        Device.open(path)
    (tmp_path / "moved").write_bytes(whole)
    with Device.open(path, mass=tmp_path / "moved") as device:
        assert device.slots.used == 50


def test_a_damaged_header_copy_is_found_and_repaired_and_the_other_one_serves(tmp_path: Path) -> None:
    path = _image(tmp_path)
    with path.open("r+b") as image:
        image.seek(100)
        image.write(b"\xff")
    assert [finding.structure for finding in check_device(path).findings] == ["header"]
    assert check_device(path, repair=True).clean
    assert check_device(path).findings == []


def test_every_damage_to_a_root_word_is_found(tmp_path: Path) -> None:
    path = _image(tmp_path)
    whole = path.read_bytes()
    for byte in range(4 * 8):
        with path.open("r+b") as image:
            image.seek(2 * BLOCK + byte)
            image.write(bytes([whole[2 * BLOCK + byte] ^ 0x10]))
        with contextlib.suppress(DamagedError):
            assert not check_device(path).clean, byte
        path.write_bytes(whole)


def test_leaked_blocks_are_found_and_repaired(tmp_path: Path) -> None:
    path = _image(tmp_path)
    with Device.open(path, writable=True) as device:
        device.region().write(0, os.urandom(10 * BLOCK))
        device.flush()
        with device.transaction():
            device.blocks.name(device.blocks.take(5), 2)
        free = device.blocks.free_blocks
    result = check_device(path)
    assert (result.clean, result.leaked_blocks, {finding.severity for finding in result.findings}) == (False, 5, {"leak"})
    assert check_device(path, repair=True).clean
    with Device.open(path) as device:
        assert device.blocks.free_blocks == free + 5


def test_repair_leaves_what_it_cannot_prove_byte_identical(tmp_path: Path) -> None:
    path = _image(tmp_path)
    with Device.open(path, writable=True) as device:
        device.region().write(0, os.urandom(10 * BLOCK))
        device.flush()
        with device.transaction():
            device.blocks.name(device.blocks.take(5), 2)
        leaf = int(device.region().pages.tables.find_leaves(device.region().root_of(None), np.array([0]))[0])
    with path.open("r+b") as image:
        image.seek(leaf * BLOCK + 3)
        image.write(b"\x5a")
    before = path.read_bytes(), (tmp_path / "disk.mass").read_bytes()
    result = check_device(path, repair=True)
    assert (result.clean, result.repaired) == (False, 0)
    assert (path.read_bytes(), (tmp_path / "disk.mass").read_bytes()) == before


def test_entry_counts_that_are_too_high_are_repaired(tmp_path: Path) -> None:
    path = _image(tmp_path)
    data = os.urandom(10 * BLOCK)
    with Device.open(path, writable=True) as device:
        region = device.region()
        region.write(0, data)
        region.flush()
        indexes = np.arange(10)
        _, addresses = region.pages.tables.decode(region.pages.tables.lookup(region.root_of(None), indexes), indexes)
        with device.transaction():
            region.pages.virtblocks.add_refs(addresses[:4])
    result = check_device(path)
    assert [(finding.severity, finding.structure) for finding in result.findings] == [("leak", "virtblock entry")] * 4
    assert check_device(path, repair=True).clean
    with Device.open(path) as device:
        assert device.region().read(0, 10 * BLOCK) == data


@pytest.mark.parametrize("mapping", ["virtblock", "direct"])
def test_a_flush_that_touches_many_shared_tables_fits_a_small_log(tmp_path: Path, mapping: str) -> None:
    path, per_table, ntables = tmp_path / "disk.nvm", 512 * BLOCK, 60
    format_device(path, size_bytes=32 << 20, mass=tmp_path / "disk.mass")
    with Device.open(path, writable=True) as device:
        region = device.create_region("r", 1 << 30, mapping)
        for table in range(ntables):
            region.write(table * per_table, bytes([table + 1]) * per_table)
            if table % 8 == 7:
                create_snapshot(region, f"s{table}")
                region.discard(0, region.size_bytes)
                purge(device, mode="virtblock" if mapping == "virtblock" else "pointer-elimination")
                revert_region(region, f"s{table}")
        create_snapshot(region, "all")
        for table in range(ntables):
            region.write(table * per_table, b"x" * BLOCK)
        region.flush()
        assert all(region.read(table * per_table, 2 * BLOCK) == b"x" * BLOCK + bytes([table + 1]) * BLOCK for table in range(ntables))
    assert check_device(path).clean


@pytest.mark.parametrize("mode", ["virtblock", "pointer-elimination"])
def test_a_mass_file_system_that_is_nearly_full_takes_what_fits(tmp_path: Path, mode: str, small_tmpfs: Path) -> None:
    path = tmp_path / "disk.nvm"
    format_device(path, size_bytes=64 << 20, mass=small_tmpfs / "disk.mass")
    with Device.open(path, writable=True) as device:
        region = device.create_region("r", 32 << 20)
        region.write(0, os.urandom(32 << 20))
        content = region.read(0, 32 << 20)
        create_snapshot(region, "s")
        region.discard(0, 32 << 20)
        with pytest.raises(NoSpaceError, match="were purged before"):
            purge(device, mode=mode)
        assert device.slots.used * BLOCK > (6 << 20)
    assert check_device(path, scrub=True).clean
    with Device.open(path) as device:
        assert device.region().read(0, 32 << 20, "s") == content


def test_formatting_again_goes_on_where_it_was_cut_off_between_its_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _image(tmp_path)
    mass = next(each for each in tmp_path.iterdir() if each.suffix == ".mass")

    def cut_off(new: NewFile, **_: object) -> None:
        publish(new)
        raise KeyboardInterrupt

    publish = NewFile.publish
    monkeypatch.setattr(NewFile, "publish", cut_off)
    with pytest.raises(KeyboardInterrupt):
        format_device(path, size_bytes=32 << 20, mass=mass, force=True)
    monkeypatch.undo()
    with pytest.raises(FormatError, match="belongs to device"):
        Device.open(path)
    format_device(path, size_bytes=32 << 20, mass=mass, force=True)
    assert check_device(path).clean


def test_what_has_the_name_of_something_whose_deletion_was_finished_is_deleted_for_real(tmp_path: Path) -> None:
    path = tmp_path / "disk.nvm"
    format_device(path, size_bytes=4 << 20, mass=tmp_path / "disk.mass")
    with Device.open(path, writable=True) as device:
        device.create_region("vm1", 1 << 20)
        other = device.create_region("vm2", 1 << 20)
        create_snapshot(other, "monday")
        with device.transaction():  # as far as a killed deletion may come
            record = device.region("vm1").record
            record.put("flags", record.get("flags") | lay.DELETING)
            mark_deleted(other, other.snapshot("monday"))
    with Device.open(path, writable=True) as device:
        assert device.resumed == {("vm1", None), ("vm2", "monday")}
        device.create_region("vm1", 1 << 20)
        create_snapshot(device.region("vm2"), "monday")
        device.delete_region("vm1")
        delete_snapshot(device.region("vm2"), "monday")
        assert [region.name for region in device.regions()] == ["vm2"]
        assert not list(device.region("vm2").snapshots)
        assert device.delete_region("vm1").pointers_updated == 0  # the deletion that the killed process was asked for
        with pytest.raises(NotFoundError):
            device.delete_region("vm1")
