"""A file system without space: nothing is lost or left behind, the command says so, and goes on when there is room again."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nvmtool.errors import NoSpaceError
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.purge import purge
from nvmtool.region.snapshots import create_snapshot

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def _nvmtool(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nvmtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def _fill(folder: Path, leave: int = 0) -> Path:
    """Take all space of a file system but some bytes of it."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        free = shutil.disk_usage(folder).free - leave
        os.posix_fallocate(file.fileno(), 0, free // 4096 * 4096)
    return filler


def _image(path: Path, mass: Path, regions: tuple[str, ...] = ("vm",)) -> dict[tuple[str, str | None], bytes]:
    """Make an image on a file system; its regions of 2 MiB were written anew since their snapshots."""
    rng, contents = random.Random(1), {}
    format_device(path, size_bytes=16 * MIB, mass=mass)
    with Device.open(path, writable=True) as device:
        for name in regions:
            region = device.create_region(name, 2 * MIB)
            for snapshot in ("old", None):
                contents[name, snapshot] = rng.randbytes(2 * MIB)
                region.write(0, contents[name, snapshot])
                region.flush()
                if snapshot:
                    create_snapshot(region, snapshot)
    return contents


def _assert_intact(path: Path, contents: dict[tuple[str, str | None], bytes]) -> None:
    result = check_device(path, scrub=True)
    assert result.clean, result.findings[:3]
    with Device.open(path) as device:
        for (name, snapshot), data in contents.items():
            assert device.region(name).read(0, 2 * MIB, snapshot) == data


def test_format_without_space_leaves_nothing(small_tmpfs: Path) -> None:
    done = _nvmtool(small_tmpfs, "format", "disk.nvm", "--size", "64M", "--mass", "disk.mass")
    assert (done.returncode, done.stderr.count("\n")) == (5, 1), done.stderr
    assert list(small_tmpfs.iterdir()) == []


def test_export_without_space_leaves_nothing(tmp_path: Path, small_tmpfs: Path) -> None:
    contents = _image(tmp_path / "disk.nvm", tmp_path / "disk.mass")
    filler = _fill(small_tmpfs, leave=MIB)
    done = _nvmtool(tmp_path, "export", "disk.nvm", str(small_tmpfs / "out.raw"))
    assert (done.returncode, done.stderr.count("\n")) == (5, 1), done.stderr
    assert list(small_tmpfs.iterdir()) == [filler]
    _assert_intact(tmp_path / "disk.nvm", contents)


def test_a_file_system_that_fills_up_in_the_middle_of_a_purge(tmp_path: Path, small_tmpfs: Path) -> None:
    path = tmp_path / "disk.nvm"
    contents = _image(path, small_tmpfs / "disk.mass", ("one", "two"))
    fillers: list[Path] = []

    def fill(done: int, total: int, unit: str) -> None:
        if not fillers:
            fillers.append(_fill(small_tmpfs, leave=MIB))

    with pytest.raises(NoSpaceError), Device.open(path, writable=True) as device:
        purge(device, mode="virtblock", progress=fill)
    _assert_intact(path, contents)
    fillers[0].unlink()
    with Device.open(path, writable=True) as device:
        assert purge(device, mode="virtblock").blocks_remaining == 0
        assert device.slots.used == 2 * 512
    _assert_intact(path, contents)


def test_an_image_that_was_allocated_is_written_on_a_full_file_system(tmp_path: Path, small_tmpfs: Path) -> None:
    path = small_tmpfs / "disk.nvm"
    format_device(path, size_bytes=6 * MIB, mass=tmp_path / "disk.mass")
    _fill(small_tmpfs)
    with Device.open(path, writable=True) as device:
        region = device.create_region("vm", 4 * MIB)
        region.write(0, b"x" * MIB)
        create_snapshot(region, "old")
        region.write(0, b"y" * MIB)
        purge(device, mode="virtblock")
    assert check_device(path, scrub=True).clean
    with Device.open(path) as device:
        assert device.region().read(0, MIB, "old") == b"x" * MIB
