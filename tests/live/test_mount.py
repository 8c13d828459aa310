"""The mount: regions and snapshots as files that real programs and loop devices use, while the image is managed."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nvmtool.region.device import Device

from .conftest import BLOCK, MIB, Served, environment, need
from .conftest import run as run_command


class Mounted(Served):
    """An image with region vm1, mounted at `mounted`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.mounted = folder / "mnt"
        self.mounted.mkdir()
        self.current = self.mounted / "vm1" / "current"
        self.snapshots = self.mounted / "vm1" / "snapshots"

    def mount(self, *options: object) -> None:
        self._start("mount", str(self.image), str(self.mounted), "--foreground", *map(str, options))

    def end(self) -> None:
        super().end()
        if self.is_mounted:
            subprocess.run(["fusermount3", "-u", "-z", self.mounted], check=False)

    @property
    def is_mounted(self) -> bool:
        return any(line.split()[1] == str(self.mounted) for line in Path("/proc/mounts").read_text().splitlines())

    def write(self, offset: int, data: bytes, *, sync: bool = True) -> None:
        fd = os.open(self.current, os.O_WRONLY)
        try:
            assert os.pwrite(fd, data, offset) == len(data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def read(self, offset: int, length: int, snapshot: str | None = None) -> bytes:
        with (self.current if snapshot is None else self.snapshots / snapshot).open("rb", buffering=0) as file:
            file.seek(offset)
            parts = b""
            while len(parts) < length and (part := file.read(length - len(parts))):
                parts += part
        return parts


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Mounted]:
    """An image that is not mounted yet."""
    pytest.importorskip("pyfuse3", reason="pyfuse3 is not installed")
    need("fusermount3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be used here")
    mounted = Mounted(tmp_path)
    try:
        mounted.create()
        yield mounted
    finally:
        mounted.end()


@pytest.fixture
def mounted(image: Mounted) -> Mounted:
    """The same, mounted."""
    image.mount()
    return image


def fails(code: int, action: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        action()
    assert caught.value.errno == code, caught.value


def test_the_tree_shows_regions_and_snapshots_as_they_come_and_go(mounted: Mounted) -> None:
    fails(errno.ENOENT, (mounted.snapshots / "monday").stat)
    assert os.listdir(mounted.snapshots) == []
    mounted.write(MIB, b"a" * MIB)
    mounted.tool("snapshot", "create", mounted.image, "monday")
    assert os.listdir(mounted.snapshots) == ["monday"]
    status = (mounted.snapshots / "monday").stat()
    assert (status.st_size, status.st_blocks * 512) == (64 * MIB, MIB)
    assert abs(status.st_mtime - time.time()) < 60
    mounted.tool("region", "create", mounted.image, "vm2", "--size", "8M")
    assert sorted(os.listdir(mounted.mounted)) == ["vm1", "vm2"]
    assert (mounted.mounted / "vm2" / "current").stat().st_size == 8 * MIB

    mounted.write(MIB, b"b" * MIB)
    assert mounted.read(MIB, MIB, "monday") == b"a" * MIB
    mounted.tool("snapshot", "delete", mounted.image, "--region", "vm1", "monday")
    fails(errno.ENOENT, (mounted.snapshots / "monday").stat)
    # The same name again is another file with other contents, whatever the kernel remembers.
    mounted.tool("snapshot", "create", mounted.image, "--region", "vm1", "monday")
    assert (mounted.snapshots / "monday").stat().st_ino != status.st_ino
    assert mounted.read(MIB, MIB, "monday") == b"b" * MIB
    mounted.tool("region", "delete", mounted.image, "vm2")
    fails(errno.ENOENT, (mounted.mounted / "vm2").stat)


def test_what_is_no_reading_or_writing_of_bytes_is_refused(mounted: Mounted) -> None:
    mounted.tool("snapshot", "create", mounted.image, "monday")
    fails(errno.EPERM, lambda: os.truncate(mounted.current, MIB))
    fails(errno.EPERM, lambda: mounted.current.chmod(0o644))
    os.truncate(mounted.current, 64 * MIB)
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        fails(errno.EROFS, lambda flags=flags: os.open(mounted.snapshots / "monday", flags))  # type: ignore[misc]
    for action in (
        lambda: (mounted.mounted / "new").touch(),
        lambda: (mounted.snapshots / "new").touch(),
        lambda: (mounted.snapshots / "new").mkdir(),
        mounted.current.unlink,
        lambda: mounted.current.rename(mounted.mounted / "vm1" / "other"),
        lambda: mounted.current.with_name("link").symlink_to("current"),
        lambda: mounted.current.with_name("link").hardlink_to(mounted.current),
        (mounted.snapshots / "monday").unlink,
        mounted.snapshots.rmdir,
    ):
        fails(errno.EPERM, action)
    fails(errno.ENOSPC, lambda: mounted.write(64 * MIB, b"x"))
    assert mounted.read(64 * MIB - 2, 10) == b"\0\0"
    assert mounted.read(65 * MIB, 10) == b""


def test_bytes_at_any_place_are_what_was_written(mounted: Mounted) -> None:
    rng = random.Random(7)
    model = bytearray(4 * MIB)
    fd = os.open(mounted.current, os.O_RDWR)
    try:
        for step in range(300):
            offset = rng.randrange(len(model) - 1)
            data = rng.randbytes(rng.choice((1, 511, BLOCK, 3 * BLOCK + 7, 200_000)))[: len(model) - offset]
            assert os.pwrite(fd, data, offset) == len(data)
            model[offset : offset + len(data)] = data
            if step % 50 == 0:
                mounted.tool("snapshot", "create", mounted.image, f"s{step}")
            start = rng.randrange(len(model))
            assert os.pread(fd, 300_000, start)[: len(model) - start] == model[start : start + 300_000]
    finally:
        os.close(fd)
    assert mounted.read(0, len(model)) == model
    assert mounted.stop() == 0
    mounted.check()
    mounted.tool("export", mounted.image, mounted.folder / "out")
    assert (mounted.folder / "out").read_bytes()[: len(model)] == model


@contextmanager
def loop_device(path: Path, *options: str) -> Iterator[str]:
    losetup = shutil.which("losetup", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if losetup is None or os.geteuid() != 0:
        pytest.skip("loop devices need root and losetup")
    name = run_command(losetup, "--find", "--show", *options, path).strip()
    try:
        yield name
    finally:
        run_command(losetup, "--detach", name)


@contextmanager
def file_system(device: str, folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir()
    run_command("mount", *options, device, folder)
    try:
        yield folder
    finally:
        run_command("umount", folder)


@pytest.mark.parametrize("direct", ["on", "off"])
def test_ext4_on_a_loop_device_keeps_a_real_tree_beside_its_snapshot(direct: str, mounted: Mounted, tmp_path: Path) -> None:
    need("mkfs.ext4", "e2fsck", "diff")
    tree = Path(__file__).parents[2] / "nvmtool"
    with loop_device(mounted.current, f"--direct-io={direct}") as device:
        run_command("mkfs.ext4", "-q", device)
        with file_system(device, tmp_path / "now") as now:
            run_command("cp", "-a", tree, now / "tree")
            run_command("fsfreeze", "--freeze", now)
            mounted.tool("snapshot", "create", mounted.image, "before")
            run_command("fsfreeze", "--unfreeze", now)
            shutil.rmtree(now / "tree" / "region")
            (now / "tree" / "new").write_bytes(random.Random(1).randbytes(8 * MIB))
            os.sync()
            assert mounted.json("purge", mounted.image, "--mode", "virtblock")["blocks_purged"] > 0
            with (
                loop_device(mounted.snapshots / "before", "--read-only") as old,
                file_system(old, tmp_path / "before", "-o", "ro,noload") as before,
            ):
                run_command("diff", "-r", tree, before / "tree")
            assert (now / "tree" / "new").read_bytes() == random.Random(1).randbytes(8 * MIB)
            assert not (now / "tree" / "region").exists()
    for file in (mounted.current, mounted.snapshots / "before"):
        copy = tmp_path / "copy"
        shutil.copyfile(file, copy)
        run_command("e2fsck", "-fn", copy)
    assert mounted.stop() == 0
    mounted.check()


def test_fio_verifies_on_the_mount_while_snapshots_and_purges_go_on(mounted: Mounted) -> None:
    need("fio")
    options = ["--rw=randrw", "--bs=4k", "--iodepth=8", "--size=32m", "--fsync=64", "--verify=crc32c", "--verify_fatal=1", "--loops=2"]
    command = ["fio", "--name=t", f"--filename={mounted.current}", "--ioengine=libaio", "--direct=1", "--allow_file_create=0", *options]
    fio = subprocess.Popen(command, cwd=mounted.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    done = purged = 0
    while fio.poll() is None and not (done >= 4 and purged):
        mounted.tool("snapshot", "create", mounted.image, f"s{done}")
        purged += mounted.json("purge", mounted.image, "--mode", "virtblock")["blocks_purged"]
        done += 1
    output, _ = fio.communicate(timeout=120)
    assert fio.returncode == 0, output[-3000:]
    assert done and purged
    assert mounted.stop() == 0
    mounted.check()


def test_what_is_open_is_not_taken_away(mounted: Mounted) -> None:
    mounted.tool("snapshot", "create", mounted.image, "monday")
    with mounted.current.open("rb"), (mounted.snapshots / "monday").open("rb"):
        for command in (("snapshot", "delete"), ("snapshot", "revert")):
            assert "in use" in mounted.tool(*command, mounted.image, "monday", code=6)
        assert "in use" in mounted.tool("region", "delete", mounted.image, "vm1", code=6)
    mounted.write(0, b"later")
    mounted.tool("snapshot", "revert", mounted.image, "monday")
    assert mounted.read(0, 5) == bytes(5)
    mounted.tool("snapshot", "delete", mounted.image, "monday")


def test_a_damaged_block_on_the_mass_store_fails_its_reads_alone_and_is_named(mounted: Mounted) -> None:
    blocks = [random.Random(number).randbytes(BLOCK) for number in range(64)]
    mounted.write(0, b"".join(blocks))
    mounted.tool("snapshot", "create", mounted.image, "monday")
    mounted.write(0, bytes(64 * BLOCK))
    assert mounted.json("purge", mounted.image, "--mode", "virtblock")["blocks_purged"] == 64
    held = mounted.mass.read_bytes()
    at = held.find(blocks[40])
    with mounted.mass.open("r+b") as file:
        file.seek(at)
        file.write(bytes([blocks[40][0] ^ 1]))
    fails(errno.EIO, lambda: mounted.read(40 * BLOCK, BLOCK, "monday"))
    assert "vm1@monday" in mounted.log and "checksum" in mounted.log
    assert mounted.read(0, BLOCK, "monday") == blocks[0]
    assert mounted.read(0, BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize("auto_purge", [False, True])
def test_a_full_device_is_enospc_to_that_write_unless_purging_makes_room(auto_purge: bool, tmp_path: Path, image: Mounted) -> None:
    for path in (image.image, image.mass):
        path.unlink()
    image.create(24, 16)
    image.mount(*(("--auto-purge", "20%") if auto_purge else ()))
    contents = random.Random(3).randbytes(12 * MIB)
    image.write(0, contents)
    image.tool("snapshot", "create", image.image, "monday")
    other = random.Random(4).randbytes(12 * MIB)
    if auto_purge:
        image.write(0, other)
        assert image.read(0, len(other)) == other
    else:
        fails(errno.ENOSPC, lambda: [image.write(at, other[at : at + MIB]) for at in range(0, len(other), MIB)])
        image.tool("purge", image.image, "--mode", "virtblock")
        image.write(0, other)
        assert image.read(0, len(other)) == other
    assert image.read(0, len(contents), "monday") == contents
    assert image.stop() == 0
    image.check()


def test_what_was_synced_survives_a_kill_and_the_next_mount_says_what_is_in_the_way(mounted: Mounted) -> None:
    contents = random.Random(5).randbytes(4 * MIB)
    mounted.write(0, contents)
    mounted.write(8 * MIB, b"unsynced", sync=False)
    assert mounted.stop(signal.SIGKILL) == -signal.SIGKILL
    said = mounted.tool("mount", mounted.image, mounted.mounted, code=6)
    assert f"fusermount3 -u {mounted.mounted}" in said
    run_command("fusermount3", "-u", mounted.mounted)
    mounted.check()
    mounted.mount()
    assert mounted.read(0, len(contents)) == contents
    assert mounted.read(8 * MIB, 8) in (b"unsynced", bytes(8))


@pytest.mark.parametrize("way", ["umount", "fusermount3", "SIGTERM", "SIGINT", "SIGHUP"])
def test_each_way_to_end_it_flushes_what_was_written(way: str, mounted: Mounted) -> None:
    mounted.write(5, b"kept", sync=False)
    assert mounted.process is not None
    if way.startswith("SIG"):
        assert mounted.stop(signal.Signals[way]) == 0
    else:
        run_command(*(("umount",) if way == "umount" else ("fusermount3", "-u")), mounted.mounted)
        assert mounted.process.wait(30) == 0
        mounted.process = None
    assert not mounted.is_mounted
    assert mounted.tool("read", mounted.image, "--offset", "5", "--length", "4") == "kept"
    mounted.check()


def test_a_running_point_is_as_new_as_what_was_written_to_it(mounted: Mounted) -> None:
    def changed() -> int:
        time.sleep(0.01)
        return mounted.current.stat().st_mtime_ns

    times = [changed(), changed()]
    assert times[0] == times[1]
    mounted.write(0, b"new")
    times.append(changed())
    mounted.tool("snapshot", "create", mounted.image, "monday")
    mounted.write(0, b"newer")
    times += [changed(), changed()]
    mounted.tool("snapshot", "revert", mounted.image, "monday")
    times.append(_after_a_second(mounted.current))
    assert times[1] < times[2] < times[3] == times[4] < times[5]


def _after_a_second(path: Path) -> int:
    """Return a file's time when the kernel asks for it again."""
    time.sleep(1.1)
    return path.stat().st_mtime_ns


def test_a_listing_follows_every_snapshot_that_comes_and_goes(mounted: Mounted) -> None:
    for number, name in enumerate(("a", "b", "c"), 1):
        mounted.tool("snapshot", "create", mounted.image, name)
        there = {entry.name: entry.inode() for entry in os.scandir(mounted.snapshots)}
        assert name in there and len(set(there.values())) == number
        assert there == {each: (mounted.snapshots / each).stat().st_ino for each in there}
    mounted.tool("snapshot", "delete", mounted.image, "b")
    assert sorted(os.listdir(mounted.snapshots)) == ["a", "c"]
    assert not (mounted.snapshots / "b").exists()


def test_the_background_mount_is_usable_when_the_command_returns(image: Mounted) -> None:
    log = image.folder / "mount.log"
    assert image.tool("mount", image.image, image.mounted, "--log", log).startswith("ready: ")
    image.write(0, b"here")
    assert image.read(0, 4) == b"here"
    assert "in use by process" in image.tool("mount", image.image, _folder(image, "other"), code=6)
    assert "mounted there already" in image.tool("mount", image.image, image.mounted, code=6)
    run_command("umount", image.mounted)
    deadline = time.monotonic() + 30
    while subprocess.run(
        [sys.executable, "-m", "nvmtool", "discard", image.image, "--offset", "0", "--length", "4K"], check=False
    ).returncode:
        assert time.monotonic() < deadline, "the mount's process is still there"
        time.sleep(0.1)
    image.check()


def test_who_has_an_image_is_told_while_a_file_system_hangs(image: Mounted, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = Served(tmp_path_factory.mktemp("other"))
    try:
        other.create(4, 1)
        image.mount()
        assert image.process is not None
        with image.current.open("rb") as file:
            reader = subprocess.Popen(["sleep", "600"], stdin=file)  # not this process, which goes on to fork
        with Device.open(other.image, writable=True):
            image.process.send_signal(signal.SIGSTOP)
            try:
                said = other.tool("snapshot", "create", other.image, "monday", code=6)
            finally:
                image.process.send_signal(signal.SIGCONT)
                reader.kill()
                reader.wait()
        assert f"in use by process {os.getpid()} " in said
    finally:
        other.end()


def _folder(image: Mounted, name: str) -> Path:
    folder = image.folder / name
    folder.mkdir()
    return folder


def test_what_cannot_be_mounted_is_explained(image: Mounted) -> None:
    full = _folder(image, "full")
    (full / "file").touch()
    assert "is not empty" in image.tool("mount", image.image, full, code=9)
    assert "no such directory" in image.tool("mount", image.image, image.folder / "none", code=9)
    assert "is no directory" in image.tool("mount", image.image, full / "file", code=2)
    assert "no region 'vm9'" in image.tool("mount", image.image, image.mounted, "--region", "vm9", code=9)
    assert image.tool("mount", full / "file", image.mounted, code=3)
    assert "--log" in image.tool("mount", image.image, image.mounted, "--foreground", "--log", "x", code=2)
    assert not image.is_mounted


def test_without_pyfuse3_the_error_says_how_to_install_it(image: Mounted) -> None:
    absent = _folder(image, "absent")
    (absent / "pyfuse3.py").write_text("raise ModuleNotFoundError(\"No module named 'pyfuse3'\", name='pyfuse3')\n")
    paths = os.pathsep.join([str(absent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "nvmtool", "mount", str(image.image), str(image.mounted)]
    done = subprocess.run(command, env=environment(PYTHONPATH=paths), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'nvmtool[mount]'" in done.stderr and "libfuse3-dev" in done.stderr
