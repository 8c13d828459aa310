"""The suites of swap files with a reservation, one for each way in which blocks move."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from ..enumeration import Effort, Enumerator
from ..suite import Suite
from .bugs import BUGS
from .operations import operations, plain_steps
from .oracle import BorrowedOracle, EndOracle
from .subject import BorrowedSubject
from .workloads import ENDS, base, record, record_end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..trace import Recording
    from .oracle import _OnGround

MECHANISMS = ("clone", "allocate")


@cache
def suite(mechanism: str) -> Suite:
    """Return the trials of one mechanism."""
    clones = mechanism == "clone"

    def recordings(workload: str) -> Iterator[Recording]:
        name = f"borrowed {mechanism}+{workload}"
        if workload in ENDS:
            yield record_end(workload, clones=clones, name=name)
            return
        steps = {step.name: step for step in [*operations(), *plain_steps()]}
        if recording := record(*(steps[each] for each in workload.split("+")), clones=clones, name=name):
            yield recording

    def enumerator(workload: str, effort: Effort, seed: int) -> Enumerator:
        subject = BorrowedSubject(base(clones=clones).media, clones=clones)
        judge: _OnGround = BorrowedOracle(clones=clones)
        if workload in ENDS:
            # The call that ends it is repeated as it is: that is its recovery.
            effort = replace(effort, depth=1)
            judge = EndOracle(workload, base(clones=clones).swap_uuid, clones=clones)
        return Enumerator(subject, judge, effort, seed)

    return Suite(
        name=f"borrowed-{mechanism}",
        bugs=BUGS,
        operations=[step.name for step in operations()],
        special=list(ENDS),
        usual=("out-into-new-block", "in-whole-block", "lend-and-shrink"),
        recordings=recordings,
        enumerator=enumerator,
        prove=_prove,
    )


def _prove(folder: Path, workload: str) -> list[str]:
    """Return nothing: stores and pages are the same as those of swap files, which are proven there."""
    return []
