"""kill -9 at random moments of real commands: what was acknowledged is there, the image is clean, the same command finishes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from nvmtool.region.check import check_device
from nvmtool.region.device import Device

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SIZE = 64 * MIB


class Image:
    """An image with two snapshots of known contents, driven by real processes."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.kills = 0
        first = self.random.randbytes(24 * MIB)
        second = self.random.randbytes(16 * MIB) + first[16 * MIB :]
        self.contents = {"first": first.ljust(SIZE, b"\0"), "second": second.ljust(SIZE, b"\0")}
        for name, data in self.contents.items():
            (folder / f"{name}.raw").write_bytes(data)
        self.run("format", "disk.nvm", "--size", "160M", "--mass", "disk.mass")
        self.run("region", "create", "disk.nvm", "vm", "--size", str(SIZE))
        for name in self.contents:
            self.kill("import", "disk.nvm", f"{name}.raw")
            self.run("import", "disk.nvm", f"{name}.raw")
            self.run("snapshot", "create", "disk.nvm", name)

    def run(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> None:
        done = subprocess.run([sys.executable, "-m", "nvmtool", *arguments], cwd=self.folder, capture_output=True, check=False)
        assert done.returncode in codes, (arguments, done.returncode, done.stdout, done.stderr)

    def kill(self, *arguments: str) -> None:
        process = subprocess.Popen([sys.executable, "-m", "nvmtool", *arguments], cwd=self.folder, stdout=subprocess.DEVNULL)
        time.sleep(self.random.uniform(0.1, 0.35))
        process.kill()
        self.kills += process.wait() == -9

    def verify(self, *names: str) -> None:
        path = self.folder / "disk.nvm"
        result = check_device(path)
        assert result.clean, result.findings
        with Device.open(path) as device:
            for name in names:
                assert device.region().read(0, SIZE, name) == self.contents[name], name


@pytest.mark.parametrize("seed", [1])
def test_killed_commands_lose_nothing_and_finish_when_run_again(tmp_path: Path, seed: int) -> None:
    image = Image(tmp_path, seed)
    for command in (
        ("purge", "disk.nvm", "--mode", "virtblock"),
        ("recall", "disk.nvm", "--snapshot", "first"),
        ("region", "convert", "disk.nvm", "vm", "--mapping", "direct"),
        ("purge", "disk.nvm", "--mode", "pointer-elimination"),
        ("snapshot", "revert", "disk.nvm", "first"),
        ("recall", "disk.nvm"),
        ("region", "convert", "disk.nvm", "vm", "--mapping", "virtblock"),
    ):
        image.kill(*command)
        image.verify("first", "second")
        image.run(*command)
        image.verify("first", "second")
    image.kill("snapshot", "delete", "disk.nvm", "first")
    image.verify("second")
    # 9: the kill came after the last step, so that there is nothing left to delete.
    image.run("snapshot", "delete", "disk.nvm", "first", codes=(0, 9))
    image.verify("second")
    assert image.kills, "every command was quicker than its kill"


def test_a_failed_write_of_the_mass_store_loses_nothing(tmp_path: Path) -> None:
    image = Image(tmp_path, 3)
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20)); from nvmtool.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", limit, "purge", "disk.nvm", "--mode", "virtblock"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("\n") == 1
    assert "disk.mass" in done.stderr or "disk.nvm" in done.stderr
    image.verify("first", "second")
    image.run("check", "disk.nvm", "--scrub")
    image.run("purge", "disk.nvm", "--mode", "virtblock")
    image.verify("first", "second")
    assert os.stat(tmp_path / "disk.mass").st_size >= 16 * MIB
