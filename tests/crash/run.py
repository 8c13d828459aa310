"""What `make crash` runs: the enumeration of all workloads on two processes, then the planted bugs; figures go to build/crash.json."""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from nvmtool.region.header import decode_header

from .bases import MAPPINGS, base
from .bugs import BUGS
from .enumeration import Effort, Enumerator, Tally
from .model import BLOCK
from .operations import operations
from .oracle import RepairOracle
from .selfproof import prove_harness
from .special import formats, repairs
from .workloads import record

ALONE = Effort(most=12, samples=24)
# In pairs the second operation is cut off, and of one pair in eight the recovery too; which ones depends on the seed.
IN_PAIRS = Effort(most=8, samples=8, depth=1)
_DEEP_ONE_OF = 8
_SECONDS = 170
_REPORT = Path("build/crash.json")


@dataclass(frozen=True)
class Part:
    """What one process did: its tally, the hashes of the distinct states, and the planted bugs found and missed."""

    tally: Tally
    hashes: np.ndarray
    found: dict[str, str]
    missed: list[str]


def run_part(number: int, seed: int, deadline: float) -> Part:
    """Enumerate the workloads of one base image, and plant every other bug; pairs come last, in the seed's order, until the deadline."""
    mapping = MAPPINGS[number]
    header = decode_header(base(mapping).image[:BLOCK], mapping)
    one, mending = Enumerator(header, ALONE, seed), Enumerator(header, replace(ALONE, depth=1), seed, RepairOracle())
    steps = operations()
    for recording in [record(mapping, step) for step in steps] + (formats() if number == 0 else []):
        if recording:
            one.run(recording)
    for recording in repairs(mapping):
        mending.run(recording)
    found, missed = prove_harness(seed, BUGS[number :: len(MAPPINGS)])
    pairs = list(product(steps, steps))
    random.Random(seed).shuffle(pairs)
    for first, second in pairs:
        if time.monotonic() > deadline:
            one.tally.counts["pairs_left_out"] += 1
        elif recording := record(mapping, first, second):
            deep = (zlib.crc32(recording.name.encode()) + seed) % _DEEP_ONE_OF == 0
            one.effort = replace(IN_PAIRS, depth=2 if deep else 1)
            one.run(recording)
    one.tally.add(mending.tally)
    return Part(one.tally, np.fromiter(one.seen | mending.seen, np.uint64), found, missed)


def main() -> int:
    """Run everything and report; the exit code is 1 when a promise is broken or a planted bug is missed."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1] else int(time.time())
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else _SECONDS
    print(f"seed {seed}; the same again: make crash SEED={seed}", flush=True)
    started = time.monotonic()
    with multiprocessing.get_context("fork").Pool(len(MAPPINGS)) as pool:
        parts = pool.starmap(run_part, [(number, seed, started + seconds) for number in range(len(MAPPINGS))], chunksize=1)
    total: Counter[str] = Counter()
    for part in parts:
        total += part.tally.counts
        for failure in part.tally.failures[:20]:
            print(f"FAILED {failure}")
        for name in part.missed:
            print(f"MISSED planted bug: {name}")
    found = {name: what for part in parts for name, what in part.found.items()}
    report = {
        "workloads": total["workloads"],
        "states": len(np.unique(np.concatenate([part.hashes for part in parts]))),
        "complete_epochs": total["complete_epochs"] + total["recovery_complete_epochs"],
        "sampled_epochs": total["sampled_epochs"] + total["recovery_sampled_epochs"],
        "duplicates": total["duplicates"],
        "failures": total["failures"],
        "planted": len(BUGS),
        "found": len(found),
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        # Beyond what others read: where the states lie, what was done with them, and what found the bugs.
        "pairs_left_out": total["pairs_left_out"],
        "commit_epochs": total["commit_epochs"],
        "states_of_recovery": total["states_of_recovery"],
        "states_in_complete_epochs": total["states_complete"],
        "judged": total["judged"],
        "proven": total["proven"],
        "redundant": {bug.name: bug.redundant for bug in BUGS if bug.redundant and bug.name not in found},
        "found_by": found,
    }
    _REPORT.parent.mkdir(exist_ok=True)
    _REPORT.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(f"{key} {value}" for key, value in report.items() if not isinstance(value, dict)))
    return int(bool(total["failures"]) or any(part.missed for part in parts))


if __name__ == "__main__":
    sys.exit(main())
