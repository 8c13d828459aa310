"""Compare the pages of a swap file with what they must hold, and say of each that differs what it is instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..media.pagefile import page_buffer
from .frames import IN_MEMORY
from .stamps_layout import ANY, MEMORY, NEVER, SWAPPED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .pattern import Pattern
    from .swapfile import SwapFile

_CHUNK_FRAMES = 1 << 16
_BATCH_PAGES = 256
_MOST_SAID = 10


@dataclass(frozen=True, slots=True)
class Expected:
    """What a stretch of page frames must hold: per frame a state (stamps_layout), and the two versions that its page may be."""

    states: NDArray[np.uint8]
    committed: NDArray[np.uint64]
    pending: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Checked:
    """A stretch of page frames that was compared.

    `slots` are the file's own states (SwapFile.states), `versions` what was found in pages that were read, `sound` is False for frames with
    an error, `gone` True for pages that went with the process whose memory they were in; `npages` pages were read.
    """

    frames: NDArray[np.int64]
    slots: NDArray[np.int64]
    expected: Expected
    versions: NDArray[np.uint64]
    sound: NDArray[np.bool_]
    gone: NDArray[np.bool_]
    npages: int


class Findings:
    """Page frames with an error: each counts once, the first ten are described."""

    def __init__(self) -> None:
        """Begin with none."""
        self._frames: set[int] = set()
        self.lines: list[str] = []

    @property
    def errors(self) -> int:
        """How many page frames have an error."""
        return len(self._frames)

    def add(self, frame: int, where: str, what: str) -> None:
        """Count a frame and say what is wrong with it."""
        if frame not in self._frames and len(self._frames) < _MOST_SAID:
            self.lines.append(f"frame {frame} {where}: {what}")
        self._frames.add(frame)


def iter_checked(
    swap: SwapFile,
    pattern: Pattern,
    expected: Callable[[int, int], Expected],
    findings: Findings,
    *,
    only_uncertain: bool = False,
) -> Iterator[Checked]:
    """Yield all page frames in stretches of 65,536, compared with `expected(start, stop)`; errors go to the findings.

    With `only_uncertain` just those pages are read of which not one version alone is expected. Raises DamagedError, StorageError.
    """
    buffer = page_buffer(_BATCH_PAGES)
    for start in range(0, swap.nframes, _CHUNK_FRAMES):
        frames = np.arange(start, min(start + _CHUNK_FRAMES, swap.nframes))
        wanted = expected(start, start + frames.size)
        slots = swap.states_of_range(start, start + frames.size)
        present = slots >= 0
        lost = ~present & (wanted.states == SWAPPED)
        for index in np.flatnonzero(lost).tolist():
            findings.add(start + index, "is in no slot", f"lost: expected version {int(wanted.committed[index])}")
        gone = ~present & ((wanted.states == MEMORY) | (wanted.states == ANY) & (slots == IN_MEMORY))
        reading = present & ((wanted.states != SWAPPED) | (wanted.committed != wanted.pending)) if only_uncertain else present
        versions = np.zeros(frames.size, np.uint64)
        sound = ~lost
        indexes = np.flatnonzero(reading)
        for first in range(0, indexes.size, _BATCH_PAGES):
            batch = indexes[first : first + _BATCH_PAGES]
            pages = buffer[: batch.size]
            swap.read_pages(frames[batch], pages)
            versions[batch] = pages.view("<u8")[:, 1]
            sound[batch] = _compare(pattern, pages, frames[batch], versions[batch], wanted, batch)
            for row in np.flatnonzero(~sound[batch]).tolist():
                index = int(batch[row])
                what = _describe(pattern, pages[row], start + index, wanted, index)
                findings.add(start + index, f"in slot {int(slots[index])}", what)
        yield Checked(frames, slots, wanted, versions, sound, gone, int(indexes.size))


def _compare(
    pattern: Pattern,
    pages: NDArray[np.uint8],
    frames: NDArray[np.int64],
    versions: NDArray[np.uint64],
    wanted: Expected,
    at: NDArray[np.int64],
) -> NDArray[np.bool_]:
    states = wanted.states[at]
    either = (versions == wanted.committed[at]) | (versions == wanted.pending[at])
    allowed: NDArray[np.bool_] = (states == ANY) | (states != NEVER) & either
    return allowed & pattern.hold(pages, frames, versions)


def _describe(pattern: Pattern, page: NDArray[np.uint8], frame: int, wanted: Expected, index: int) -> str:
    state, committed, pending = int(wanted.states[index]), int(wanted.committed[index]), int(wanted.pending[index])
    if state == NEVER:
        expected = "no page, for it was not swapped out"
    elif state == ANY:
        expected = "any version"
    else:
        expected = f"version {committed}" + (f" or {pending}" if pending != committed else "")
    return describe(pattern, page.view("<u8"), frame, max(committed, pending) if state != ANY else None, expected)


def describe(pattern: Pattern, page: NDArray[np.uint64], frame: int, newest: int | None, expected: str) -> str:
    """Return what a page (512 words) that is not what was expected is instead: stale, doubled, newer or torn."""
    found = pattern.identify(page)
    if found is None:
        kind, what = "torn", f"a mixture that names frame {int(page[0])} and version {int(page[1])}"
    elif found == (-1, 0):
        kind, what = "stale", "zeros"
    elif found[0] != frame:
        kind, what = "doubled", f"version {found[1]} of frame {found[0]}"
    else:
        kind = "newer" if newest is not None and found[1] > newest else "stale"
        what = f"version {found[1]}" + (" (was it swapped out by a run without these stamps?)" if kind == "newer" else "")
    return f"{kind}: expected {expected}, found {what}"
