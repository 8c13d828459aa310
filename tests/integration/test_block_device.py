"""A block device as the image: all commands work on it as on a file."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmtool.region.check import check_device

MIB = 1 << 20
SIZE = 24 * MIB
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _losetup(*arguments: str) -> subprocess.CompletedProcess[str]:
    losetup = shutil.which("losetup", path=PATH)
    if losetup is None:
        pytest.skip("losetup is not installed")
    return subprocess.run([losetup, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """A loop device of 24 MiB that holds what somebody left there."""
    backing = tmp_path / "backing"
    backing.write_bytes(random.Random(1).randbytes(SIZE))
    attached = _losetup("--find", "--show", str(backing))
    if attached.returncode:
        pytest.skip(f"no loop device is to be had: {attached.stderr.strip()}")
    device = Path(attached.stdout.strip())
    yield device
    detached = _losetup("--detach", str(device))
    assert detached.returncode == 0, detached.stderr


def _run(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "nvmtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return done


def test_a_block_device_serves_as_image_from_format_to_check(loop: Path, tmp_path: Path) -> None:
    image = str(loop)
    before = hashlib.sha256(loop.read_bytes()).digest()
    _run(tmp_path, "format", image, "--size", "24M", "--mass", "disk.mass", code=9)
    assert hashlib.sha256(loop.read_bytes()).digest() == before
    assert not (tmp_path / "disk.mass").exists()
    _run(tmp_path, "format", image, "--size", "24M", "--mass", "disk.mass", "--force")
    assert loop.is_block_device()
    _run(tmp_path, "region", "create", image, "vm", "--size", "8M")
    rng = random.Random(2)
    contents = {name: rng.randbytes(3 * MIB) + bytes(MIB) + rng.randbytes(4 * MIB) for name in ("monday", "tuesday", "@current")}
    for name, data in contents.items():
        (tmp_path / "raw").write_bytes(data)
        _run(tmp_path, "import", image, "raw")
        if name != "@current":
            _run(tmp_path, "snapshot", "create", image, name)
            # 24 MiB do not hold three states of 7.
            _run(tmp_path, "purge", image, "--mode", "virtblock" if name == "monday" else "pointer-elimination")
    _run(tmp_path, "purge", image, "--mode", "virtblock")
    assert check_device(image, scrub=True).findings == []
    for name, data in contents.items():
        state = [] if name == "@current" else ["--snapshot", name]
        _run(tmp_path, "export", image, "out", *state)
        assert (tmp_path / "out").read_bytes() == data, name
    _run(tmp_path, "snapshot", "delete", image, "monday")
    _run(tmp_path, "check", image, "--scrub")
    # The same bytes in a file are the same image.
    (tmp_path / "copy.nvm").write_bytes(loop.read_bytes())
    assert check_device(tmp_path / "copy.nvm", scrub=True, mass=tmp_path / "disk.mass").clean


def test_an_image_may_leave_the_end_of_a_device_alone_but_not_exceed_it(loop: Path, tmp_path: Path) -> None:
    end = loop.read_bytes()[20 * MIB :]
    refused = _run(tmp_path, "format", str(loop), "--size", "25M", "--mass", "disk.mass", "--force", code=2)
    assert str(SIZE) in refused.stderr
    assert not (tmp_path / "disk.mass").exists()
    _run(tmp_path, "format", str(loop), "--size", "20M", "--mass", "disk.mass", "--force")
    assert check_device(loop).clean
    assert loop.read_bytes()[20 * MIB :] == end


def test_holes_of_an_export_are_zeros_on_a_block_device(loop: Path, tmp_path: Path) -> None:
    _run(tmp_path, "format", "disk.nvm", "--size", "32M", "--mass", "disk.mass")
    _run(tmp_path, "region", "create", "disk.nvm", "vm", "--size", "16M")
    data = bytes(MIB) + random.Random(3).randbytes(3 * MIB) + bytes(12 * MIB)
    (tmp_path / "raw").write_bytes(data)
    _run(tmp_path, "import", "disk.nvm", "raw")
    behind = loop.read_bytes()[len(data) :]
    _run(tmp_path, "export", "disk.nvm", str(loop))
    assert loop.read_bytes() == data + behind


def test_a_block_device_becomes_a_mass_store_only_by_force(loop: Path, tmp_path: Path) -> None:
    before = hashlib.sha256(loop.read_bytes()).digest()
    _run(tmp_path, "format", "disk.nvm", "--size", "32M", "--mass", str(loop), code=9)
    assert hashlib.sha256(loop.read_bytes()).digest() == before
    _run(tmp_path, "format", "disk.nvm", "--size", "32M", "--mass", str(loop), "--force")
    _run(tmp_path, "check", "disk.nvm", "--scrub")
