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

from .borrowed.suite import MECHANISMS
from .borrowed.suite import suite as borrowed_suite
from .enumeration import Effort, Enumerator, Tally
from .host.suite import suite as host_suite
from .planting import Plant
from .region.bases import MAPPINGS
from .region.suite import suite as device_suite
from .selfproof import prove_harness
from .suite import Suite
from .swap.suite import suite as swap_suite

ALONE = Effort(most=12, samples=24)
# In pairs the second operation is cut off, and of one pair in eight the recovery too; which ones depends on the seed.
IN_PAIRS = Effort(most=8, samples=8, depth=1)
_DEEP_ONE_OF = 8
_SECONDS = 170
_PROCESSES = 2
_REPORT = Path("build/crash.json")


@dataclass(frozen=True)
class Part:
    """What one process did: its tally, the hashes of the distinct states per suite, and the planted bugs found and missed."""

    tally: Tally
    hashes: dict[str, np.ndarray]
    found: dict[str, str]
    missed: list[str]


def families() -> list[list[Suite]]:
    """Return the suites, those that share their planted bugs together."""
    return [[device_suite(mapping) for mapping in MAPPINGS], [swap_suite()], [borrowed_suite(each) for each in MECHANISMS], [host_suite()]]


def run_part(number: int, parts: int, seed: int, deadline: float) -> Part:
    """Do a part of the work: every `parts`-th suite of a large family, every `parts`-th workload of a small one; pairs come last."""
    trials = []
    for family in families():
        if len(family) >= parts:
            trials += [_Trial(suite, seed, 0, 1) for suite in family[number::parts]]
        else:
            trials += [_Trial(suite, seed, number, parts) for suite in family]
    for trial in trials:
        trial.alone()
    found, missed = {}, []
    for family in families():
        more = prove_harness(family, seed, family[0].bugs[number::parts])
        found.update(more[0])
        missed += more[1]
    pairs = [(trial, pair) for trial in trials for pair in trial.pairs()]
    random.Random(seed).shuffle(pairs)
    for trial, pair in pairs:
        trial.pair(pair, deadline)
    tally = Tally()
    for trial in trials:
        tally.add(trial.tally)
        tally.add(trial.plain.tally)
    return Part(tally, {trial.name: trial.hashes() for trial in trials}, found, missed)


class _Trial:
    """One suite, or every `step`-th workload of it from the first on."""

    def __init__(self, suite: Suite, seed: int, first: int, step: int) -> None:
        self.name = suite.name
        self.tally = Tally()
        self._suite, self._seed, self._first, self._step = suite, seed, first, step
        self.plain = suite.enumerator("", ALONE, seed)
        self._seen = self.plain.seen

    def alone(self) -> None:
        """Enumerate every operation alone, and the workloads that make no pairs."""
        for workload in self._suite.operations[self._first :: self._step]:
            self._run(self.plain, workload)
        for workload in self._suite.special[self._first :: self._step]:
            judge = self._suite.enumerator(workload, replace(ALONE, depth=1) if workload.startswith("repair") else ALONE, self._seed)
            self._run(judge, workload)
            self._seen |= judge.seen
            self.tally.add(judge.tally)
            judge.close()

    def pairs(self) -> list[str]:
        """Return all ordered pairs of operations."""
        operations = self._suite.operations
        return [f"{first}+{second}" for first, second in product(operations, operations)][self._first :: self._step]

    def pair(self, workload: str, deadline: float) -> None:
        """Enumerate a pair, unless the time is up."""
        if time.monotonic() > deadline:
            self.tally.counts["pairs_left_out"] += 1
            return
        deep = (zlib.crc32(workload.encode()) + self._seed) % _DEEP_ONE_OF == 0
        self.plain.effort = replace(IN_PAIRS, depth=2 if deep else 1)
        self._run(self.plain, workload)

    def hashes(self) -> np.ndarray:
        """Return the hashes of all distinct states."""
        return np.fromiter(self._seen, np.uint64)

    def _run(self, judge: Enumerator, workload: str) -> None:
        for recording in self._suite.recordings(workload):
            judge.run(recording)


def main() -> int:
    """Run everything and report; the exit code is 1 when a promise is broken or a planted bug is missed."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1] else int(time.time())
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else _SECONDS
    print(f"seed {seed}; the same again: make crash SEED={seed}", flush=True)
    started = time.monotonic()
    with multiprocessing.get_context("fork").Pool(_PROCESSES) as pool:
        parts = pool.starmap(run_part, [(number, _PROCESSES, seed, started + seconds) for number in range(_PROCESSES)], chunksize=1)
    total: Counter[str] = Counter()
    for part in parts:
        total += part.tally.counts
        for failure in part.tally.failures[:20]:
            print(f"FAILED {failure}")
        for name in part.missed:
            print(f"MISSED planted bug: {name}")
    found = {name: what for part in parts for name, what in part.found.items()}
    bugs: list[Plant] = [bug for family in families() for bug in family[0].bugs]
    names = sorted({name for part in parts for name in part.hashes})
    states = {name: len(np.unique(np.concatenate([part.hashes[name] for part in parts if name in part.hashes]))) for name in names}
    report = {
        "workloads": total["workloads"],
        "states": sum(states.values()),
        "complete_epochs": total["complete_epochs"] + total["recovery_complete_epochs"],
        "sampled_epochs": total["sampled_epochs"] + total["recovery_sampled_epochs"],
        "duplicates": total["duplicates"],
        "failures": total["failures"],
        "planted": len(bugs),
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
        "redundant": {bug.name: bug.redundant for bug in bugs if bug.redundant and bug.name not in found},
        "states_by_suite": states,
        "found_by": found,
    }
    _REPORT.parent.mkdir(exist_ok=True)
    _REPORT.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(f"{key} {value}" for key, value in report.items() if not isinstance(value, dict) or key == "states_by_suite"))
    return int(bool(total["failures"]) or any(part.missed for part in parts))


if __name__ == "__main__":
    sys.exit(main())
