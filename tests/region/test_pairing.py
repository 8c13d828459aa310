"""An image and its mass store stay a pair: copies of the image, processes that were cut off, long readers."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from nvmtool.errors import BusyError, RefusedError
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.mass import MassStore
from nvmtool.region.purge import purge
from nvmtool.region.recall import recall
from nvmtool.region.snapshots import create_snapshot, delete_snapshot

BLOCK = 4096
NBLOCKS = 256
OLD, NEW = (bytes([letter]) * BLOCK * NBLOCKS for letter in b"on")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image whose snapshot s is purged."""
    path = tmp_path / "disk.nvm"
    format_device(path, size_bytes=256 << 20, mass=tmp_path / "disk.mass", sparse=True)
    with Device.open(path, writable=True) as device:
        region = device.create_region("r", BLOCK * NBLOCKS)
        region.write(0, OLD)
        create_snapshot(region, "s")
        region.write(0, NEW)
        purge(device, mode="virtblock")
    return path


def read(image: Path, snapshot: str | None) -> bytes:
    with Device.open(image) as device:
        return device.region().read(0, BLOCK * NBLOCKS, snapshot)


def stored(mass: Path) -> int:
    """Bytes of the mass store that occupy storage, its header left out."""
    with mass.open("rb") as file:
        end, found, position = os.fstat(file.fileno()).st_size, 0, BLOCK
        while position < end:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found += position - start
    return found


def test_an_image_does_not_change_a_mass_store_that_its_copy_has_changed(image: Path) -> None:
    copy = image.with_name("copy.nvm")
    shutil.copy(image, copy)
    with Device.open(copy, writable=True) as device:
        delete_snapshot(device.region(), "s")
    with pytest.raises(RefusedError, match="another copy"):
        Device.open(image, writable=True)
    assert [finding.structure for finding in check_device(image).findings] == ["mass store"]
    assert not check_device(image, repair=True, scrub=True).clean, "its blocks are gone: nothing can make it whole"
    assert read(copy, None) == NEW
    assert check_device(copy, scrub=True).clean


def test_a_pair_whose_blocks_are_all_there_is_joined_again_by_repair(image: Path) -> None:
    copy = image.with_name("copy.nvm")
    shutil.copy(image, copy)
    with Device.open(copy, writable=True) as device:
        create_snapshot(device.region(), "t")
        device.region().write(0, OLD)
        purge(device, mode="virtblock")
    assert not check_device(image, repair=True).clean, "without having read every purged block nobody knows"
    assert check_device(image, repair=True, scrub=True).clean
    assert read(image, "s") == OLD
    with Device.open(image, writable=True) as device:
        delete_snapshot(device.region(), "s")


def test_two_copies_do_not_change_one_mass_store_at_once(image: Path) -> None:
    copy = image.with_name("copy.nvm")
    shutil.copy(image, copy)
    with Device.open(image, writable=True), pytest.raises(BusyError, match=r"disk\.mass"):
        Device.open(copy, writable=True)


def test_what_a_killed_process_leaves_in_the_mass_store_goes_with_the_next_writer(image: Path) -> None:
    mass = image.with_name("disk.mass")
    child = os.fork()
    if child == 0:
        device = Device.open(image, writable=True)
        recall(device, snapshot="s")
        os._exit(0)  # after the commits, before the checkpoint that gives the slots back
    os.waitpid(child, 0)
    assert stored(mass) == NBLOCKS * BLOCK
    assert check_device(image, scrub=True).clean
    with Device.open(image, writable=True):
        pass
    assert stored(mass) == 0
    assert check_device(image, scrub=True).clean
    assert read(image, "s") == OLD


def test_slots_whose_flush_is_interrupted_are_given_back_at_once(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mass = image.with_name("disk.mass")
    before, fence = stored(mass), MassStore.fence

    def interrupted(store: MassStore) -> None:
        if stored(mass) > before:
            raise KeyboardInterrupt
        fence(store)

    with Device.open(image, writable=True) as device:
        create_snapshot(device.region(), "t")
        device.region().write(0, OLD)
    monkeypatch.setattr(MassStore, "fence", interrupted)
    with pytest.raises(KeyboardInterrupt), Device.open(image, writable=True) as device:
        purge(device, mode="virtblock")
    assert stored(mass) == before
    monkeypatch.undo()
    assert check_device(image, scrub=True).clean
    assert read(image, "t") == NEW


def test_a_reader_keeps_its_state_and_holds_no_writer_up(image: Path) -> None:
    with Device.open(image) as reader:
        started = time.monotonic()
        for number in range(5):
            with Device.open(image, writable=True) as device:
                region = device.region()
                region.write(0, bytes([number]) * BLOCK * NBLOCKS)
                create_snapshot(region, f"n{number}")
                if number == 1:
                    delete_snapshot(region, "s")
                purge(device, mode="virtblock")
        assert time.monotonic() - started < 30, "a checkpoint that waits for the reader takes a minute"
        assert reader.region().read(0, BLOCK * NBLOCKS, "s") == OLD
        assert reader.region().read(0, BLOCK * NBLOCKS) == NEW
    with Device.open(image, writable=True) as device:
        for number in range(5):
            assert device.region().read(0, BLOCK, f"n{number}") == bytes([number]) * BLOCK
    assert check_device(image, scrub=True).clean
    assert stored(image.with_name("disk.mass")) == 4 * NBLOCKS * BLOCK


def test_a_flush_that_readers_hold_up_can_be_tried_again(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvmtool.media.imagefile._CHECKPOINT_WAIT_SECONDS", 0.0)
    contents = {}
    with Device.open(image, writable=True) as device:
        region = device.region()
        with Device.open(image), pytest.raises(BusyError):
            for number in range(100_000):
                index, contents_of = number % NBLOCKS, bytes([number % 251]) * BLOCK
                region.write(index * BLOCK, contents_of)
                contents[index] = contents_of
                region.flush()
        region.flush()
        assert all(region.read(index * BLOCK, BLOCK) == data for index, data in contents.items())
    assert check_device(image, scrub=True).clean
    with Device.open(image) as device:
        assert all(device.region().read(index * BLOCK, BLOCK) == data for index, data in contents.items())
