"""The suite of swap files."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ..enumeration import Effort, Enumerator
from ..suite import Suite
from .bugs import BUGS
from .media import FILE, fields_of
from .operations import operations, plain_steps
from .oracle import SwapOracle
from .proof import prove
from .subject import SwapSubject
from .workloads import base, record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..trace import Recording
    from .operations import Operation


@cache
def suite() -> Suite:
    """Return the trials of swap files."""
    return Suite(
        name="swap",
        bugs=BUGS,
        operations=[step.name for step in operations()],
        special=[],
        usual=("out-into-new-block", "in-whole-block", "relocate-one-leaves"),
        recordings=_recordings,
        enumerator=_enumerator,
        prove=lambda folder, workload: prove(folder, *_steps(workload)),
    )


def _steps(workload: str) -> list[Operation]:
    steps = {step.name: step for step in [*operations(), *plain_steps()]}
    return [steps[name] for name in workload.split("+")]


def _recordings(workload: str) -> Iterator[Recording]:
    if recording := record(*_steps(workload)):
        yield recording


def _enumerator(workload: str, effort: Effort, seed: int) -> Enumerator:
    fields = fields_of(base().media[FILE])
    return Enumerator(SwapSubject(fields), SwapOracle(fields), effort, seed)
