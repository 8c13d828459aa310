"""What `make crash` runs: the enumeration of all workloads on two processes, and the planted bugs; figures to build/crash.json."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from nvmtool.region.header import decode_header

from .bases import MAPPINGS, base
from .enumeration import Effort, Enumerator, Tally
from .model import BLOCK
from .operations import operations
from .oracle import RepairOracle
from .special import formats, repairs
from .workloads import record

ALONE = Effort(most=12, samples=32)
IN_PAIRS = Effort(most=8, samples=8)


def enumerate_mapping(mapping: str, seed: int, *, pairs: bool = True) -> tuple[Tally, np.ndarray]:
    """Enumerate all workloads of one base image; return the tally and the hashes of the distinct states."""
    header = decode_header(base(mapping).image[:BLOCK], mapping)
    one, mending = Enumerator(header, ALONE, seed), Enumerator(header, replace(ALONE, depth=1), seed, RepairOracle())
    steps = operations()
    for recording in [record(mapping, step) for step in steps] + (formats() if mapping == MAPPINGS[0] else []):
        if recording:
            one.run(recording)
    for recording in repairs(mapping):
        mending.run(recording)
    one.effort = IN_PAIRS
    for first in steps if pairs else ():
        for second in steps:
            if recording := record(mapping, first, second):
                one.run(recording)
    one.tally.add(mending.tally)
    return one.tally, np.fromiter(one.seen | mending.seen, np.uint64)


def main() -> int:
    """Run everything; the exit code is 1 when a promise is broken."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1] else int(time.time())
    print(f"crash states, seed {seed} (again with: make crash SEED={seed})", flush=True)
    started = time.monotonic()
    with multiprocessing.get_context("fork").Pool(len(MAPPINGS)) as pool:
        parts = pool.starmap(enumerate_mapping, [(mapping, seed) for mapping in MAPPINGS])
    total: Counter[str] = Counter()
    for tally, _ in parts:
        total += tally.counts
        for failure in tally.failures[:20]:
            print(f"FAILED {failure}")
    states = len(np.unique(np.concatenate([hashes for _, hashes in parts])))
    seconds = round(time.monotonic() - started, 1)
    print({**total, "states": states, "seconds": seconds})
    return int(bool(total["failures"]))


if __name__ == "__main__":
    sys.exit(main())
