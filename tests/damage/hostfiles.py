"""A small host, every bit, word, end and neighbour of its persistent files damaged, and what a reader, a check and a writer make of it.

What is persistent are the host's file (headers, root, records, log) and the saved maps. Volatile words carry no checksums by design: of
damage in them only a traceback, a hang or a crash of the process is a fault.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nvmtool.errors import NvmtoolError
from nvmtool.host import layout as lay
from nvmtool.host.accounting import account
from nvmtool.host.check import check_host
from nvmtool.host.create import create_pool, create_vm, init_host
from nvmtool.host.host import HOST_FILE, Host
from nvmtool.host.power import power_on
from nvmtool.host.sharing import share
from nvmtool.host.status import host_status, pool_info
from nvmtool.host.suspend import resume, suspend
from nvmtool.host.transfer import iter_memory
from nvmtool.media.root import ROOT_BLOCK
from tests.host.ground import PAGE, make_host, write
from tests.limits import HANG_SECONDS, Hang, limited

PAGES = 16
FILES = (HOST_FILE, "vms/b.map", "vms/c.map")
VOLATILE = ("volatile/frames", "volatile/0.map")


@dataclass
class Figures:
    """What was tried, what became of it, and what must never be."""

    damages: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def count(self, what: str) -> None:
        """Count an outcome."""
        self.outcomes[what] = self.outcomes.get(what, 0) + 1


def shown(host: Host) -> dict[str, object]:
    """Return all that a host shows but what changes by itself: records, where pages are, what they hold."""
    status = host_status(host)
    facts: dict[str, object] = {"status": status, "account": account(host)}
    facts["pools"] = [pool_info(host, pool) for pool in host.all_pools()]
    with host.quiet():
        for vm in host.all_vms():
            if vm.state in (lay.ON, lay.SUSPENDED):
                pieces = [(ppns.tolist(), rows.tobytes()) for ppns, rows in iter_memory(host, vm, None)]
                facts[f"memory of {vm.name}"] = pieces
    return facts


class HostImage:
    """A host: a is on, b and c are suspended, all three share, d is off; a pool in a pool; the log holds records."""

    def __init__(self, folder: Path) -> None:
        """Make it."""
        self.path = make_host(folder, ram=64, vms=dict.fromkeys("abc", PAGES))
        with Host.open(self.path, writable=True) as host:
            create_pool(host, "web", reservation_bytes=4 * PAGE)
            create_pool(host, "inner", parent="web")
            create_vm(host, "d", memory_bytes=PAGES * PAGE, pool="inner")
            for name in "abc":
                write(host, name, {0: "x", 1: "x", 2: name, 9: 0})
            share(host)
            suspend(host, "b")
            suspend(host, "c")
        self.good = {name: (self.path / name).read_bytes() for name in (*FILES, *VOLATILE)}
        self.everything = {file: file.read_bytes() for file in self.path.rglob("*") if file.is_file()}
        self.shown = self._show()
        self.earlier = list(self._earlier())

    def restore(self, *names: str) -> None:
        """Put files back as they were."""
        for name in names:
            (self.path / name).write_bytes(self.good[name])

    def reset(self) -> None:
        """Put everything back as it was."""
        for file in self.path.rglob("*"):
            if file.is_file() and file not in self.everything:
                file.unlink()
        for file, content in self.everything.items():
            file.write_bytes(content)

    def targets(self) -> list[tuple[str, int]]:
        """Return (file, index of the word) of every word that is not 0, and of those behind them that are."""
        found = []
        for name in FILES:
            words = np.frombuffer(self.good[name], "<u8")
            used = np.flatnonzero(words)
            found += [(name, index) for index in used.tolist()]
            found += [(name, index + 1) for index in used.tolist() if index + 1 < len(words) and words[index + 1] == 0]
        return found

    def _show(self) -> dict[str, object]:
        with Host.open(self.path) as host:
            return shown(host)

    def _earlier(self) -> Iterator[dict[str, object]]:
        """Yield what is right too once a record of the log, and so all behind it, counts as torn."""
        with Host.open(self.path) as host:
            start, count = host.fields["log_start"] + 1, host.fields["log_blocks"] - 1
        for block in range(start, start + count):
            at = block * PAGE
            if any(self.good[HOST_FILE][at : at + 64]):
                damaged = bytearray(self.good[HOST_FILE])
                damaged[at : at + 8] = bytes(8)
                (self.path / HOST_FILE).write_bytes(damaged)
                with suppress(NvmtoolError):
                    yield self._show()
        self.restore(HOST_FILE)


class HostProbe:
    """Looks at a damaged host as readers do, and lets a writer try."""

    def __init__(self, image: HostImage, figures: Figures) -> None:
        """Stand on an image."""
        self.image, self.figures = image, figures

    def run(self, what: str, *, volatile: bool = False, writing: bool = False) -> None:
        """Look at the host as it is now; note what must never be."""
        started = time.monotonic()
        self.figures.damages += 1
        before = {name: (self.image.path / name).read_bytes() for name in FILES if (self.image.path / name).exists()}
        try:
            with limited():
                self._look(what, volatile=volatile)
                if {name: (self.image.path / name).read_bytes() for name in before} != before:
                    self._fail(what, "a reading command changed a file")
                if writing:
                    self._write(what, volatile=volatile)
        except Hang:
            self._fail(what, f"hang: more than {HANG_SECONDS} s")
        except Exception as error:  # noqa: BLE001 - what must never be is what is looked for
            last = error.__traceback__
            while last is not None and last.tb_next is not None:
                last = last.tb_next
            self._fail(what, f"traceback: {type(error).__name__}: {error} in {last and last.tb_frame.f_code.co_qualname}")
        self.figures.slowest = max(self.figures.slowest, time.monotonic() - started)

    def _look(self, what: str, *, volatile: bool) -> None:
        found, read, said = "clean", "same", ""
        try:
            with Host.open(self.image.path) as host:
                result = check_host(host)
                found = "clean" if result.clean else "found"
        except NvmtoolError as error:
            found, said = type(error).__name__, str(error)
        try:
            with Host.open(self.image.path) as host:
                facts = shown(host)
                if facts != self.image.shown:
                    read = "earlier" if facts in self.image.earlier else "different"
        except NvmtoolError as error:
            read, said = "error", str(error)
        if "\n" in said:
            self._fail(what, f"more than one line: {said}")
        self.figures.count(f"check {found}, reads {read}")
        silent = found == "clean" and read in ("different", "error")
        # A word that is gone is no damage of one byte: it need not be noticed by whoever reads, but the check finds it.
        if not volatile and (silent or (read == "different" and " gone" not in what and "record" not in what)):
            self._fail(what, f"check {found}, reads {read}")

    def _write(self, what: str, *, volatile: bool) -> None:
        """Resume the suspended VMs: each holds what it held, or an error says why not."""
        wanted = {name: self.image.shown[f"memory of {name}"] for name in "bc"}
        for name in "bc":
            try:
                with Host.open(self.image.path, writable=True) as host:
                    resume(host, name)
                    with host.quiet():
                        pieces = [(ppns.tolist(), rows.tobytes()) for ppns, rows in iter_memory(host, host.vm(name), None)]
                if pieces != wanted[name] and not volatile:
                    self._fail(what, f"VM {name} resumed with other contents")
            except NvmtoolError as error:
                if "\n" in str(error):
                    self._fail(what, f"more than one line: {error}")

    def _fail(self, what: str, problem: str) -> None:
        self.figures.failures.append(f"{what}: {problem}")


def flip_bits(image: HostImage, chosen: list[tuple[str, int]], bits: list[int]) -> Figures:
    """Flip bits of words, one at a time."""
    figures = Figures()
    probe = HostProbe(image, figures)
    for name, index in chosen:
        for bit in bits:
            damaged = bytearray(image.good[name])
            damaged[index * 8 + bit // 8] ^= 1 << bit % 8
            (image.path / name).write_bytes(damaged)
            probe.run(f"{name} word {index} bit {bit}")
            image.restore(name)
    return figures


def cases(image: HostImage) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield (name, damage): ends, magics, other hosts' files, swapped maps, words that are another's, words that are gone."""
    path, good = image.path, image.good
    with Host.open(path) as host:
        areas = {key: value for key, value in host.fields.items() if key.endswith(("_start", "_blocks"))}
    for name in FILES:
        size = len(good[name])
        edges = {0, 1, PAGE - 1, PAGE, 2 * PAGE, size - 1, size - PAGE, *(start * PAGE for start in areas.values() if name == HOST_FILE)}
        for end in sorted(edge for edge in edges if 0 <= edge < size):
            yield f"{name} cut at {end}", lambda name=name, end=end: (path / name).write_bytes(good[name][:end])
        yield f"{name} is gone", lambda name=name: (path / name).unlink()
        for copy in (0, 1):
            for magic in (b"NVMOLD\0\0", good[name][:7][::-1] + b"\0"):
                yield f"{name} header {copy} magic {magic!r}", lambda n=name, c=copy, m=magic: _patch(path / n, c * PAGE, m)
        yield f"{name} both headers are noise", lambda n=name: _patch(path / n, 0, random.Random(1).randbytes(2 * PAGE))
        yield f"{name} both headers are zeros", lambda n=name: _patch(path / n, 0, bytes(2 * PAGE))
        yield f"{name} version 2", lambda n=name: [_patch(path / n, copy * PAGE + 8, b"\2") for copy in (0, 1)]
    yield "the maps are exchanged", lambda: [(path / f"vms/{one}.map").write_bytes(good[f"vms/{other}.map"]) for one, other in ("bc", "cb")]
    yield "a map is the host's file", lambda: (path / "vms/b.map").write_bytes(good[HOST_FILE])
    yield "the memory is gone", lambda: (path / "memory").unlink()
    yield "the memory is cut", lambda: (path / "memory").write_bytes((path / "memory").read_bytes()[: 40 * PAGE])
    yield "the memory is another host's", lambda: _of_another_host(path, "memory")
    yield "the frames are gone", lambda: (path / "volatile/frames").unlink()
    yield "the frames are cut", lambda: (path / "volatile/frames").write_bytes(good["volatile/frames"][:PAGE])
    yield "a running map is gone", lambda: (path / "volatile/0.map").unlink()
    yield "a running map is cut", lambda: (path / "volatile/0.map").write_bytes(good["volatile/0.map"][: PAGE - 1])
    yield "the reservation is gone", lambda: (path / "pools/root/reservation").unlink()
    yield "the reservation is noise", lambda: _patch(path / "pools/root/reservation", 0, random.Random(1).randbytes(2 * PAGE))
    words = np.frombuffer(good["vms/b.map"], "<u8")
    first = lay.MAP_START * lay.WORDS_PER_PAGE
    for ppn in np.flatnonzero(words[first : first + PAGES]).tolist():
        yield f"map word {ppn} is gone", lambda p=ppn: _patch(path / "vms/b.map", (first + p) * 8, bytes(8))
        yield (
            f"map word {ppn} is the next one's",
            lambda p=ppn: _patch(path / "vms/b.map", (first + p) * 8, words[first + p + 1].tobytes() or bytes(8)),
        )
        yield f"map word {ppn} is doubled", lambda p=ppn: _patch(path / "vms/b.map", (first + 12) * 8, words[first + p].tobytes())
    for start, dtype, count in ((areas["pool_start"], lay.POOL_RECORD, 3), (areas["vm_start"], lay.VM_RECORD, 4)):
        for number in range(count):
            at = start * PAGE + number * dtype.itemsize
            yield f"{start} record {number} is zeros", lambda at=at, size=dtype.itemsize: _patch(path / HOST_FILE, at, bytes(size))
            yield (
                f"{start} record {number} is its neighbour's",
                lambda at=at, size=dtype.itemsize: _patch(path / HOST_FILE, at, good[HOST_FILE][at + size : at + 2 * size]),
            )
    yield "the root is zeros", lambda: _patch(path / HOST_FILE, ROOT_BLOCK * PAGE, bytes(PAGE))


def run_cases(image: HostImage, chosen: list[tuple[str, Callable[[], object]]]) -> Figures:
    """Damage, look, let a writer try, and put everything back."""
    figures = Figures()
    probe = HostProbe(image, figures)
    for name, damage in chosen:
        damage()
        probe.run(name, volatile="frames" in name or "running map" in name or "the memory" in name, writing=True)
        image.reset()
    return figures


def noise(image: HostImage, seed: int, count: int) -> Figures:
    """Put noise into volatile words, one at a time: whatever is shown, nothing breaks down."""
    figures, rng = Figures(), random.Random(seed)
    probe = HostProbe(image, figures)
    for _ in range(count):
        name = rng.choice(VOLATILE)
        used = np.flatnonzero(np.frombuffer(image.good[name], "<u8"))
        index = int(rng.choice([*used.tolist(), rng.randrange(len(image.good[name]) // 8)]))
        value = rng.choice(
            [0, 1, (1 << 64) - 1, rng.getrandbits(64), rng.getrandbits(20), rng.randrange(6) << lay.KIND_SHIFT | rng.randrange(9)]
        )
        _patch(image.path / name, index * 8, value.to_bytes(8, "little"))
        probe.run(f"{name} word {index} is {value:#x}", volatile=True, writing=True)
        image.reset()
    return figures


def _patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def _of_another_host(path: Path, name: str) -> None:
    other = path.parent / "other"
    if not other.exists():
        init_host(other, ram_bytes=64 * PAGE)
        with Host.open(other, writable=True) as host:
            create_vm(host, "a", memory_bytes=PAGES * PAGE)
            power_on(host, "a")
    (path / name).write_bytes((other / name).read_bytes())
