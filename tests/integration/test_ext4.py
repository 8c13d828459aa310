"""A real ext4 file system: every state comes back bit for bit after purging, and e2fsck finds each of them clean."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

MIB = 1 << 20
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
TOOLS = ("mke2fs", "debugfs", "e2fsck")
IMAGE_MIB = 24
DATA_BYTES = 12 * MIB
DAYS = ("monday", "tuesday", "wednesday")

pytestmark = pytest.mark.skipif(
    any(shutil.which(name, path=PATH) is None for name in TOOLS), reason="mke2fs, debugfs or e2fsck is not installed"
)


class Disk:
    """disk.nvm in a folder of its own, beside the file system image disk.ext4; every command is a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": PATH}

    def run(self, *command: str | Path, code: int = 0) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, (command, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def nvmtool(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "nvmtool", *arguments)

    def sha256(self, name: str) -> str:
        with (self.folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def change(self, day: int, names: list[str]) -> None:
        """Remove every seventh file of the file system and write a new one of 2 MiB, as a mounted one would be changed."""
        removed = names[day::7]
        (self.folder / "fresh").write_bytes(hashlib.shake_128(bytes([day])).digest(2 * MIB))
        (self.folder / "changes").write_text("".join(f"rm {name}\n" for name in removed) + f"write fresh fresh-{day}\n")
        self.run("debugfs", "-w", "-f", "changes", "disk.ext4")
        listing = self.run("debugfs", "-R", "ls -p", "disk.ext4")
        assert f"/fresh-{day}/" in listing
        assert f"/{removed[0]}/" not in listing


def _library_files() -> list[Path]:
    """Return files of Python's own library, DATA_BYTES of them at most."""
    found, total = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
        size = path.stat().st_size
        if size and total + size <= DATA_BYTES and "site-packages" not in path.parts:
            found.append(path)
            total += size
    assert total > DATA_BYTES // 2
    return found


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with disk.nvm that has a snapshot for each day and was changed once more, and the checksum of each state."""
    disk = Disk(tmp_path_factory.mktemp("origin"))
    (disk.folder / "tree").mkdir()
    names = []
    for number, path in enumerate(_library_files()):
        names.append(f"{number:05}-{path.name}")
        shutil.copyfile(path, disk.folder / "tree" / names[-1])
    disk.run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", "tree", "disk.ext4", f"{IMAGE_MIB}M")
    shutil.rmtree(disk.folder / "tree")
    disk.nvmtool("format", "disk.nvm", "--size", "96M", "--mass", "disk.mass")
    disk.nvmtool("region", "create", "disk.nvm", "vm1", "--size", f"{IMAGE_MIB}M")
    kept = {}
    for day, name in enumerate((*DAYS, "@current")):
        if day:
            disk.change(day, names)
        disk.nvmtool("import", "disk.nvm", "disk.ext4")
        kept[name] = disk.sha256("disk.ext4")
        if name in DAYS:
            disk.nvmtool("snapshot", "create", "disk.nvm", name)
    assert len(set(kept.values())) == len(kept)
    return disk.folder, kept


@pytest.mark.parametrize("modes", [["virtblock"], ["pointer-elimination"], ["virtblock", "pointer-elimination"]], ids=" then ".join)
def test_every_state_of_a_file_system_is_exact_and_clean_after_purging(
    modes: list[str], origin: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, kept = origin
    disk = Disk(tmp_path)
    for name in ("disk.nvm", "disk.mass"):
        shutil.copy(folder / name, tmp_path)
    for number, mode in enumerate(modes):
        # The first of two leaves the most of it to the second.
        limit = ["--max-bytes", "1M"] if number < len(modes) - 1 else []
        assert "purged" in disk.nvmtool("purge", "disk.nvm", "--mode", mode, *limit)
    (region,) = json.loads(disk.nvmtool("info", "disk.nvm", "--json"))["regions"]
    assert region["non_active_bytes"] == 0
    assert region["purged_bytes"] > MIB
    for name, checksum in kept.items():
        disk.nvmtool("export", "disk.nvm", "out.ext4", *([] if name == "@current" else ["--snapshot", name]))
        assert disk.sha256("out.ext4") == checksum, name
        disk.run("e2fsck", "-fn", "out.ext4")
    assert "clean" in disk.nvmtool("check", "disk.nvm", "--scrub")
