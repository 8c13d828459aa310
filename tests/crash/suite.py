"""A suite: what of one format is tried, from one base image or file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .enumeration import Effort, Enumerator
from .planting import Plant
from .trace import Recording


@dataclass(frozen=True)
class Suite:
    """The trials of one base.

    Workloads are operation names joined by +. `recordings` gives what a workload stores, nothing where the base refuses one of its
    operations; `enumerator` one that judges such a workload. `special` are workloads that make no pairs. `usual` are tried for a planted
    bug that names none. `prove` runs a workload on real files and says what differs from the trace.
    """

    name: str
    bugs: list[Plant]
    operations: list[str]
    special: list[str]
    usual: tuple[str, ...]
    recordings: Callable[[str], Iterable[Recording]]
    enumerator: Callable[[str, Effort, int], Enumerator]
    prove: Callable[[Path, str], list[str]]
