"""What `make faults` runs: the system calls of every command that changes something, failed and killed; figures go to build/faults.json."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from . import host_commands, swap_commands
from .commands import COMMANDS, Bench, make_templates
from .host_commands import HostBench
from .inject import faults, have_strace, points, run_fault
from .swap_commands import SwapBench


@dataclass
class Figures:
    """What was done to one command."""

    command: str
    points: int = 0
    faults: int = 0
    left_out: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


_KINDS = (
    (COMMANDS, make_templates, Bench),
    (swap_commands.COMMANDS, swap_commands.make_templates, SwapBench),
    (host_commands.COMMANDS, host_commands.make_templates, HostBench),
)
NAMES = [command.name for commands, _, _ in _KINDS for command in commands]


def make_bench(name: str, folder: Path) -> Bench | SwapBench | HostBench:
    """Make a bench for a command."""
    for commands, templates, bench in _KINDS:
        for command in commands:
            if command.name == name:
                templates(folder / "templates")
                return bench(command, folder / "templates" / command.template, folder / "work")
    raise KeyError(name)


def run_command(name: str, seed: int, most: int) -> Figures:
    """Fail and kill the calls of one command; beyond `most` faults a random choice of them."""
    started = time.monotonic()
    figures = Figures(name)
    with tempfile.TemporaryDirectory(prefix="nvmtool-faults-") as folder:
        bench = make_bench(name, Path(folder))
        every = points(bench)
        wanted = list(faults(every))
        chosen = wanted if len(wanted) <= most else random.Random(seed).sample(wanted, most)
        figures.points, figures.left_out = len(every), len(wanted) - len(chosen)
        for fault in chosen:
            struck, problems = run_fault(bench, fault)
            figures.faults += struck
            figures.missed += not struck
            figures.struck[f"{fault.point.call} {fault.mode}"] += struck
            figures.failures += [f"{name}: {fault}: {problem}" for problem in problems]
    figures.seconds = round(time.monotonic() - started, 1)
    return figures


def main() -> int:
    """Run, print and write the figures; 1 when anything broke the promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="repeat a run")
    parser.add_argument("--most", type=int, default=25, help="faults of each command; the rest is left out by chance")
    parser.add_argument("--commands", default=",".join(NAMES))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("build/faults.json"))
    options = parser.parse_args()
    if not have_strace():
        print("strace is not installed (Debian: apt-get install strace)", file=sys.stderr)
        return 2
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        done = pool.starmap(run_command, [(name, seed, options.most) for name in options.commands.split(",")], chunksize=1)
    report = {
        "seed": seed,
        "commands": len(done),
        "points": sum(each.points for each in done),
        "faults": sum(each.faults for each in done),
        "left_out": sum(each.left_out for each in done),
        "missed": sum(each.missed for each in done),
        "failures": [failure for each in done for failure in each.failures],
        "by_command": [vars(each) for each in done],
        "seconds": round(time.monotonic() - started, 1),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    for key, value in report.items():
        if key not in ("failures", "by_command"):
            print(f"{key:10} {value}")
    for failure in report["failures"][:60]:
        print("FAILURE", failure)
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
