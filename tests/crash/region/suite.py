"""The suites of device images: one for each mapping."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

from nvmtool.region.header import decode_header

from ..enumeration import Effort, Enumerator
from ..suite import Suite
from .bases import MAPPINGS, base
from .bugs import BUGS
from .model import BLOCK
from .operations import operations, plain_steps
from .oracle import Oracle, RepairOracle
from .proof import prove
from .special import formats, repairs
from .subject import DeviceSubject
from .workloads import record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..trace import Recording

_REPAIRS = ["repair-counts", "repair-header-a", "repair-header-b", "repair-unused", "repair-slots"]


@cache
def suite(mapping: str) -> Suite:
    """Return the trials from a base image."""
    return Suite(
        name=mapping,
        bugs=BUGS,
        operations=[step.name for step in operations()],
        special=[*_REPAIRS, *(["format"] if mapping == MAPPINGS[0] else [])],
        usual=("write-logged", "snapshot-create", "recall"),
        recordings=partial(_recordings, mapping),
        enumerator=partial(_enumerator, mapping),
        prove=partial(_prove, mapping),
    )


def _recordings(mapping: str, workload: str) -> Iterator[Recording]:
    if workload == "format":
        yield from formats()
    elif workload.startswith("repair"):
        yield from (each for each in repairs(mapping) if each.name.endswith(workload))
    else:
        steps = {step.name: step for step in [*operations(), *plain_steps()]}
        if recording := record(mapping, *(steps[name] for name in workload.split("+"))):
            yield recording


def _enumerator(mapping: str, workload: str, effort: Effort, seed: int) -> Enumerator:
    header = decode_header(base(mapping).image[:BLOCK], mapping)
    return Enumerator(DeviceSubject(header), RepairOracle() if workload.startswith("repair") else Oracle(), effort, seed)


def _prove(mapping: str, folder: Path, workload: str) -> list[str]:
    steps = {step.name: step for step in operations()}
    return prove(folder, mapping, *(steps[name] for name in workload.split("+")))
