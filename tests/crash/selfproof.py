"""The harness proves itself: each planted bug must be found by the rules, the enumeration or the oracle, or say why nothing can find it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from nvmtool.errors import NvmtoolError
from nvmtool.region.header import decode_header

from .bases import MAPPINGS, base
from .bugs import BUGS
from .enumeration import Effort, Enumerator
from .model import BLOCK
from .operations import operations, plain_steps
from .oracle import RepairOracle
from .planting import Plant, SourceChangedError, planted
from .proof import prove
from .special import formats, repairs
from .workloads import record

_EFFORT = Effort(most=7, samples=6, prove_one_of=10**9, depth=1)
# What is tried for a bug that names no workloads.
_USUAL = ("write-logged", "snapshot-create", "recall")


def find_bug(bug: Plant, seed: int) -> str:
    """Plant a bug and return the first failure that the harness reports, empty when it finds nothing."""
    for mapping in MAPPINGS:
        base(mapping)
    for effort in (_EFFORT,) if bug.redundant else (_EFFORT, replace(_EFFORT, depth=2)):
        for workload in bug.workloads or _USUAL:
            for mapping in MAPPINGS:
                if found := _try(bug, workload, mapping, effort, seed):
                    return f"{mapping}+{workload}: {found}"
    return ""


def _try(bug: Plant, workload: str, mapping: str, effort: Effort, seed: int) -> str:
    if workload.startswith("proof:"):
        with planted(bug), tempfile.TemporaryDirectory() as folder:
            return next(iter(_proof(Path(folder), mapping, workload.removeprefix("proof:"))), "")
    repairing = workload.startswith("repair")
    header = decode_header(base(mapping).image[:BLOCK], mapping)
    judge = Enumerator(header, effort, seed, RepairOracle() if repairing else None)
    try:
        with planted(bug):
            for recording in _recordings(workload, mapping):
                judge.run(recording)
                if judge.tally.failures:
                    return judge.tally.failures[0]
    except SourceChangedError:
        raise
    except NvmtoolError as error:
        return f"an operation failed: {error}"
    except Exception as error:  # noqa: BLE001 - a planted bug may break anything
        return f"traceback: {type(error).__name__}: {error}"
    finally:
        judge.close()
    return ""


def _proof(folder: Path, mapping: str, name: str) -> list[str]:
    return prove(folder, mapping, {step.name: step for step in operations()}[name])


def _recordings(workload: str, mapping: str):  # type: ignore[no-untyped-def]
    if workload == "format":
        yield from formats()[1:]
    elif workload.startswith("repair"):
        yield from (each for each in repairs(mapping) if each.name.endswith(workload))
    else:
        steps = {step.name: step for step in [*operations(), *plain_steps()]}
        if recording := record(mapping, *(steps[name] for name in workload.split("+"))):
            yield recording


def prove_harness(seed: int, bugs: list[Plant] = BUGS) -> tuple[dict[str, str], list[str]]:
    """Plant every bug; return what found each of those that were found, and the names of those that were missed without a reason."""
    found, missed = {}, []
    for bug in bugs:
        try:
            what = find_bug(bug, seed)
        except SourceChangedError as error:
            missed.append(str(error))
            continue
        if what:
            found[bug.name] = what
        elif not bug.redundant:
            missed.append(bug.name)
    return found, missed
