"""A Linux guest whose disk is a served region: it makes ext4 and works there, while the host takes snapshots and purges."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.guest.guest import Guest

from .conftest import Served, need, run

# A guest under a translator, on a machine that does other things too: its own waits end before this one does.
pytestmark = [pytest.mark.usefixtures("guests"), pytest.mark.timeout(1200)]

FILES = 12
WRITE = "for n in $(seq {first} {last}); do dd if=/dev/urandom of=/mnt/f$n bs=64k count=16 2>/dev/null || exit 1; done"
SUMS = "cd /mnt && sha256sum f* >sums && cd / && sync"


def _sbin(command: str) -> str:
    found = shutil.which(command, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if found is None:
        pytest.skip(f"{command} is not installed")
    return found


def _fsck(raw: Path, *, replay: bool) -> None:
    """Insist that the file system is clean, after its journal was replayed where the guest had no time to say good-bye."""
    if replay:
        done = subprocess.run([_sbin("e2fsck"), "-p", raw], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stdout
    done = subprocess.run([_sbin("e2fsck"), "-fn", raw], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def _files(raw: Path, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    subprocess.run([_sbin("debugfs"), "-R", f"rdump / {folder}", raw], capture_output=True, check=True)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _require_sums(files: dict[str, bytes], count: int) -> None:
    lines = re.findall(r"^(\w+)  (f\d+)$", files["sums"].decode(), re.MULTILINE)
    assert len(lines) == count
    for checksum, name in lines:
        assert hashlib.sha256(files[name]).hexdigest() == checksum, name


def test_a_guest_keeps_its_files_through_snapshots_and_purges(served: Served, tmp_path: Path) -> None:
    need("nbdcopy")
    drive = f"file=nbd+unix:///vm1?socket={served.socket},if=none,id=disk,format=raw,cache=none,discard=unmap"
    with Guest(
        work="shell", memory_mib=256, balloon=False, meminfo=False, extra=("-drive", drive, "-device", "virtio-blk-pci,drive=disk")
    ) as guest:
        guest.shell("/sbin/mke2fs -q -t ext4 /dev/vda && mkdir -p /mnt && mount -t ext4 -o discard /dev/vda /mnt")
        guest.shell(WRITE.format(first=1, last=FILES))
        guest.shell(SUMS)

        # Frozen: the snapshot is a file system that was put away.
        guest.shell("fsfreeze --freeze /mnt")
        served.tool("snapshot", "create", served.image, "frozen")
        guest.shell("fsfreeze --unfreeze /mnt")

        # In full swing: the snapshot is what a power failure would leave.
        guest.shell("rm /mnt/sums")
        guest.shell(f"({WRITE.format(first=1, last=FILES)}; sync; : >/done) >/dev/null 2>&1 & true")
        purged = served.json("purge", served.image, "--mode", "virtblock")["blocks_purged"]
        served.tool("snapshot", "create", served.image, "running")
        guest.shell("while [ ! -e /done ]; do sleep 0.1; done")
        purged += served.json("purge", served.image, "--mode", "virtblock")["blocks_purged"]
        assert purged > FILES * 256 // 2

        guest.shell(f"rm /mnt/f2 /mnt/f4 && {SUMS} && echo 3 >/proc/sys/vm/drop_caches && cd /mnt && sha256sum -c sums && cd /")
        guest.shell("umount /mnt && sync")
        assert "I/O error" not in guest.shell("dmesg")

    for name, replay, count in (("frozen", False, FILES), ("running", True, None), (None, False, FILES - 2)):
        raw = tmp_path / f"{name}.raw"
        run("nbdcopy", served.uri("vm1" if name is None else f"vm1@{name}"), raw)
        _fsck(raw, replay=replay)
        if count is not None:
            _require_sums(_files(raw, tmp_path / f"files-{name}"), count)
    served.check()
    assert served.stop() == 0
    served.check()
