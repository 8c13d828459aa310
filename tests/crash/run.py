"""What `make crash` runs: the enumeration of all workloads on two processes, then the planted bugs; figures go to build/crash.json."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
import zlib
from collections import Counter
from dataclasses import replace
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

ALONE = Effort(most=12, samples=32)
# In pairs the second operation is cut off, and of one pair in four the recovery too; which ones depends on the seed.
IN_PAIRS = Effort(most=8, samples=8, depth=1)
_DEEP_ONE_OF = 4
_REPORT = Path("build/crash.json")


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
    for first, second in product(steps, steps) if pairs else ():
        if recording := record(mapping, first, second):
            deep = (zlib.crc32(recording.name.encode()) + seed) % _DEEP_ONE_OF == 0
            one.effort = replace(IN_PAIRS, depth=2 if deep else 1)
            one.run(recording)
    one.tally.add(mending.tally)
    return one.tally, np.fromiter(one.seen | mending.seen, np.uint64)


def main() -> int:
    """Run everything and report; the exit code is 1 when a promise is broken or a planted bug is missed."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1] else int(time.time())
    print(f"seed {seed}; the same run again: make crash SEED={seed}", flush=True)
    started = time.monotonic()
    with multiprocessing.get_context("fork").Pool(len(MAPPINGS)) as pool:
        parts = pool.starmap(enumerate_mapping, [(mapping, seed) for mapping in MAPPINGS])
        enumerated = time.monotonic()
        proofs = pool.starmap(prove_harness, [(seed, BUGS[start :: len(MAPPINGS)]) for start in range(len(MAPPINGS))])
    total: Counter[str] = Counter()
    for tally, _ in parts:
        total += tally.counts
        for failure in tally.failures[:20]:
            print(f"FAILED {failure}")
    missed = [name for _, names in proofs for name in names]
    for name in missed:
        print(f"MISSED planted bug: {name}")
    report = {
        "workloads": total["workloads"],
        "states": len(np.unique(np.concatenate([hashes for _, hashes in parts]))),
        "complete_epochs": total["complete_epochs"] + total["recovery_complete_epochs"],
        "sampled_epochs": total["sampled_epochs"] + total["recovery_sampled_epochs"],
        "duplicates": total["duplicates"],
        "failures": total["failures"],
        "planted": len(BUGS),
        "found": sum(len(found) for found, _ in proofs),
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        # Beyond what others read: where the states lie, and what was done with them.
        "seconds_enumerating": round(enumerated - started, 1),
        "commit_epochs": total["commit_epochs"],
        "states_of_recovery": total["states_of_recovery"],
        "states_in_complete_epochs": total["states_complete"],
        "judged": total["judged"],
        "proven": total["proven"],
        "redundant": {bug.name: bug.redundant for bug in BUGS if bug.redundant},
        "found_by": {name: what for found, _ in proofs for name, what in found.items()},
    }
    _REPORT.parent.mkdir(exist_ok=True)
    _REPORT.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(f"{key} {value}" for key, value in report.items() if not isinstance(value, dict)))
    return int(bool(total["failures"] or missed))


if __name__ == "__main__":
    sys.exit(main())
