"""What `make crash-long` runs: kill -9 of real commands at random moments; nothing acknowledged is lost, the same command finishes.

One image goes through a random chain of commands. Each is started, killed after a random time, checked and compared, then run to its end
and compared again. A seed gives the same chain and the same waiting times; where in the command a kill strikes is up to the machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from nvmtool.region.check import check_device
from nvmtool.region.device import Device

from .commands import ROOT

MIB = 1 << 20
SIZE = 16 * MIB
SNAPSHOTS = ("a", "b", "c", "d")
_ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}


class Lost(AssertionError):
    """Something acknowledged is not there, or an image is not clean."""


@dataclass
class Figures:
    """What one process did."""

    kills: int = 0
    too_late: int = 0
    commands: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Chain:
    """An image, the model of its states, and the commands that change both."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.figures = Figures()
        # How long a command of a kind takes, for kills that strike somewhere inside.
        self.seconds: dict[str, float] = {}
        self.finish("format", "disk.nvm", "--size", "112M", "--mass", "disk.mass")
        self.finish("region", "create", "disk.nvm", "vm", "--size", str(SIZE))
        self.current = bytes(SIZE)
        self.saved: dict[str, bytes] = {}

    def finish(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> None:
        """Run a command to its end."""
        started = time.monotonic()
        done = subprocess.run(self._words(arguments), cwd=self.folder, capture_output=True, check=False, env=os.environ | _ENVIRONMENT)
        self.seconds.setdefault(arguments[0], time.monotonic() - started)
        if done.returncode not in codes:
            raise Lost(f"{arguments}: exit code {done.returncode}: {done.stderr.decode()[-300:]}")

    def kill(self, *arguments: str) -> None:
        """Start a command and kill it somewhere."""
        process = subprocess.Popen(
            self._words(arguments), cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | _ENVIRONMENT
        )
        time.sleep(self.random.uniform(0.08, max(0.15, self.seconds.get(arguments[0], 0.4))))
        process.kill()
        killed = process.wait() == -9
        self.figures.kills += killed
        self.figures.too_late += not killed
        self.figures.commands[" ".join(arguments[:2]) if arguments[0] == "snapshot" else arguments[0]] += killed

    def _words(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "nvmtool", *arguments]

    def step(self) -> None:
        """Kill one command of a random kind, compare, run it to its end, compare again."""
        kind = self.random.choice(
            ("import", "import", "purge", "purge", "recall", "create", "create", "delete", "revert", "convert", "discard")
        )
        getattr(self, f"_{kind}")()

    def _both(self, *arguments: str, after: bytes | None = None, gone: str = "", new: str = "", codes: tuple[int, ...] = (0,)) -> None:
        """Kill and finish a command whose current state ends as `after`; a snapshot may be gone or new on the way."""
        before, target = self.current, self.current if after is None else after
        self.kill(*arguments)
        self.verify(before, target, doubtful={gone, new})
        self.finish(*arguments, codes=codes)
        self.current = target
        if gone:
            self.saved.pop(gone)
        if new:
            self.saved[new] = target
        self.verify(target, target)

    def _import(self) -> None:
        data = bytearray(self.current)
        for _ in range(self.random.randint(1, 8)):
            start = self.random.randrange(SIZE - MIB)
            data[start : start + MIB] = self.random.randbytes(self.random.choice((4096, 65536, MIB))).ljust(MIB, b"\0")
        (self.folder / "new").write_bytes(data)
        self._both("import", "disk.nvm", "new", after=bytes(data))

    def _discard(self) -> None:
        start, length = self.random.randrange(SIZE // 2), self.random.randrange(SIZE // 2)
        after = self.current[:start] + bytes(length) + self.current[start + length :]
        self._both("discard", "disk.nvm", "--offset", str(start), "--length", str(length), after=after)

    def _create(self) -> None:
        free = [name for name in SNAPSHOTS if name not in self.saved]
        if free:
            self._both("snapshot", "create", "disk.nvm", free[0], new=free[0], codes=(0, 9))

    def _delete(self) -> None:
        if self.saved:
            name = self.random.choice(sorted(self.saved))
            self._both("snapshot", "delete", "disk.nvm", name, gone=name, codes=(0, 9))

    def _revert(self) -> None:
        if self.saved:
            name = self.random.choice(sorted(self.saved))
            self._both("snapshot", "revert", "disk.nvm", name, after=self.saved[name])

    def _purge(self) -> None:
        # 2: virtblock mode does not fit a region of direct mapping.
        mode = self.random.choice(("virtblock", "pointer-elimination"))
        self._both("purge", "disk.nvm", "--mode", mode, codes=(0, 2) if mode == "virtblock" else (0,))

    def _recall(self) -> None:
        names = [None, *sorted(self.saved)]
        name = self.random.choice(names)
        self._both("recall", "disk.nvm", *(("--snapshot", name) if name else ()))

    def _convert(self) -> None:
        self._both("region", "convert", "disk.nvm", "vm", "--mapping", self.random.choice(("virtblock", "direct")))

    def verify(self, before: bytes, after: bytes, doubtful: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        """Raise Lost unless the image is clean, every snapshot as it was, and each block of the running point as before or as after."""
        result = check_device(self.folder / "disk.nvm", scrub=self.random.random() < 0.2)
        if not result.clean:
            raise Lost(f"check: {result.findings[:3]}")
        with Device.open(self.folder / "disk.nvm") as device:
            region = device.region()
            found = region.read(0, SIZE)
            if found not in (before, after):
                pairs = (memoryview(each).cast("Q") for each in (found, before, after))
                if not all(word in (old, new) for word, old, new in zip(*pairs, strict=True)):
                    raise Lost("the running point is neither as before nor as after")
            names = {record.name for record in region.snapshots if not record.get("parent") >> 51}
            if (names ^ self.saved.keys()) - doubtful:
                raise Lost(f"snapshots are {sorted(names)}, ought to be {sorted(self.saved)}")
            for name in names & self.saved.keys():
                if region.read(0, SIZE, name) != self.saved[name]:
                    raise Lost(f"snapshot {name} differs")


def run_chain(seed: int, kills: int) -> Figures:
    """Go through chains until there were that many kills."""
    total = Figures()
    while total.kills < kills and not total.failures:
        with tempfile.TemporaryDirectory(prefix="nvmtool-kills-") as folder:
            chain = Chain(Path(folder), seed)
            step = 0
            try:
                while total.kills + chain.figures.kills < kills and step < 200:
                    step += 1
                    chain.step()
            except Lost as lost:
                total.failures.append(f"seed {seed} step {step}: {lost}")
            total.kills += chain.figures.kills
            total.too_late += chain.figures.too_late
            total.commands += chain.figures.commands
        seed += 1000
    return total


def main() -> int:
    """Run, print and write the figures; 1 when anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="repeat a run")
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("build/kills.json"))
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    started = time.monotonic()
    each = -(-options.kills // options.jobs)
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        done = pool.starmap(run_chain, [(seed + number, each) for number in range(options.jobs)])
    report = {
        "seed": seed,
        "kills": sum(figures.kills for figures in done),
        "too_late": sum(figures.too_late for figures in done),
        "commands": dict(sum((figures.commands for figures in done), Counter())),
        "failures": [failure for figures in done for failure in figures.failures],
        "seconds": round(time.monotonic() - started, 1),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    for key, value in report.items():
        print(f"{key:10} {value}")
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
