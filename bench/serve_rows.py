"""The rows about served regions: fio and nbdcopy on our server, and on qemu-nbd with a qcow2 of 64 KiB clusters; all of them are needed."""

from __future__ import annotations

import gc
import json
import select
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import ENVIRONMENT, GIB, REPEATS, Row, interleaved, nvmtool, process, random_file, speed_row, warm
from swap_rows import no_peer, xfs

from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.transfer import import_file

REGION_BYTES = GIB
RUN_SECONDS = 4
REQUESTS = 100_000
COPY_ON_WRITES = 65_536
DURABLE_WRITES = 4_000
NEEDED = ("fio", "nbdcopy", "qemu-img", "qemu-nbd")
MISSING = [command for command in NEEDED if shutil.which(command) is None]


@contextmanager
def running(command: list[str], *, ready: str | None = None, socket: Path) -> Iterator[str]:
    """Run a server and yield the URI of its default export; `socket` is there once it can be used."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert process.stdout is not None
        if ready is not None:
            assert select.select([process.stdout], [], [], 60.0)[0] and ready in process.stdout.readline(), command
        while not socket.exists():
            assert process.poll() is None, command
            select.select([], [], [], 0.01)
        yield f"nbd+unix:///?socket={socket}"
    finally:
        process.terminate()
        process.wait(60)


def fio(target: list[str], *options: str) -> dict[str, Any]:
    """Run fio on an export or a file and return what it found for its one job."""
    command = ["fio", "--name=t", "--output-format=json", "--randrepeat=0", "--allow_file_create=0", *target, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    assert job["error"] == 0, done.stdout
    assert isinstance(job, dict)
    return job


def by_nbd(uri: str) -> list[str]:
    """Return fio's options for an export."""
    return ["--ioengine=nbd", f"--uri={uri}"]


class ServeRows:
    """One run, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "source.raw"

    # --- what is served

    def image(self) -> Path:
        """Make an image whose region is full of random data, and bring it into memory."""
        path = self.folder / "ours.nvm"
        format_device(path, size_bytes=4 * REGION_BYTES, mass=self.folder / "ours.mass", force=True)
        with Device.open(path, writable=True) as device:
            device.create_region("r", REGION_BYTES)
            import_file(device.region("r"), self.full())
        gc.collect()
        warm(path)
        return path

    def full(self) -> Path:
        """Return the raw file that both sides hold."""
        if not self.source.exists():
            random_file(self.source, REGION_BYTES)
        return self.source

    def qcow2(self) -> Path:
        """Make the peer's image with the same contents."""
        path = self.folder / "theirs.qcow2"
        path.unlink(missing_ok=True)
        process(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=64k", str(self.full()), str(path)])
        warm(path)
        return path

    @contextmanager
    def serving(self, path: Path) -> Iterator[str]:
        """Serve an image of ours."""
        socket = self.folder / "ours.sock"
        with running(nvmtool("serve", path, "--socket", socket), ready="ready", socket=socket) as uri:
            yield uri

    @contextmanager
    def peer(self, path: Path) -> Iterator[str]:
        """Serve an image of the peer's."""
        socket = self.folder / "theirs.sock"
        socket.unlink(missing_ok=True)
        command = ["qemu-nbd", "--persistent", "--shared=8", "--format=qcow2", f"--socket={socket.absolute()}", str(path)]
        with running(command, socket=socket) as uri:
            yield uri

    @contextmanager
    def mounting(self, path: Path) -> Iterator[list[str]]:
        """Mount an image of ours and yield fio's options for the region's file."""
        folder = self.folder / "mnt"
        folder.mkdir(exist_ok=True)
        current = folder / "r" / "current"
        with running(nvmtool("mount", path, folder, "--foreground"), ready="ready", socket=current):
            yield [f"--filename={current}", "--ioengine=libaio", "--direct=1"]

    def compare(self, work: str, measure: Callable[[str], float], target: float, *, prepare: tuple[Any, Any] | None = None) -> Row:
        """Measure on both servers in turn, each on an image that is made once, or again for each measurement."""
        if MISSING:
            return no_peer(work, f">= {target} x", f"needs {', '.join(MISSING)}")
        if prepare is None:
            with self.serving(self.image()) as ours, self.peer(self.qcow2()) as theirs:
                measure(ours), measure(theirs)  # the first run of each fills caches
                row = speed_row(work, lambda: measure(ours), lambda: measure(theirs), target)
        else:
            row = speed_row(work, *(self._fresh(make, serve, measure) for make, serve in prepare), target)
        self.clean()
        return row

    def _fresh(self, make: Callable[[], Path], serve: Callable[[Path], Any], measure: Callable[[str], float]) -> Callable[[], float]:
        def once() -> float:
            with serve(make()) as uri:
                return measure(uri)

        return once

    def clean(self) -> None:
        """Remove all but the source."""
        for path in self.folder.iterdir():
            if path != self.source and path.is_file():
                path.unlink()

    # --- requests at full speed

    def requests(self, pattern: str) -> Row:
        """4 KiB at random, depth 16."""
        work = f"serve: {REQUESTS:,} random {pattern.removeprefix('rand')}s of 4 KiB, depth 16 / qemu-nbd, qcow2"
        return self.compare(work, lambda uri: self._requests_once(pattern, by_nbd(uri)), 1.5)

    def sequential(self, pattern: str) -> Row:
        """1 MiB, 8 at a time, with the flush."""
        work = f"serve: {pattern} of 1 GiB, 1 MiB x 8, flushed / qemu-nbd, qcow2"
        return self.compare(work, lambda uri: self._sequential_once(pattern, by_nbd(uri)), 1.0)

    def mounted_requests(self, pattern: str) -> Row:
        """The same on the mount, past the page cache."""
        work = f"mount: {REQUESTS:,} random {pattern.removeprefix('rand')}s of 4 KiB, depth 16 / qemu-nbd, qcow2"
        return self._compare_mounted(work, lambda target: self._requests_once(pattern, target), 0.6)

    def mounted_sequential(self, pattern: str) -> Row:
        """The same on the mount, past the page cache."""
        work = f"mount: {pattern} of 1 GiB, 1 MiB x 8, flushed / qemu-nbd, qcow2"
        return self._compare_mounted(work, lambda target: self._sequential_once(pattern, target), 1.0)

    def _compare_mounted(self, work: str, measure: Callable[[list[str]], float], target: float) -> Row:
        if MISSING:
            return no_peer(work, f">= {target} x", f"needs {', '.join(MISSING)}")
        with self.mounting(self.image()) as ours, self.peer(self.qcow2()) as theirs:
            measure(ours), measure(by_nbd(theirs))
            row = speed_row(work, lambda: measure(ours), lambda: measure(by_nbd(theirs)), target)
        self.clean()
        return row

    def _requests_once(self, pattern: str, target: list[str]) -> float:
        options = ("--bs=4k", "--iodepth=16", "--time_based", f"--runtime={RUN_SECONDS}", f"--size={REGION_BYTES}")
        return REQUESTS / float(fio(target, f"--rw={pattern}", *options)[pattern.removeprefix("rand")]["iops"])

    def _sequential_once(self, pattern: str, target: list[str]) -> float:
        options = ("--bs=1m", "--iodepth=8", f"--size={REGION_BYTES}", "--end_fsync=1")
        return float(fio(target, f"--rw={pattern}", *options)["job_runtime"]) / 1000

    def copy_out(self) -> Row:
        """nbdcopy of the whole region to nowhere."""
        measure = lambda uri: process(["nbdcopy", uri, "null:"])  # noqa: E731
        return self.compare("serve: nbdcopy out, 1 GiB / qemu-nbd, qcow2", measure, 1.0)

    def copy_in(self, *, empty: bool) -> Row:
        """nbdcopy into an image, with the flush."""
        measure = lambda uri: process(["nbdcopy", "--flush", str(self.full()), uri])  # noqa: E731
        work = f"serve: nbdcopy into {'an empty' if empty else 'a full'} image, 1 GiB, flushed / qemu-nbd, qcow2"
        prepare = ((self._empty, self.serving), (self._empty_qcow2, self.peer)) if empty else None
        return self.compare(work, measure, 1.0, prepare=prepare)

    def _empty(self) -> Path:
        path = self.folder / "ours.nvm"
        format_device(path, size_bytes=2 * REGION_BYTES, mass=self.folder / "ours.mass", force=True)
        with Device.open(path, writable=True) as device:
            device.create_region("r", REGION_BYTES)
        gc.collect()
        warm(self.full())
        return path

    def _empty_qcow2(self) -> Path:
        path = self.folder / "theirs.qcow2"
        path.unlink(missing_ok=True)
        process(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", str(path), str(REGION_BYTES)])
        warm(self.full())
        return path

    # --- after a snapshot, and durable

    def after_snapshot(self) -> Row:
        """Copy on write: random writes, and the flush that makes them durable."""
        measure = lambda uri: self._copy_on_writes(by_nbd(uri))  # noqa: E731
        work = f"serve: {COPY_ON_WRITES:,} random writes after a snapshot, flushed / qemu-nbd, qcow2"
        return self.compare(work, measure, 10.0, prepare=((self._snapshot, self.serving), (self._qcow2_snapshot, self.peer)))

    def after_reflink(self) -> Row:
        """The same against a reflinked file of XFS, which fio writes without a server between."""
        target = 1.0
        work = f"serve: {COPY_ON_WRITES:,} random writes after a snapshot, flushed / XFS reflink"
        try:
            with xfs(self.folder, 4 * REGION_BYTES) as mounted:
                row = speed_row(
                    work,
                    self._fresh(self._snapshot, self.serving, lambda uri: self._copy_on_writes(by_nbd(uri))),
                    lambda: self._reflinked(mounted),
                    target,
                )
        except (OSError, subprocess.CalledProcessError) as error:
            row = no_peer(work, f">= {target} x", f"no XFS here: {error}")
        self.clean()
        return row

    def _snapshot(self) -> Path:
        path = self.image()
        process(nvmtool("snapshot", "create", path, "s"))
        warm(path)
        return path

    def _qcow2_snapshot(self) -> Path:
        path = self.qcow2()
        process(["qemu-img", "snapshot", "-c", "s", str(path)])
        warm(path)
        return path

    def _reflinked(self, mounted: Path) -> float:
        path, copy = mounted / "file", mounted / "copy"
        if not path.exists():
            process(["cp", str(self.full()), str(path)])
        copy.unlink(missing_ok=True)
        process(["cp", "--reflink=always", str(path), str(copy)])
        process(["sync", "-f", str(mounted)])
        seconds = self._copy_on_writes([f"--filename={path}", "--ioengine=libaio", "--direct=1"])
        path.unlink()
        copy.rename(path)
        return seconds

    def _copy_on_writes(self, target: list[str]) -> float:
        options = ("--rw=randwrite", "--bs=4k", "--iodepth=16", "--end_fsync=1", f"--size={REGION_BYTES}")
        job = fio(target, *options, f"--number_ios={COPY_ON_WRITES}")
        return float(job["job_runtime"]) / 1000

    def durable(self) -> Row:
        """A flush after each write, one at a time."""

        def measure(uri: str) -> float:
            options = ("--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1", f"--size={REGION_BYTES}")
            return float(fio(by_nbd(uri), *options, f"--number_ios={DURABLE_WRITES}")["job_runtime"]) / 1000

        return self.compare(f"serve: {DURABLE_WRITES:,} random writes of 4 KiB, a flush after each / qemu-nbd, qcow2", measure, 1.0)

    # --- management under clients

    def purging(self) -> Row:
        """The p99 of random reads while a purge goes on, against the p99 without."""
        work = "serve: p99 of random reads, depth 16, during a purge / without"
        if MISSING:
            return no_peer(work, "<= 2 x", f"needs {', '.join(MISSING)}")
        path = self.image()
        with self.serving(path) as uri:
            self._read_p99(uri)
            ours, theirs = interleaved(lambda: self._purge_p99(path, uri), lambda: self._read_p99(uri))
        self.clean()
        assert theirs is not None
        ratio = ours / theirs
        return {"work": work, "ours_s": ours, "peer_s": theirs, "ratio": ratio, "target": "<= 2 x", "met": ratio <= 2.0}

    def _read_p99(self, uri: str) -> float:
        options = ("--rw=randread", "--bs=4k", "--iodepth=16", "--time_based", f"--runtime={RUN_SECONDS}")
        return float(fio(by_nbd(uri), *options)["read"]["clat_ns"]["percentile"]["99.000000"]) / 1e9

    def _purge_p99(self, path: Path, uri: str) -> float:
        process(nvmtool("snapshot", "create", path, "s"))
        fio(by_nbd(uri), "--rw=write", "--bs=1m", "--iodepth=8", f"--size={REGION_BYTES}", "--end_fsync=1")
        purge = subprocess.Popen(nvmtool("purge", path, "--mode", "virtblock"), stdout=subprocess.DEVNULL, env=ENVIRONMENT)
        try:
            p99 = self._read_p99(uri)
            assert purge.poll() is None, "the purge ended before the reads did"
        finally:
            purge.wait()
        process(nvmtool("snapshot", "delete", path, "s"))
        return p99

    def snapshot(self) -> Row:
        """How long clients wait for a snapshot, by the server's own clock; with the writes of a busy client before it."""
        work = "serve: snapshot of a served region of 1 GiB under random writes, inside the server"
        if MISSING:
            return no_peer(work, "<= 5 ms", f"needs {', '.join(MISSING)}")
        path = self.image()
        found = []
        with self.serving(path) as uri:
            options = ("--rw=randwrite", "--bs=4k", "--iodepth=16", "--time_based", "--runtime=60")
            client = subprocess.Popen(["fio", "--name=t", *by_nbd(uri), *options], stdout=subprocess.DEVNULL)
            try:
                for number in range(4 * REPEATS):
                    select.select([], [], [], 0.3)
                    command = nvmtool("snapshot", "create", path, f"s{number}", "--json")
                    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
                    found.append(float(json.loads(done.stdout)["seconds"]))
            finally:
                client.terminate()
                client.wait()
        self.clean()
        median, slowest = statistics.median(found), max(found)
        note = f"{min(found) * 1e3:.1f} to {slowest * 1e3:.1f} ms in {len(found)} snapshots"
        return {"work": work, "ours_s": median, "peer_s": None, "ratio": None, "target": "<= 5 ms", "met": slowest <= 0.005, "note": note}


ROWS: dict[str, Callable[[ServeRows], Row]] = {
    "serve-randread": lambda rows: rows.requests("randread"),
    "serve-randwrite": lambda rows: rows.requests("randwrite"),
    "serve-read": lambda rows: rows.sequential("read"),
    "serve-write": lambda rows: rows.sequential("write"),
    "serve-copy-out": ServeRows.copy_out,
    "serve-copy-in": lambda rows: rows.copy_in(empty=False),
    "serve-copy-in-empty": lambda rows: rows.copy_in(empty=True),
    "serve-after-snapshot": ServeRows.after_snapshot,
    "serve-after-reflink": ServeRows.after_reflink,
    "serve-durable": ServeRows.durable,
    "serve-purge-p99": ServeRows.purging,
    "serve-snapshot": ServeRows.snapshot,
    "mount-randread": lambda rows: rows.mounted_requests("randread"),
    "mount-randwrite": lambda rows: rows.mounted_requests("randwrite"),
    "mount-read": lambda rows: rows.mounted_sequential("read"),
    "mount-write": lambda rows: rows.mounted_sequential("write"),
}
