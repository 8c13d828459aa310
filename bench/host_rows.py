"""The rows about hosts: power-on, suspend and resume, sharing, lending. Machine memory is on tmpfs (/dev/shm), as it would be."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from measure import BLOCK, ENVIRONMENT, GIB, MIB, REPEATS, Row, Timed, interleaved, seconds, speed_row

from nvmtool.host.create import create_vm, init_host
from nvmtool.host.host import Host
from nvmtool.host.lending import give_back, lend
from nvmtool.host.power import power_off, power_on
from nvmtool.host.sharing import hash_frames, plan_sharing
from nvmtool.host.space import Space
from nvmtool.host.suspend import restart, resume, suspend
from nvmtool.region.format import format_device
from nvmtool.swap.reservation_resize import resize_reservation

TMPFS = Path("/dev/shm")
SUSPENDED_BYTES = 4 * GIB
SCANNED_BYTES = 1 * GIB
LENT_BYTES = 512 * MIB
POWER_CYCLES = 20
_FILL_PAGES = 1 << 14
_ONE_POWER_ON = """
import sys
from nvmtool.host.host import Host
from nvmtool.host.power import power_on
with Host.open(sys.argv[1], writable=True) as host:
    power_on(host, sys.argv[2])
"""


class HostRows:
    """Measures hosts in one folder; their memory is on tmpfs."""

    def __init__(self, folder: Path) -> None:
        """Make nothing yet."""
        self.folder = folder

    @contextmanager
    def host(self, ram: int, *, nvm: Path | None = None, sparse: bool = False) -> Iterator[Host]:
        """Make a host, and remove it afterwards."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder, tempfile.TemporaryDirectory(dir=TMPFS) as memory:
            init_host(folder, ram_bytes=ram, nvm=nvm, memory=None if sparse else memory, sparse=sparse)
            with Host.open(folder, writable=True) as host:
                yield host

    def power_on_size(self) -> Row:
        """Compare powering on a VM of 1 TiB with one of 1 GiB, and count their system calls."""
        with self.host(3 << 39, sparse=True) as host:
            for name, size in (("large", 1 << 40), ("small", GIB)):
                create_vm(host, name, memory_bytes=size)
            ours, theirs = interleaved(_cycles(host, "large"), _cycles(host, "small"))
            note = " and ".join(_calls(host, name) for name in ("large", "small"))
        assert theirs is not None
        work = f"{POWER_CYCLES} times power-on of 1 TiB / of 1 GiB"
        return {
            "work": work,
            "ours_s": ours,
            "peer_s": theirs,
            "ratio": theirs / ours,
            "target": "within 10 %",
            "met": ours <= 1.1 * theirs,
            "note": note,
        }

    def power_on_thick(self) -> Row:
        """Compare rapid power-on with one that writes its swap first, 4 GiB."""
        with self.host(5 * GIB) as host:
            create_vm(host, "vm", memory_bytes=4 * GIB)
            reservation = host.path / "pools/root/reservation"

            def on(*, thick: bool) -> float:
                took = seconds(lambda: power_on(host, "vm", thick=thick))
                power_off(host, "vm")
                resize_reservation(reservation, MIB)
                return took

            work = "power-on of 4 GiB, rapid / --thick, on storage written with zeros"
            return speed_row(work, lambda: on(thick=False), lambda: on(thick=True), 50)

    def in_place(self) -> Row:
        """Compare suspending, restarting and resuming 4 GiB in place with copying the memory to a file and back."""
        with self.host(SUSPENDED_BYTES + 64 * MIB) as host:
            create_vm(host, "vm", memory_bytes=SUSPENDED_BYTES)
            power_on(host, "vm")
            fill(host, "vm")
            image = self.folder / "memory.copy"
            rows = host.memory.ram.bytes

            def ours() -> float:
                return seconds(lambda: (suspend(host, "vm"), restart(host), resume(host, "vm")))

            def theirs() -> float:
                took = seconds(lambda: _copy_out_and_back(image, rows))
                image.unlink()
                return took

            return speed_row("suspend, restart and resume of 4 GiB in place / copying it to a file and back", ours, theirs, 10)

    def recount(self) -> Row:
        """Tell how many frames a second are entered in the share table when a VM whose frames are all shared resumes."""
        npages = SCANNED_BYTES // BLOCK
        with self.host(SCANNED_BYTES + 64 * MIB) as host:
            mpns = np.random.default_rng(0).permutation(npages)
            rates = []
            for _ in range(REPEATS):
                with host.frames_turn() as frames:
                    rates.append(npages / seconds(lambda: frames.add_shares(mpns)))
                    frames.drop_shares(mpns, park=False)
        rate = statistics.median(rates)
        work = "rebuilding the counts of shared frames, frames a second and core"
        return {
            "work": work,
            "ours_s": npages / rate,
            "peer_s": None,
            "ratio": None,
            "target": ">= 5 million/s",
            "met": rate >= 5e6,
            "note": f"{rate / 1e6:.1f} million/s",
        }

    def scan(self) -> Row:
        """Compare the scan for equal frames with the hash of the same memory alone."""
        with self.host(SCANNED_BYTES + 64 * MIB) as host:
            create_vm(host, "vm", memory_bytes=SCANNED_BYTES)
            power_on(host, "vm")
            fill(host, "vm")
            mpns = np.arange(SCANNED_BYTES // BLOCK)
            ours: Timed = lambda: seconds(lambda: plan_sharing(host))  # noqa: E731
            return speed_row("sharing scan of 1 GiB / its hash alone", ours, lambda: seconds(lambda: hash_frames(host.memory, mpns)), 0.5)

    @contextmanager
    def lender(self, image: Path) -> Iterator[Host]:
        """Make a host that a device image lends to, on tmpfs: as with NVM, nothing is written back to a disk."""
        format_device(image, size_bytes=2 * LENT_BYTES, mass=self.folder / "lender.mass", force=True)
        with self.host(LENT_BYTES + 64 * MIB, nvm=image) as host:
            yield host

    def give_back(self) -> Row:
        """Compare returning lent pages that are in use with a plain copy of as many pages."""
        with tempfile.TemporaryDirectory(dir=TMPFS) as nvm, self.lender(Path(nvm) / "lender.nvm") as host:
            for name in ("first", "second"):
                create_vm(host, name, memory_bytes=LENT_BYTES)
            npages = LENT_BYTES // BLOCK

            def prepare() -> None:
                lend(host, npages)
                power_on(host, "second")
                power_on(host, "first")
                fill(host, "second")
                fill(host, "first")
                power_off(host, "second")

            def ours() -> float:
                prepare()
                took = seconds(lambda: give_back(host, npages))
                power_off(host, "first")
                return took

            def theirs() -> float:
                prepare()
                lent = host.frames.lent_frames()
                took = seconds(lambda: host.memory.copy(lent, np.arange(len(lent))))
                power_off(host, "first")
                give_back(host, npages)
                return took

            return speed_row("returning 512 MiB of lent pages in use / plain copy of them", ours, theirs, 0.5)


def fill(host: Host, name: str) -> None:
    """Give every page frame of a VM a machine frame with other contents than any other."""
    vm = host.vm(name)
    generator = np.random.default_rng(vm.number)
    rows = generator.integers(0, 256, (_FILL_PAGES, BLOCK), np.uint8)
    with host.vm_turns([vm.number]), Space(host, vm) as space:
        for start in range(0, vm.memory_pages, _FILL_PAGES):
            ppns = np.arange(start, min(start + _FILL_PAGES, vm.memory_pages))
            rows.view("<u8")[: len(ppns), 0] = ppns
            mpns = space.own_many(ppns)
            space.memory.write(mpns, rows[: len(ppns)])
            space.name(ppns, mpns)


def _cycles(host: Host, name: str) -> Timed:
    def run() -> float:
        total = 0.0
        for _ in range(POWER_CYCLES):
            total += seconds(lambda: power_on(host, name))
            power_off(host, name)
        return total

    return run


def _calls(host: Host, name: str) -> str:
    """Return how many system calls a process makes that powers a VM on."""
    if shutil.which("strace") is None:
        return f"{name}: no strace here"
    with tempfile.NamedTemporaryFile() as trace:
        command = [sys.executable, "-c", _ONE_POWER_ON, str(host.path), name]
        subprocess.run(command, check=True, env=ENVIRONMENT)  # leaves bytecode that the counted one finds
        power_off(host, name)
        subprocess.run(["strace", "-f", "-o", trace.name, *command], check=True, env=ENVIRONMENT)
        count = sum(1 for line in Path(trace.name).read_text().splitlines() if "resumed>" not in line and "+++" not in line)
    power_off(host, name)
    return f"{name}: {count} system calls"


def _copy_out_and_back(image: Path, memory: memoryview) -> None:
    fd = os.open(image, os.O_RDWR | os.O_CREAT, 0o600)
    step = 16 * MIB
    for start in range(0, SUSPENDED_BYTES, step):
        os.pwrite(fd, memory[start : start + step], start)
    os.fdatasync(fd)
    for start in range(0, SUSPENDED_BYTES, step):
        os.preadv(fd, [memory[start : start + step]], start)
    os.close(fd)


ROWS = {
    "power-on": HostRows.power_on_size,
    "thick": HostRows.power_on_thick,
    "in-place": HostRows.in_place,
    "recount": HostRows.recount,
    "scan": HostRows.scan,
    "give-back": HostRows.give_back,
}
