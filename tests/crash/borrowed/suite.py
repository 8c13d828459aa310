"""The suites of swap files with a reservation, one for each way in which blocks move."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from ..enumeration import Effort, Enumerator
from ..suite import Suite
from .bugs import BUGS
from .operations import IN_PAIRS, operations, plain_steps
from .oracle import BorrowedOracle, EndOracle
from .subject import BorrowedSubject
from .workloads import ENDS, base, record, record_end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..trace import Recording
    from .oracle import _OnGround

MECHANISMS = ("clone", "allocate")
# Judging a state takes five times as long as that of one file.
_MOST, _SAMPLES = 9, 8


@cache
def suite(mechanism: str) -> Suite:
    """Return the trials of one mechanism."""
    clones = mechanism == "clone"
    special = [*(step.name for step in operations() if step.name not in IN_PAIRS), *ENDS]

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
        effort = replace(effort, most=min(effort.most, _MOST), samples=min(effort.samples, _SAMPLES))
        if workload in special:
            # Of what ends the borrowing, the same call once more is the recovery.
            effort = replace(effort, depth=1)
        if workload in ENDS:
            judge = EndOracle(workload, base(clones=clones).swap_uuid, clones=clones)
        return Enumerator(subject, judge, effort, seed)

    return Suite(
        name=f"borrowed-{mechanism}",
        bugs=BUGS,
        operations=list(IN_PAIRS),
        special=special,
        usual=("out-into-new-block", "in-whole-block", "lend-and-shrink"),
        recordings=recordings,
        enumerator=enumerator,
        prove=_prove,
    )


def _prove(folder: Path, workload: str) -> list[str]:
    """Return nothing: stores and pages are the same as those of swap files, which are proven there."""
    return []
