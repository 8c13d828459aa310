"""The suite of hosts: their file for the enumeration, and what is tried."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.errors import NvmtoolError
from nvmtool.host import layout as lay
from nvmtool.host.host import Host

from ..borrowed.workloads import folder
from ..enumeration import Enumerator
from ..recovered import Log, Logs
from ..subject import PER_BLOCK, Layout
from ..suite import Suite
from .bugs import BUGS
from .oracle import HostOracle
from .scenario import walk
from .workloads import MEDIUM, OPERATIONS, copy_of_base, record, recorded, small_tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ..subject import Mask, Words
    from ..trace import Event, Media, Recording, Trace


class HostSubject:
    """A host's file: every word but the log's is read always, and nothing else is stored to."""

    sticky = False

    def __init__(self) -> None:
        """Take the areas that all hosts have."""
        with small_tables():
            areas = lay.host_areas()
        self.layout = Layout({MEDIUM: areas["size_blocks"]})
        log = Log(self.layout.slices[MEDIUM], areas["log_start"], areas["log_blocks"])
        self.logs = Logs(log)
        self.home = self.layout.mask(self.layout.slices[MEDIUM])
        self.commits = self.layout.mask(log.area, slice(0, 2 * PER_BLOCK))
        self._read = self.home & ~self.layout.mask(log.area)

    def read_at_home(self, words: Words) -> Mask:
        """Return all words but the log's."""
        return self._read

    def read_far(self, words: Words) -> Mask:
        """Return nothing: there is one file."""
        return np.zeros(self.layout.nwords, bool)

    def leaks(self, words: Words) -> Mask:
        """Return nothing: records occupy no storage."""
        return np.zeros(self.layout.nwords, bool)

    def decides(self, at: NDArray[np.int64]) -> Mask:
        """Return nothing: every home word is read always."""
        return np.zeros(len(at), bool)

    def opens(self, words: Words) -> str:
        """Return nothing: headers are never stored to again."""
        return ""

    def exempt(self, event: Event, durable: Words) -> bool:
        """Return nothing: there are no exceptions."""
        return False

    def contents(self, words: Words, lengths: dict[str, int]) -> Media:
        """Return the medium, which never changes its size."""
        return {MEDIUM: words[self.layout.slices[MEDIUM]].tobytes()}

    def recover(self, trace: Trace, media: Media) -> None:
        """Open a host for writing and close it."""
        with folder() as where:
            path = copy_of_base(Path(where))
            (path / "host.nvh").write_bytes(media[MEDIUM])
            with recorded(trace), Host.open(path, writable=True, lost=True):
                pass


@cache
def suite() -> Suite:
    """Return the trials of hosts."""
    return Suite(
        name="host",
        bugs=BUGS,
        operations=list(OPERATIONS),
        special=[],
        usual=tuple(OPERATIONS),
        recordings=_recordings,
        enumerator=lambda workload, effort, seed: Enumerator(HostSubject(), HostOracle(), effort, seed),
        prove=_walk,
    )


def _walk(where: Path, workload: str) -> list[str]:
    """Walk through what a host does to memory, where what must be is insisted on by assertions."""
    try:
        walk(where)
    except Exception as error:  # noqa: BLE001 - a planted bug may break anything
        return [f"{type(error).__name__}: {error}"]
    return []


def _recordings(workload: str) -> Iterator[Recording]:
    names = workload.split("+")
    # Of two that cannot follow each other nothing is recorded.
    if len(names) == 1 or len(set(names)) == len(names):
        try:
            yield record(*names)
        except NvmtoolError:
            return
