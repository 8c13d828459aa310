"""What `make fuzz` runs: every bit, every field and every structure damage on small images of each kind; figures go to build/fuzz.json."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from . import hostfiles, reservationcases, swapcases
from .bits import Flipper
from .cases import Case, CaseRun, run_cases
from .commands import sample
from .fields import field_cases
from .images import KINDS, Image
from .reservationfiles import KINDS as RESERVATION_KINDS
from .reservationfiles import ReservationProbe
from .structures import structure_cases
from .swapfiles import KINDS as SWAP_KINDS
from .swapfiles import SwapProbe

BIT_KINDS = ("virtblock", "direct", "logged")
SAMPLED_CASES = 600
SAMPLED_FIELDS = 3000
PROCESS_SAMPLES = 8
HOST_NOISE = 300
MOST_MIB = 200


@dataclass
class Figures:
    """What one process did."""

    kind: str
    flips: int = 0
    skipped_words: int = 0
    process_samples: int = 0
    cases: int = 0
    repaired: int = 0
    refused: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    memory_growth_mib: float = 0.0


def run_part(kind: str, seed: int, bits: int, part: int, parts: int) -> Figures:
    """Do one part of the work on an image of a kind, in this process."""
    figures = Figures(kind)
    with tempfile.TemporaryDirectory(dir=ram_folder()) as folder:
        image = KINDS[kind](Path(folder), seed)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if bits and kind in BIT_KINDS:
            flipper = Flipper(image)
            run = flipper.run(bits, seed, part, parts)
            figures.failures += sample(flipper, seed + part, PROCESS_SAMPLES)
            figures.process_samples = PROCESS_SAMPLES
            figures.flips, figures.skipped_words, figures.slowest_seconds = run.flips, run.skipped_words, run.slowest
            figures.failures += run.failures
            figures.outcomes.update({f"flip: reads {name}": count for name, count in run.reads.items()})
            figures.outcomes.update({f"flip: check {name}": count for name, count in run.checks.items()})
        cases: CaseRun = run_cases(image, chosen_cases(image, kind, seed, every=bits >= 64)[part::parts])
        figures.cases, figures.repaired, figures.refused = cases.cases, cases.repaired, cases.refused
        figures.failures += cases.failures
        figures.outcomes.update(cases.outcomes)
        figures.slowest_seconds = max(figures.slowest_seconds, cases.slowest)
        figures.memory_growth_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if figures.memory_growth_mib > MOST_MIB:
        figures.failures.append(f"{kind}: memory grew by {figures.memory_growth_mib:.0f} MiB")
    return figures


def run_swap_part(what: str, kind: str, seed: int, bits: int, part: int, parts: int) -> Figures:
    """Do one part of the work on a swap file or a reservation of a kind, in this process."""
    figures = Figures(f"{what} {kind}")
    make, probe_of, damages, flipper_of = {
        "swap": (SWAP_KINDS, SwapProbe, swapcases, swapcases.SwapFlipper),
        "reservation": (RESERVATION_KINDS, ReservationProbe, reservationcases, reservationcases.ReservationFlipper),
    }[what]
    with tempfile.TemporaryDirectory(dir=ram_folder()) as folder:
        image = make[kind](Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cases = run_cases(image, [*damages.field_cases(image), *damages.structure_cases(image)][part::parts], probe_of(image))
        figures.cases, figures.repaired, figures.refused = cases.cases, cases.repaired, cases.refused
        figures.failures += cases.failures
        figures.outcomes.update(cases.outcomes)
        if bits:
            flipper = flipper_of(image)
            run = flipper.run(flipper.targets(bits, seed)[part::parts])
            figures.flips = run.flips
            figures.failures += run.failures
            figures.outcomes.update({f"flip: reads {name}": count for name, count in run.reads.items()})
            figures.outcomes.update({f"flip: check {name}": count for name, count in run.checks.items()})
            figures.slowest_seconds = run.slowest
        figures.slowest_seconds = max(figures.slowest_seconds, cases.slowest)
        figures.memory_growth_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return figures


def run_host_part(seed: int, bits: int, part: int, parts: int) -> Figures:
    """Do one part of the work on a host's files, in this process."""
    figures = Figures("host")
    with tempfile.TemporaryDirectory(dir=ram_folder()) as folder:
        image = hostfiles.HostImage(Path(folder))
        damaged = hostfiles.run_cases(image, list(hostfiles.cases(image))[part::parts])
        spoiled = hostfiles.noise(image, seed + part, HOST_NOISE)
        flipped = hostfiles.flip_bits(image, image.targets()[part::parts], list(range(64)) if bits else [])
        figures.flips, figures.cases = flipped.damages, damaged.damages + spoiled.damages
        for run in (damaged, spoiled, flipped):
            figures.failures += run.failures
            figures.outcomes.update({f"host: {name}": count for name, count in run.outcomes.items()})
            figures.slowest_seconds = max(figures.slowest_seconds, run.slowest)
    return figures


def chosen_cases(image: Image, kind: str, seed: int, *, every: bool) -> list[Case]:
    """Return all cases of the small images, or a sample of those of fields; and a sample of those of a large image."""
    rng = random.Random(seed)
    structures = list(structure_cases(image))
    if kind not in BIT_KINDS:
        return rng.sample(structures, min(len(structures), SAMPLED_CASES))
    fields = list(field_cases(image))
    return [*(fields if every else rng.sample(fields, min(len(fields), SAMPLED_FIELDS))), *structures]


def ram_folder() -> str | None:
    """Return a folder in memory, where there is one: hundreds of thousands of small stores are no work for a disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main() -> int:
    """Run, print and write the figures; 1 when anything broke the promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="repeat a run")
    parser.add_argument("--bits", type=int, default=1, help="bits to flip in each word that is 0, of 64; 0 leaves bits out")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which images")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("build/fuzz.json"))
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    started = time.monotonic()
    work = [(kind, seed, options.bits, part, options.jobs) for kind in options.kinds.split(",") for part in range(options.jobs)]
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        done = pool.starmap(run_part, work, chunksize=1)
        files = [("swap", kind) for kind in SWAP_KINDS] + [("reservation", kind) for kind in RESERVATION_KINDS]
        swap_work = [(*file, seed, options.bits, part, options.jobs) for file in files for part in range(options.jobs)]
        done += pool.starmap(run_swap_part, swap_work, chunksize=1)
        done += pool.starmap(run_host_part, [(seed, options.bits, part, options.jobs) for part in range(options.jobs)], chunksize=1)
    report = summary(done, seed, options.bits, time.monotonic() - started)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    for key, value in report.items():
        if key not in ("failures", "images"):
            print(f"{key:18} {value}")
    for failure in report["failures"][:40]:
        print("FAILURE", failure)
    return 1 if report["failures"] else 0


def summary(done: list[Figures], seed: int, bits: int, seconds: float) -> dict:
    """Add the parts up."""
    outcomes: Counter[str] = sum((figures.outcomes for figures in done), Counter())
    return {
        "seed": seed,
        "bits_of_zero_words": bits,
        "flips": sum(figures.flips for figures in done),
        "flips_through_processes": sum(figures.process_samples for figures in done),
        "cases": sum(figures.cases for figures in done),
        "repaired": sum(figures.repaired for figures in done),
        "refused": sum(figures.refused for figures in done),
        "outcomes": dict(sorted(outcomes.items())),
        "skipped_words_of_blocks_that_nothing_reads": sum({figures.kind: figures.skipped_words for figures in done}.values()),
        "slowest_seconds": round(max(figures.slowest_seconds for figures in done), 3),
        "memory_growth_mib": round(max(figures.memory_growth_mib for figures in done), 1),
        "failures": [failure for figures in done for failure in figures.failures],
        "images": [vars(figures) for figures in done],
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
