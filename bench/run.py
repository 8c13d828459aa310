"""Every speed that the project promises, measured side by side in one run: what `make bench` runs.

Both sides of a row run in turn, three times, on the same file system; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import host_rows
import image_rows
import numpy as np
import sched_rows
import serve_rows
import swap_rows
from measure import BLOCK, GIB, MIB, REPOSITORY, Row

# A family of rows shares the files that it makes once.
FAMILIES: list[tuple[Callable[[Path], Any], dict[str, Callable[[Any], Row]]]] = [
    (image_rows.ImageRows, image_rows.ROWS),
    (swap_rows.SwapRows, swap_rows.ROWS),
    (host_rows.HostRows, host_rows.ROWS),
    (serve_rows.ServeRows, serve_rows.ROWS),
    (sched_rows.SchedRows, sched_rows.ROWS),
]


def machine() -> dict[str, Any]:
    """Say where and when this ran."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "nproc": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "command": " ".join(sys.argv),
    }


def show(row: Row) -> None:
    """Print one row."""
    spent = [f"{row[side]:.3f} s" if row[side] is not None else "-" for side in ("ours_s", "peer_s")]
    ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
    met = {True: "met", False: "MISSED", None: "no peer"}[row["met"]]
    print(f"{row['work']:72} {spent[0]:>10} {spent[1]:>10} {ratio:>7} {row['target']:>17}  {met:7} {row.get('note', '')}", flush=True)


def work_folder() -> Path:
    """Return where the files of the run go: TMPDIR if set, else ./build."""
    folder = Path(os.environ.get("TMPDIR") or REPOSITORY / "build")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def touch_memory() -> None:
    """Use the memory that is free once: what a hypervisor has to give first (here 200 MiB/s) is charged to whoever uses it first."""
    free = next(int(line.split()[1]) << 10 for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemFree"))
    size = free // 4 * 3
    started = time.perf_counter()
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for start in range(0, size, 64 * MIB):
            np.frombuffer(memory, np.uint8, min(64 * MIB, size - start), start)[::BLOCK] = 1
    print(f"touched {size / GIB:.1f} GiB of free memory in {time.perf_counter() - started:.1f} s")


def main() -> int:
    """Run the rows, print the table, write build/bench.json."""
    names = [name for _, rows in FAMILIES for name in rows]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"run this row alone: {', '.join(names)}")
    wanted = parser.parse_args().only or names
    where = machine()
    print(" · ".join(f"{key} {value}" for key, value in where.items()))
    if not image_rows.QEMU:
        print("no qemu-img and qemu-io here (Debian: qemu-utils): their side of the comparisons is left out")
    touch_memory()
    print(f"{'work: ours / against':72} {'ours':>10} {'against':>10} {'ratio':>7} {'target':>17}")
    found = []
    for family, rows in FAMILIES:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=work_folder()) as folder:
            bench = family(Path(folder))
            for name in [each for each in rows if each in wanted]:
                found.append({"name": name, **rows[name](bench)})
                show(found[-1])
    (REPOSITORY / "build").mkdir(exist_ok=True)
    (REPOSITORY / "build/bench.json").write_text(json.dumps({**where, "rows": found}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
