"""The rows about device images; the peers (qemu-img, qemu-io) are optional."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from measure import (
    BLOCK,
    ENVIRONMENT,
    GIB,
    MIB,
    REPEATS,
    Row,
    Timed,
    interleaved,
    nvmtool,
    process,
    random_file,
    seconds,
    speed_row,
    warm,
)

from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.purge import purge
from nvmtool.region.snapshots import create_snapshot
from nvmtool.region.transfer import import_file

RANDOM_WRITES = 16384
DURABLE_WRITES = 1000
OWNERS = 64
QEMU = shutil.which("qemu-img") is not None and shutil.which("qemu-io") is not None


class ImageRows:
    """One run, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.diverged = 0

    def device(self, name: str, size: int, region: int, *, sparse: bool = False) -> Path:
        """Make a fresh device with one region."""
        path = self.folder / f"{name}.nvm"
        format_device(path, size_bytes=size, mass=self.folder / f"{name}.mass", force=True, sparse=sparse)
        with Device.open(path, writable=True) as device:
            device.create_region("r", region)
        return path

    def remove(self, *names: str) -> None:
        """Delete files of this run that are not needed any more."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    @cache  # noqa: B019
    def source(self) -> Path:
        """2 GiB of random data."""
        return random_file(self.folder / "source.raw", 2 * GIB)

    def qcow2(self, source: Path, name: str) -> Path:
        """Convert to a qcow2 with 4 KiB clusters."""
        path = self.folder / name
        command = ["qemu-img", "convert", "-S", "4k", "-O", "qcow2", "-o", "cluster_size=4096", str(source), str(path)]
        subprocess.run(command, check=True)
        return path

    @cache  # noqa: B019
    def pair(self) -> tuple[Path, Path | None]:
        """Return a device and a qcow2 of the same 2 GiB."""
        path = self.device("pair", 3 * GIB, 2 * GIB)
        with Device.open(path, writable=True) as device:
            import_file(device.region(), str(self.source()))
        qcow2 = self.qcow2(self.source(), "pair.qcow2") if QEMU else None
        warm(path, *([qcow2] if qcow2 else []))
        return path, qcow2

    # --- rows

    def purge(self) -> Row:
        """Purge of 1 GiB of non-active blocks against one contiguous write of the same bytes."""
        source = random_file(self.folder / "purge.raw", GIB)
        data = source.read_bytes()
        row = speed_row(
            "purge of 1 GiB, virtblock / pwritev + fdatasync", lambda: self._purge_once(source), lambda: self._pwritev_once(data), 0.7
        )
        self.remove("purge.raw", "purge.nvm", "purge.mass", "purge.peer")
        return row

    def _purge_once(self, source: Path) -> float:
        path = self.device("purge", GIB + 256 * MIB, GIB)
        with Device.open(path, writable=True) as device:
            region = device.region()
            import_file(region, str(source))
            create_snapshot(region, "s")
            region.discard(0, GIB)
        warm(path)
        with Device.open(path, writable=True) as device:
            started = time.perf_counter()
            result = purge(device, mode="virtblock")
            taken = time.perf_counter() - started
            assert result.bytes_purged == GIB, result
        return taken

    def _pwritev_once(self, data: bytes) -> float:
        path = self.folder / "purge.peer"
        path.unlink(missing_ok=True)
        os.sync()
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        view = memoryview(data)

        def write() -> None:
            for start in range(0, len(data), 4 * MIB):
                assert os.pwritev(fd, [view[start : start + 4 * MIB]], start) == 4 * MIB
            os.fdatasync(fd)

        taken = seconds(write)
        os.close(fd)
        return taken

    def pointers(self) -> Row:
        """Pointer updates per block in both modes, 64 snapshots with private level-1 tables."""
        virtblock, elimination = self._purge_owned("virtblock"), self._purge_owned("pointer-elimination")
        row = {
            "work": f"pointer updates per block, {OWNERS} snapshots: virtblock, pointer elimination",
            "ours_s": virtblock[1],
            "peer_s": elimination[1],
            "ratio": None,
            "target": f"exactly 1 and {OWNERS}",
            "met": (virtblock[0], elimination[0]) == (1, OWNERS),
            "note": f"{virtblock[0]:g} and {elimination[0]:g} pointers per block; times: virtblock, elimination",
        }
        self.remove("owned.nvm", "owned.mass")
        return row

    def _purge_owned(self, mode: str) -> tuple[float, float]:
        tables, per_table = 8, 512
        path = self.device("owned", 256 * MIB, tables * per_table * BLOCK)
        with Device.open(path, writable=True) as device:
            region = device.region()
            region.write(0, random.Random(1).randbytes(region.size_bytes))
            for number in range(OWNERS):
                for table in range(tables):  # one block in each table makes the table private to the snapshot
                    region.write(table * per_table * BLOCK, random.Random(number + table).randbytes(BLOCK))
                create_snapshot(region, f"s{number}")
            region.discard(0, region.size_bytes)
            result = purge(device, mode=mode)
        markers, shared = tables * OWNERS, tables * (per_table - 1)
        assert result.blocks_purged == shared + markers, result
        return (result.pointers_updated - markers) / shared, result.seconds

    def snapshot(self) -> Row:
        """Create a snapshot, whole processes; and the words it changes at two sizes."""
        path, qcow2 = self.pair()
        names = iter(range(1000))
        ours = lambda: process(nvmtool("snapshot", "create", path, f"p{next(names)}", "--quiet"))  # noqa: E731
        theirs = (lambda: process(["qemu-img", "snapshot", "-c", f"p{next(names)}", str(qcow2)])) if qcow2 else None
        words = [self._snapshot_words(size) for size in (GIB, 1024 * GIB)]
        row = speed_row("snapshot create, process / qemu-img snapshot -c", ours, theirs, 1.5)
        row["note"] = f"words changed: {words[0]} at 1 GiB, {words[1]} at 1 TiB"
        row["met"] = row["met"] if words[0] == words[1] else False
        return row

    def _snapshot_words(self, size: int) -> int:
        path = self.device("words", 64 * MIB, size)
        words = []
        with Device.open(path, writable=True) as device:
            region = device.region()
            region.write(size - MIB, b"x" * BLOCK)
            region.flush()
            commit = device.journal.commit
            device.journal.commit = lambda: (words.append(device.journal.pending_words), commit())[1]  # type: ignore[method-assign]
            create_snapshot(region, "s")
        self.remove("words.nvm", "words.mass")
        return sum(words)

    def random(self) -> Row:
        """16,384 random writes after a snapshot, then one flush."""
        self.pair()
        row = speed_row("16,384 random 4 KiB writes after a snapshot, library / qemu-io", self._diverge_ours, self._diverge_theirs(), 10)
        row["note"] = f"{RANDOM_WRITES / row['ours_s']:,.0f} writes a second"
        self.diverged = REPEATS
        return row

    def _diverge_ours(self) -> float:
        offsets = random.sample(range(2 * GIB // BLOCK), RANDOM_WRITES)
        with Device.open(self.pair()[0], writable=True) as device:
            region = device.region()
            create_snapshot(region, f"d{time.time_ns()}")
            started = time.perf_counter()
            data = random.randbytes(BLOCK)
            for block in offsets:
                region.write(block * BLOCK, data)
            region.flush()
            return time.perf_counter() - started

    def _diverge_theirs(self) -> Timed | None:
        qcow2 = self.pair()[1]
        return (lambda: self._qemu_io(qcow2)) if qcow2 else None

    def _qemu_io(self, qcow2: Path) -> float:
        offsets = random.sample(range(2 * GIB // BLOCK), RANDOM_WRITES)
        subprocess.run(["qemu-img", "snapshot", "-c", f"d{time.time_ns()}", str(qcow2)], check=True)
        script = "".join(f"write -q -P 7 {block * BLOCK} {BLOCK}\n" for block in offsets)
        return process(["qemu-io", "-t", "writeback", "-f", "qcow2", str(qcow2)], text=script + "flush\n")

    def check(self) -> Row:
        """Check with three diverged snapshots."""
        path, qcow2 = self.pair()
        for _ in range(self.diverged, REPEATS):
            self._diverge_ours()
            if qcow2:
                self._qemu_io(qcow2)
        self.diverged = REPEATS
        theirs = (lambda: process(["qemu-img", "check", "-q", str(qcow2)])) if qcow2 else None
        return speed_row("check, 3 diverged snapshots / qemu-img check", lambda: process(nvmtool("check", path, "--quiet")), theirs, 2)

    def import_(self) -> Row:
        """Import of 2 GiB of random data, whole processes."""
        theirs = (lambda: seconds(lambda: self.qcow2(self.source(), "import.qcow2"))) if QEMU else None
        row = speed_row("import of 2 GiB random data / qemu-img convert to qcow2", self._import_once, theirs, 1)
        self.remove("import.nvm", "import.mass", "import.qcow2")
        return row

    def _import_once(self) -> float:
        path = self.device("import", 2 * GIB + 256 * MIB, 2 * GIB)
        os.sync()
        return process(nvmtool("import", path, self.source(), "--quiet"))

    def export(self) -> Row:
        """Export of 2 GiB to raw, whole processes."""
        path, qcow2 = self.pair()
        target = self.folder / "export.raw"
        convert = ["qemu-img", "convert", "-O", "raw", str(qcow2), str(target)]
        theirs = (lambda: self._fresh(target, convert)) if qcow2 else None
        row = speed_row("export to raw / qemu-img convert", lambda: self._fresh(target, nvmtool("export", path, target, "-q")), theirs, 1)
        self.remove("export.raw")
        return row

    def _fresh(self, target: Path, command: list[str]) -> float:
        target.unlink(missing_ok=True)
        os.sync()
        return process(command)

    def map(self) -> Row:
        """Map as JSON of 1,048,576 extents, whole processes."""
        source = random_file(self.folder / "map.raw", 4 * GIB, every_other=True)
        path = self.device("map", 2 * GIB + 512 * MIB, 4 * GIB)
        with Device.open(path, writable=True) as device:
            import_file(device.region(), str(source))
        qcow2 = self.qcow2(source, "map.qcow2") if QEMU else None
        theirs = (lambda: process(["qemu-img", "map", "--output=json", str(qcow2)])) if qcow2 else None
        ours = lambda: process(nvmtool("map", path, "--snapshot", "@current", "--json"))  # noqa: E731
        row = speed_row("map as JSON, 1,048,576 extents / qemu-img map", ours, theirs, 1)
        self.remove("map.raw", "map.nvm", "map.mass", "map.qcow2")
        return row

    def durable(self) -> Row:
        """1,000 durable writes of single blocks after bulk use."""
        source = random_file(self.folder / "durable.raw", GIB)
        path = self.device("durable", GIB + 512 * MIB, GIB)
        with Device.open(path, writable=True) as device:
            import_file(device.region(), str(source))
        row = speed_row(
            "1,000 durable single-block writes, library / pwrite + fdatasync",
            lambda: self._durable_ours(path),
            lambda: self._durable_theirs(source),
            0.5,
        )
        self.remove("durable.raw", "durable.nvm", "durable.mass")
        return row

    def _durable_ours(self, path: Path) -> float:
        data = random.randbytes(BLOCK)
        offsets = [block * BLOCK for block in random.sample(range(GIB // BLOCK), DURABLE_WRITES)]
        with Device.open(path, writable=True) as device:
            region = device.region()
            started = time.perf_counter()
            for offset in offsets:
                region.write(offset, data)
                region.flush()
            return time.perf_counter() - started

    def _durable_theirs(self, path: Path) -> float:
        data = random.randbytes(BLOCK)
        offsets = [block * BLOCK for block in random.sample(range(GIB // BLOCK), DURABLE_WRITES)]
        fd = os.open(path, os.O_RDWR)
        started = time.perf_counter()
        for offset in offsets:
            os.pwrite(fd, data, offset)
            os.fdatasync(fd)
        taken = time.perf_counter() - started
        os.close(fd)
        return taken

    def help(self) -> Row:
        """`nvmtool --help` against Python's own start."""
        script = Path(sys.executable).with_name("nvmtool")
        ours = [str(script), "--help"] if script.exists() else nvmtool("--help")
        many = lambda command: statistics.median(process(command) for _ in range(15))  # noqa: E731
        mine, peer = interleaved(lambda: many(ours), lambda: many([sys.executable, "-c", "pass"]))
        assert peer is not None
        ratio = mine / peer
        work = "nvmtool --help / python -c pass (times)"
        return {"work": work, "ours_s": mine, "peer_s": peer, "ratio": ratio, "target": "<= 4 x its time", "met": ratio <= 4}

    def memory(self) -> Row:
        """Anonymous memory of four commands on a 64 GiB region with 4 GiB of data."""
        source = random_file(self.folder / "memory.raw", 4 * GIB)
        path = self.device("memory", 5 * GIB, 64 * GIB)
        peaks = {"import": peak_anonymous(nvmtool("import", path, source, "-q"))}
        self.remove("memory.raw")
        peaks["export"] = peak_anonymous(nvmtool("export", path, self.folder / "memory.out", "-q"))
        self.remove("memory.out")
        with Device.open(path, writable=True) as device:
            create_snapshot(device.region(), "s")
            device.region().discard(0, 4 * GIB)
        peaks["purge"] = peak_anonymous(nvmtool("purge", path, "--mode", "virtblock", "-q"))
        peaks["check"] = peak_anonymous(nvmtool("check", path, "-q"))
        self.remove("memory.nvm", "memory.mass")
        note = ", ".join(f"{name} {size / MIB:.0f} MiB" for name, size in peaks.items())
        met = max(peaks.values()) < 256 * MIB
        work = "anonymous memory, 64 GiB region with 4 GiB of data"
        return {"work": work, "ours_s": None, "peer_s": None, "ratio": None, "target": "< 256 MiB", "met": met, "note": note}


def peak_anonymous(command: list[str]) -> int:
    """Run a process and return the most anonymous memory that it was seen to have."""
    most = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT) as child:
        status = Path(f"/proc/{child.pid}/status")
        while child.poll() is None:
            lines = [line for line in status.read_text().splitlines() if line.startswith("RssAnon:")]
            most = max([most, *(int(line.split()[1]) * 1024 for line in lines)])
            time.sleep(0.002)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return most


ROWS: dict[str, Callable[[ImageRows], Row]] = {
    "help": ImageRows.help,
    "pointers": ImageRows.pointers,
    "durable": ImageRows.durable,
    "purge": ImageRows.purge,
    "import": ImageRows.import_,
    "snapshot": ImageRows.snapshot,
    "export": ImageRows.export,
    "random": ImageRows.random,
    "check": ImageRows.check,
    "map": ImageRows.map,
    "memory": ImageRows.memory,
}
