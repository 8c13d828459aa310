"""Run damages of whole fields and structures, each with what is demanded of it, and repair after each of them."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nvmtool.errors import NvmtoolError
from tests.limits import HANG_SECONDS, Hang, limited

from .probe import Outcome, Probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .images import Image

# What is demanded of check and of reading. A checksum that was mended makes some damage undetectable where it is read: another
# table's pointer in its place, sealed for it. Then check must find it, by counting.
#   STRICT  check finds it; reading gives the same data or an error
#   FOUND   check finds it; reading may give anything but a traceback
#   FREE    the value is as good as any other: reading gives the same data or an error, check may be clean
#   TORN    a record of the log: one with a wrong checksum is a torn one, which has not happened, so that an earlier state is right too;
#           of one with a checksum that was mended, other data are right if check finds them
#   BLIND   nothing in the format can tell: no traceback, and no more is asked
STRICT, FOUND, FREE, TORN, BLIND = "strict", "found", "free", "torn", "blind"


@dataclass(frozen=True)
class Case:
    """One damage: what it is called, what makes it, and what is demanded."""

    name: str
    apply: Callable[[Image], None]
    demand: str


@dataclass
class CaseRun:
    """Figures over many cases."""

    cases: int = 0
    repaired: int = 0
    refused: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0


def run_cases(image: Image, cases: Iterable[Case], probe: Probe | None = None) -> CaseRun:
    """Damage, probe, repair and put back, case by case; a device image's probe unless there is another."""
    run = CaseRun()
    good = image.contents()
    probe = probe or Probe(image)
    for case in cases:
        case.apply(image)
        bad = image.contents()
        if bad != good:
            run.cases += 1
            outcome = probe.run(same_names=case.demand != FREE)
            if image.contents() != bad:
                outcome.faults.append("a reading command changed a file")
                image.restore(bad)
            run.outcomes.update([f"{case.demand}: reads {outcome.reads}, check {outcome.check}"])
            run.failures += [f"{case.name}: {problem}" for problem in broken_demands(case.demand, outcome)]
            if case.demand != BLIND:
                run.failures += [f"{case.name}: {problem}" for problem in repair_problems(image, probe, bad, outcome, run)]
            image.restore(good)
    run.slowest = probe.slowest
    return run


def broken_demands(demand: str, outcome: Outcome) -> list[str]:
    """Return in which ways an outcome is not what was demanded."""
    problems = list(outcome.faults)
    if demand == TORN and outcome.reads == "different" and outcome.check == "clean":
        problems.append(f"{demand}: reads {outcome.reads}, check {outcome.check}")
    if demand in (STRICT, FREE) and outcome.reads not in ("same", "error"):
        problems.append(f"{demand}: reads {outcome.reads}, check {outcome.check}")
    if demand in (STRICT, FOUND) and outcome.check == "clean":
        problems.append(f"{demand}: check is clean, reads {outcome.reads} {outcome.errors[:1]}")
    return problems


def repair_problems(image: Image, probe: Probe, bad: tuple[bytes, bytes], before: Outcome, run: CaseRun) -> list[str]:
    """Repair the damaged image: either it is clean and every state is the model's, or not a byte has changed."""
    problems = []
    started = time.monotonic()
    clean = False
    try:
        with limited(2 * HANG_SECONDS):
            result = probe.repair()
        clean = result.clean
        if not clean and result.repaired:
            problems.append(f"repair left it half mended: {result.findings[-1]}")
    except NvmtoolError:
        pass
    except Hang:
        problems.append("repair hangs")
    except Exception as error:  # noqa: BLE001 - what must never be is what is looked for
        problems.append(f"repair: traceback: {type(error).__name__}: {error}")
    if clean and before.check != "clean":
        run.repaired += 1
        outcome = probe.run()
        if outcome.reads not in ("same", before.reads if before.reads == "earlier" else "same") or outcome.check != "clean":
            problems.append(f"repaired, but reads {outcome.reads}, check {outcome.check} {outcome.errors[:1]}")
    elif not clean:
        run.refused += 1
        if image.contents() != bad:
            problems.append("repair refused, but changed a file")
    probe.slowest = max(probe.slowest, time.monotonic() - started)
    return problems
