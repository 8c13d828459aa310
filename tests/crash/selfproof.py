"""The harness proves itself: each planted bug must be found by the rules, the enumeration or the oracle, or say why nothing can find it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nvmtool.errors import NvmtoolError
from tests.limits import Hang, limited

from .enumeration import Effort
from .planting import Plant, SourceChangedError, planted
from .suite import Suite

# Far more than any workload takes.
_HANG_SECONDS = 60.0
_EFFORT = Effort(most=7, samples=6, prove_one_of=10**9, depth=1)


def find_bug(bug: Plant, suites: Sequence[Suite], seed: int) -> str:
    """Plant a bug and return the first failure that the harness reports, empty when it finds nothing."""
    for effort in (_EFFORT,) if bug.redundant else (_EFFORT, replace(_EFFORT, depth=2, prove_one_of=20)):
        for suite in suites:
            for workload in bug.workloads or suite.usual:
                if found := _try(bug, workload, suite, effort, seed):
                    return f"{suite.name}+{workload}: {found}"
    return ""


def _try(bug: Plant, workload: str, suite: Suite, effort: Effort, seed: int) -> str:
    if workload.startswith("proof:"):
        with planted(bug), tempfile.TemporaryDirectory() as folder:
            return next(iter(suite.prove(Path(folder), workload.removeprefix("proof:"))), "")
    # What the recordings start from is made before the bug is there.
    judge = suite.enumerator(workload, effort, seed)
    try:
        with planted(bug), limited(_HANG_SECONDS):
            for recording in suite.recordings(workload):
                judge.run(recording)
                if judge.tally.failures:
                    return judge.tally.failures[0]
    except Hang:
        return judge.tally.failures[0] if judge.tally.failures else "it hangs"
    except SourceChangedError:
        raise
    except NvmtoolError as error:
        return f"an operation failed: {error}"
    except Exception as error:  # noqa: BLE001 - a planted bug may break anything
        return f"traceback: {type(error).__name__}: {error}"
    finally:
        judge.close()
    return ""


def prove_harness(suites: Sequence[Suite], seed: int, bugs: Sequence[Plant]) -> tuple[dict[str, str], list[str]]:
    """Plant every bug; return what found each of those that were found, and the names of those that were missed without a reason."""
    found, missed = {}, []
    for bug in bugs:
        try:
            what = find_bug(bug, suites, seed)
        except SourceChangedError as error:
            missed.append(str(error))
            continue
        if what:
            found[bug.name] = what
        elif not bug.redundant:
            missed.append(bug.name)
    return found, missed
