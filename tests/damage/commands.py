"""Samples of damage through real processes: exit codes of the table, one line, no changed file, the same data or none."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nvmtool.errors import exit_code_table

from .images import BLOCK

if TYPE_CHECKING:
    from .bits import Flipper

ROOT = Path(__file__).resolve().parents[2]
CODES = {code for code, _ in exit_code_table()} - {70, 130}
_ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}


def sample(flipper: Flipper, seed: int, count: int) -> list[str]:
    """Flip `count` bits, one at a time, and let check, info and export of each state look at each; return what went wrong."""
    image = flipper.image
    problems = []
    targets = [target for target in flipper.targets(1, seed) if flipper.good[target[0]][target[1]]]
    for file, offset, bit in random.Random(seed).sample(targets, count):
        path = (image.path, image.mass)[file]
        flipper.files[file][offset] ^= 1 << bit
        bad = image.contents()
        where = f"command line, {flipper.structure(file, offset)} of {path.name} byte 0x{offset:x} bit {bit}"
        found = _run(image.path.parent, "check", "disk.nvm", "--scrub") + _run(image.path.parent, "info", "disk.nvm")
        for (region, snapshot), state in image.model.items():
            found += _run(
                image.path.parent, "export", "disk.nvm", "out", "--region", region, *(("--snapshot", snapshot) if snapshot else ())
            )
            out = image.path.parent / "out"
            # A torn record of the log takes its transaction with it.
            if out.exists() and not image.earlier and _blocks(out.read_bytes()) != state:
                found.append(f"export of {snapshot} differs")
            out.unlink(missing_ok=True)
        if image.contents() != bad:
            found.append("a reading command changed a file")
        flipper.files[file][offset] ^= 1 << bit
        problems += [f"{where}: {each}" for each in found]
    return problems


def _blocks(data: bytes) -> dict[int, bytes]:
    every = {start // BLOCK: data[start : start + BLOCK] for start in range(0, len(data), BLOCK)}
    return {index: block for index, block in every.items() if any(block)}


def _run(folder: Path, *arguments: str) -> list[str]:
    words = [sys.executable, "-m", "nvmtool", *arguments]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | _ENVIRONMENT, timeout=30)
    lines = done.stderr.splitlines()
    failed = done.returncode not in (0, 1)
    if done.returncode not in CODES or any("Traceback" in line for line in lines) or (failed and len(lines) != 1):
        return [f"{arguments[0]}: exit code {done.returncode}, stderr {lines[-2:]}"]
    return []
