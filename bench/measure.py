"""Measuring side by side: what all rows of the benchmark share."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MIB, GIB, BLOCK = 1 << 20, 1 << 30, 4096
REPEATS = 3
REPOSITORY = Path(__file__).resolve().parent.parent
# An installed tool has its bytecode at hand.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPATH": str(REPOSITORY)}

Row = dict[str, Any]
Timed = Callable[[], float]


def seconds(action: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def process(command: Sequence[str], *, text: str | None = None) -> float:
    """Run a whole process and return how long it took."""
    run = lambda: subprocess.run(command, input=text, text=True, check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)  # noqa: E731
    return seconds(run)


def nvmtool(*arguments: object) -> list[str]:
    """Return the command line of nvmtool as a process."""
    return [sys.executable, "-m", "nvmtool", *map(str, arguments)]


def random_file(path: Path, size: int, *, every_other: bool = False) -> Path:
    """Make a file of random data; of every second block the data are zeros if so wanted."""
    generator = np.random.default_rng(size)
    with path.open("wb") as file:
        for start in range(0, size, 64 * MIB):
            data = np.frombuffer(generator.bytes(min(64 * MIB, size - start)), np.uint8).reshape(-1, BLOCK).copy()
            data[1::2] *= not every_other
            file.write(data.data)
        os.fsync(file.fileno())
    return path


def warm(*paths: Path) -> None:
    """Read files into memory, where NVM is by its nature; a write past the page cache leaves them on the disk alone."""
    os.sync()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(4 * MIB):
                pass


def interleaved(ours: Timed, theirs: Timed | None) -> tuple[float, float | None]:
    """Return the medians of both sides, measured in turn."""
    mine, peers = [], []
    for _ in range(REPEATS):
        mine.append(ours())
        if theirs is not None:
            peers.append(theirs())
    return statistics.median(mine), statistics.median(peers) if peers else None


def speed_row(work: str, ours: Timed, theirs: Timed | None, target: float, **more: Any) -> Row:
    """Compare speeds: the ratio is theirs / ours in time."""
    mine, peer = interleaved(ours, theirs)
    ratio = None if peer is None else peer / mine
    met = None if ratio is None else ratio >= target
    return {"work": work, "ours_s": mine, "peer_s": peer, "ratio": ratio, "target": f">= {target} x", "met": met, **more}
