"""The whole main job once, on real data: what `make demo` runs.

A file system image made of this machine's files is imported, snapshotted three times while it changes, purged, and read back. Then a VM
runs on a swap file that is defragmented meanwhile. Each command is printed as it runs; any difference ends the demo with exit code 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MIB = 1 << 20
IMAGE_MIB = 64
SOURCES = ("/usr/share/doc", "/usr/lib/python3", "/usr/share")
SNAPSHOTS = ("monday", "tuesday", "wednesday")
MEMORY_MIB = 128
SPARSE_SECONDS = 6
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
REPOSITORY = Path(__file__).resolve().parent.parent


class Demo:
    """One run, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": PATH, "PYTHONPATH": str(REPOSITORY)}
        self.failures: list[str] = []
        self.ext4 = all(tool(name) for name in ("mke2fs", "debugfs", "e2fsck"))

    def run(self, *command: str, name: str | None = None) -> None:
        """Print a command, run it, and end the demo when it fails."""
        print(f"\n$ {shlex.join((name, *command[3:]) if name else command)}", flush=True)
        subprocess.run(command, cwd=self.folder, env=self.environment, check=True)

    def nvmtool(self, *arguments: str) -> None:
        """Run nvmtool as a process of its own."""
        self.run(sys.executable, "-m", "nvmtool", *arguments, name="nvmtool")

    def facts(self, *arguments: str) -> dict[str, Any]:
        """Return what a command says with --json, without printing it."""
        command = [sys.executable, "-m", "nvmtool", *arguments, "--json"]
        out = subprocess.run(command, cwd=self.folder, env=self.environment, check=True, capture_output=True, text=True).stdout
        facts: dict[str, Any] = json.loads(out)
        return facts

    @contextmanager
    def beside(self, *arguments: str) -> Iterator[None]:
        """Let an nvmtool process run until the block ends, then ask it to end and wait for it."""
        print(f"\n$ {shlex.join(('nvmtool', *arguments))} &", flush=True)
        command = [sys.executable, "-m", "nvmtool", *arguments]
        process = subprocess.Popen(command, cwd=self.folder, env=self.environment)
        try:
            yield
            print(f"\n$ kill {process.pid}; wait", flush=True)
            process.terminate()
            if code := process.wait(60):
                raise subprocess.CalledProcessError(code, command)
        finally:
            process.kill()
            process.wait()

    def expect(self, holds: bool, what: str) -> None:
        """Say whether something holds, and remember when it does not."""
        print(f"  {'ok' if holds else 'DIFFERENT'}: {what}")
        if not holds:
            self.failures.append(what)


def tool(name: str) -> str | None:
    """Return where a program is, the administrator's folders included."""
    return shutil.which(name, path=PATH)


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n--- {text}", flush=True)


def sha256(path: Path) -> str:
    """Return a file's checksum."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def machine_files(wanted: int) -> list[Path]:
    """Return files of this machine, `wanted` bytes of them at most, in a fixed order."""
    found: list[Path] = []
    seen: set[Path] = set()
    total = 0
    for source in SOURCES:
        for path in sorted(Path(source).rglob("*")):
            if path in seen or path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                continue
            seen.add(path)
            size = path.stat().st_size
            if total + size <= wanted:
                found.append(path)
                total += size
        if total > wanted * 9 // 10:
            break
    return found


def build_file_system(demo: Demo, files: list[Path]) -> None:
    """Make rootfs.ext4 of copies of the files."""
    tree = demo.folder / "tree"
    tree.mkdir()
    for number, path in enumerate(files):
        shutil.copyfile(path, tree / f"{number:05}-{path.name}")
    with (demo.folder / "rootfs.ext4").open("wb") as image:
        image.truncate(IMAGE_MIB * MIB)
    demo.run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", "tree", "rootfs.ext4")
    shutil.rmtree(tree)


def build_raw(demo: Demo, files: list[Path]) -> None:
    """Make rootfs.ext4's stand-in: the files one behind the other, each at a block boundary."""
    with (demo.folder / "rootfs.ext4").open("wb") as image:
        for path in files:
            data = path.read_bytes()
            if image.tell() + len(data) + 4096 > IMAGE_MIB * MIB:
                break
            image.write(data)
            image.seek(-image.tell() % 4096, os.SEEK_CUR)
        image.truncate(IMAGE_MIB * MIB)


def change_file_system(demo: Demo, files: list[Path], day: int) -> None:
    """Remove some files of the image and put a new one in."""
    bundle = demo.folder / "bundle"
    bundle.write_bytes(b"".join(path.read_bytes() for path in files[day::9])[: 4 * MIB])
    lines = [f"rm {number:05}-{path.name}" for number, path in enumerate(files) if number % 7 == day and " " not in path.name]
    (demo.folder / "changes").write_text("\n".join([*lines, f"write bundle bundle-{day}", ""]))
    print(f"\n({len(lines)} files removed, one of {bundle.stat().st_size // 1024} KiB written)")
    print("$ debugfs -w -f changes rootfs.ext4", flush=True)
    command = ["debugfs", "-w", "-f", "changes", "rootfs.ext4"]
    subprocess.run(command, cwd=demo.folder, env=demo.environment, check=True, capture_output=True)


def change_raw(demo: Demo, files: list[Path], day: int) -> None:
    """Write files of the machine over the image at scattered places."""
    with (demo.folder / "rootfs.ext4").open("r+b") as image:
        for number, path in enumerate(files[day::9]):
            image.seek(number * 7 % IMAGE_MIB * MIB)
            image.write(path.read_bytes()[:MIB])


def take_snapshots(demo: Demo, files: list[Path]) -> dict[str, str]:
    """Import and snapshot three times, changing the data in between; return each state's checksum."""
    kept = {}
    for day, name in enumerate(SNAPSHOTS):
        demo.nvmtool("import", "disk.nvm", "rootfs.ext4")
        demo.nvmtool("snapshot", "create", "disk.nvm", name)
        kept[name] = sha256(demo.folder / "rootfs.ext4")
        say(f"the data change after {name}")
        (change_file_system if demo.ext4 else change_raw)(demo, files, day)
    demo.nvmtool("import", "disk.nvm", "rootfs.ext4")
    kept["@current"] = sha256(demo.folder / "rootfs.ext4")
    return kept


def purge(demo: Demo) -> None:
    """Purge, and show what that freed."""
    before = demo.facts("info", "disk.nvm")
    for arguments in (["info"], ["map"], ["purge", "--dry-run"], ["purge"], ["info"], ["map"]):
        mode = ["--mode", "virtblock"] if arguments[0] == "purge" else []
        demo.nvmtool(arguments[0], "disk.nvm", *mode, *arguments[1:])
    after = demo.facts("info", "disk.nvm")
    freed = after["free_bytes"] - before["free_bytes"]
    demo.expect(freed > 0, f"the purge freed {freed / MIB:.1f} MiB of NVM")
    region = after["regions"][0]
    demo.expect(region["non_active_bytes"] == 0, "nothing non-active is left in NVM")


def read_back(demo: Demo, kept: dict[str, str]) -> None:
    """Export every state and compare it with what was imported."""
    for name, checksum in kept.items():
        state = [] if name == "@current" else ["--snapshot", name]
        file = f"{name.removeprefix('@')}.raw"
        demo.nvmtool("export", "disk.nvm", file, *state)
        demo.expect(sha256(demo.folder / file) == checksum, f"{name}: sha256 {checksum[:16]}… as imported")
        if demo.ext4:
            result = subprocess.run(["e2fsck", "-fn", file], cwd=demo.folder, env=demo.environment, capture_output=True, check=False)
            demo.expect(result.returncode == 0, f"{name}: e2fsck -fn finds a clean file system")
        (demo.folder / file).unlink()


def main_job(demo: Demo) -> None:
    """Format, import, snapshot, purge, read back, check."""
    files = machine_files(IMAGE_MIB * MIB * 6 // 10)
    say(f"real data: {len(files)} files of this machine")
    if demo.ext4:
        build_file_system(demo, files)
    else:
        print("no mke2fs, debugfs or e2fsck here (Debian: e2fsprogs): raw data instead of a file system")
        build_raw(demo, files)
    say("a device image, a region in it, three snapshots of changing data")
    demo.nvmtool("format", "disk.nvm", "--size", "256M", "--mass", "disk.mass")
    demo.nvmtool("region", "create", "disk.nvm", "vm1", "--size", f"{IMAGE_MIB}M")
    kept = take_snapshots(demo, files)
    demo.nvmtool("snapshot", "list", "disk.nvm")
    say("purge: what only snapshots need leaves the NVM")
    purge(demo)
    say("every state reads back as it was")
    read_back(demo, kept)
    demo.nvmtool("check", "disk.nvm", "--scrub")


def wait_until_sparse(demo: Demo) -> None:
    """Wait until swapping in has left at least twice the storage blocks that the pages need."""
    deadline = time.monotonic() + SPARSE_SECONDS
    while time.monotonic() < deadline:
        facts = demo.facts("swap", "info", "vm1.swap")
        if facts["blocks_allocated"] > 2 * facts["blocks_optimal"]:
            return
        time.sleep(0.5)


def swap_act(demo: Demo) -> None:
    """Run a VM on a swap file with a reservation, defragment it meanwhile, and verify every page."""
    run = ("swap", "run", "vm1.swap", "--stamps", "vm1.stamps")
    say("a swap file for a VM, its storage reserved")
    demo.nvmtool("reservation", "create", "pool.rsv", "--size", f"{MEMORY_MIB * 3 // 2}M")
    demo.nvmtool("swap", "create", "vm1.swap", "--memory", f"{MEMORY_MIB}M", "--reservation", "pool.rsv")
    demo.nvmtool(*run, "--resident", "16M", "--workload", "sweep", "--ops", str(MEMORY_MIB * 256))
    say("the VM gets more memory, and its swap file becomes sparse; it is defragmented while the VM runs")
    with demo.beside(*run, "--resident", f"{MEMORY_MIB * 3 // 4}M"):
        wait_until_sparse(demo)
        demo.nvmtool("swap", "map", "vm1.swap")
        before = demo.facts("reservation", "info", "pool.rsv")["held_bytes"]
        demo.nvmtool("defrag", "vm1.swap")
        after = demo.facts("reservation", "info", "pool.rsv")["held_bytes"]
        demo.nvmtool("swap", "map", "vm1.swap")
    demo.expect(after > before, f"{(after - before) // MIB} MiB went back to the reservation while the VM ran")
    say("every page is the one that was swapped out last")
    demo.nvmtool(*run, "--resident", "16M", "--ops", "0", "--verify")
    for arguments in (["swap", "check", "vm1.swap"], ["swap", "delete", "vm1.swap"], ["reservation", "check", "pool.rsv"]):
        demo.nvmtool(*arguments)
    facts = demo.facts("reservation", "info", "pool.rsv")
    demo.expect(facts["held_bytes"] == facts["size_bytes"], "the reservation has all of its blocks again")


def main() -> int:
    """Run the demo; 0 when everything came back identical."""
    with tempfile.TemporaryDirectory(prefix="nvmtool-demo-") as folder:
        demo = Demo(Path(folder))
        try:
            main_job(demo)
            swap_act(demo)
        except subprocess.CalledProcessError as error:
            print(f"\ndemo: FAILED: {shlex.join(map(str, error.cmd))} ended with {error.returncode}", file=sys.stderr)
            return 1
        if demo.failures:
            print(f"\ndemo: FAILED: {'; '.join(demo.failures)}", file=sys.stderr)
            return 1
    print("\ndemo: everything came back identical")
    return 0


if __name__ == "__main__":
    sys.exit(main())
