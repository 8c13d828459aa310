"""Ctrl-C in the middle of a command: one line, exit code 130, nothing lost, and the same command does the rest."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.purge import non_active_blocks, purge
from nvmtool.region.snapshots import create_snapshot

MIB = 1 << 20
BLOCK = 4096
# The second one is for a machine on which the command ends before the signal comes.
SIZES = (12 * MIB, 128 * MIB)

COMMANDS = {
    "purge virtblock": ("purge", "disk.nvm", "--mode", "virtblock"),
    "purge pointer-elimination": ("purge", "disk.nvm", "--mode", "pointer-elimination"),
    "recall": ("recall", "disk.nvm", "--snapshot", "old"),
    "import": ("import", "disk.nvm", "newest"),
}


class Image:
    """An image whose snapshot `old` and whose running point `new` differ everywhere, and the file `newest`, all of one size."""

    def __init__(self, folder: Path, size: int, *, purged: bool) -> None:
        folder.mkdir()
        self.path = folder / "disk.nvm"
        self.size = size
        rng = np.random.default_rng(size)
        self.old, self.new, self.newest = (rng.bytes(size) for _ in range(3))
        (folder / "newest").write_bytes(self.newest)
        # A batch is a quarter of the image: two commits for each command.
        format_device(self.path, size_bytes=size * 13 // 4 // BLOCK * BLOCK, mass=folder / "disk.mass", sparse=True)
        with Device.open(self.path, writable=True) as device:
            region = device.create_region("vm", size)
            region.write(0, self.old)
            create_snapshot(region, "old")
            region.write(0, self.new)
            region.flush()
            if purged:
                purge(device, mode="virtblock")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "nvmtool", *arguments]
        return subprocess.Popen(command, cwd=self.path.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def interrupt(self, *arguments: str, after_bytes: int) -> bool:
        """Send SIGINT to a command that has written so many bytes; tell whether it was still at work."""
        process = self.start(*arguments)
        while process.poll() is None and _written(process.pid) < after_bytes:
            time.sleep(0.0005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        if process.returncode == 0:
            return False
        assert process.returncode == 130, (arguments, process.returncode, err)
        assert err.startswith(b"nvmtool: interrupted; ")
        assert err.count(b"\n") == 1, err
        assert out == b""
        return True

    def read(self) -> tuple[bytes, bytes]:
        """Return the contents of the snapshot and of the running point, of an image that checks clean.

        Free slots may still occupy storage: they are given back after the next checkpoint, which an interrupted command does not reach.
        """
        found = check_device(self.path, scrub=True).findings
        assert {(finding.severity, finding.structure) for finding in found} <= {("leak", "mass store")}, found
        with Device.open(self.path) as device:
            region = device.region()
            return region.read(0, self.size, "old"), region.read(0, self.size)


def _written(pid: int) -> int:
    """Return how many bytes a process gave to write calls so far: all data go that way, since tmp_path is no DAX."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(lines[1].removeprefix("wchar: "))


def _differing(one: bytes, other: bytes) -> np.ndarray:
    """Return for each block whether the two contents differ there."""
    different: np.ndarray = (np.frombuffer(one, "<u8") != np.frombuffer(other, "<u8")).reshape(-1, BLOCK // 8).any(axis=1)
    return different


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_in_the_middle_loses_nothing_and_the_same_command_does_the_rest(name: str, share: float, tmp_path: Path) -> None:
    command = COMMANDS[name]
    for size in SIZES:
        image = Image(tmp_path / str(size), size, purged=name == "recall")
        if image.interrupt(*command, after_bytes=int(size * share)):
            break
    else:
        pytest.fail(f"{name} was quicker than its interruption, even with {SIZES[-1]} bytes")
    snapshot, running = image.read()
    assert snapshot == image.old
    if name == "import":
        assert not (_differing(running, image.new) & _differing(running, image.newest)).any()
    else:
        assert running == image.new
    again = image.start(*command)
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert image.read() == (image.old, image.newest if name == "import" else image.new)
    assert check_device(image.path, repair=True, scrub=True).clean
    assert image.read() == (image.old, image.newest if name == "import" else image.new)
    with Device.open(image.path) as device:
        assert non_active_blocks(device.region()) == (0 if name.startswith("purge") else image.size // BLOCK)
