"""kill -9 at any moment loses nothing: the image checks clean, every state reads the same, and the same command finishes."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.snapshots import create_snapshot

SIZE = 16 << 20


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image that has snapshots s0 to s3 of 16 MiB, and the file new."""
    folder = tmp_path_factory.mktemp("origin")
    rng = random.Random(7)
    format_device(folder / "disk.nvm", size_bytes=96 << 20, mass=folder / "disk.mass", sparse=True)
    with Device.open(folder / "disk.nvm", writable=True) as device:
        region = device.create_region("vm1", SIZE)
        for name in ("s0", "s1", "s2", "s3"):
            for start in range(0, SIZE, 1 << 20):
                region.write(start, rng.randbytes(1 << 19))
            create_snapshot(region, name)
        region.write(0, rng.randbytes(SIZE))
    (folder / "new").write_bytes(rng.randbytes(SIZE))
    return folder


def states(path: Path) -> dict[str | None, bytes]:
    with Device.open(path) as device:
        region = device.region()
        names = [None, *(s.name for s in region.snapshots if not s.get("parent") >> 51)]
        return {name: region.read(0, SIZE, name) for name in names}


def snapshot_record_exists(path: Path, name: str) -> bool:
    with Device.open(path) as device:
        return any(s.name == name for s in device.region().snapshots)


COMMANDS = {
    "purge virtblock": ["purge", "disk.nvm", "--mode", "virtblock"],
    "purge pointer-elimination": ["purge", "disk.nvm", "--mode", "pointer-elimination"],
    "snapshot delete": ["snapshot", "delete", "disk.nvm", "s1"],
    "import": ["import", "disk.nvm", "new"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_kill_at_random_moments_loses_nothing(command: str, origin: Path, tmp_path: Path) -> None:
    before, new = states(origin / "disk.nvm"), (origin / "new").read_bytes()
    rng = random.Random(command)
    arguments = [sys.executable, "-m", "nvmtool", *COMMANDS[command]]
    for number in range(4):
        folder = tmp_path / str(number)
        shutil.copytree(origin, folder)
        process = subprocess.Popen(arguments, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.15, 0.6))
        process.kill()
        process.wait()
        result = check_device(folder / "disk.nvm", scrub=False)
        assert result.clean, result.findings[:5]
        for finish in (process.returncode != 0, False):
            found = states(folder / "disk.nvm")
            for name in before:
                if name is None and command == "import":
                    pairs = zip(*(memoryview(d).cast("Q") for d in (found[None], before[None], new)), strict=True)
                    assert all(f in (b, n) for f, b, n in pairs)
                elif not (name == "s1" and command == "snapshot delete"):
                    assert found[name] == before[name]
            if finish:
                # Killed behind its last commit, the deletion has happened whole: then there is nothing left to delete.
                gone = command == "snapshot delete" and not snapshot_record_exists(folder / "disk.nvm", "s1")
                again = subprocess.run(arguments, cwd=folder, check=False, capture_output=True)
                assert again.returncode == (9 if gone else 0), again.stderr
                assert check_device(folder / "disk.nvm", scrub=True).clean
        after = states(folder / "disk.nvm")
        if command == "import":
            assert after[None] == new
        assert ("s1" in after) == (command != "snapshot delete")
