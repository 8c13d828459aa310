"""Check a swap file: each word's own rules, no slot named twice, counts against frames, and both against the file system's storage.

The frame words decide: counts follow from them, so one that is damaged or too low is mended. A count that is too high is not, for a frame
word may be lost; nor are a damaged frame word and a slot that two frames name: nobody can know which page is right. Storage is compared
with the words where no process has the file open for writing; what a running VM does between two commits is no damage.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BusyError, DamagedError, StorageError
from ..findings import CheckResult, Finding
from ..media.root import ROOT_BLOCK
from . import layout as lay
from .check_borrowed import check_borrowed
from .check_storage import Stored, check_storage, find_stored
from .frames import IN_MEMORY, UNTOUCHED, decode_frames, frame_state
from .raw import RawSwap
from .repair import apply_fixes
from .swapfile import SwapFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ..media.word import Words

    Ints = NDArray[np.int64]
    Progress = Callable[[int, int, str], None] | None

_FRAMES_AT_ONCE = 1 << 18
# Of one kind; how many more there are is said too.
_MOST_FINDINGS = 100
RUNNING = "a process has the file open for writing"


@dataclass(frozen=True)
class SwapCheckResult(CheckResult):
    """What a check of a swap file found; `not_compared`: why storage was not compared with the file system's, or an empty string."""

    frames_swapped: int
    frames_in_memory: int
    frames_untouched: int
    not_compared: str


@dataclass
class Naming:
    """The frames that name one slot: how many, and the first two of them."""

    count: int = 0
    frames: list[int] = field(default_factory=list)

    def add(self, frames: Ints) -> None:
        """Count more frames."""
        self.count += len(frames)
        self.frames += frames[: 2 - len(self.frames)].tolist()


@dataclass
class Walk:
    """What a walk over a swap file learnt: `taken` are the slots that frames name, `stored` what has storage, if known."""

    raw: RawSwap
    findings: list[Finding] = field(default_factory=list)
    # New values for words whose rightful contents the walk proves: (word indexes, values).
    fixes: list[tuple[Ints, Words]] = field(default_factory=list)
    fixable: bool = True
    leaked_blocks: int = 0
    not_compared: str = ""
    swapped: int = 0
    in_memory: int = 0
    untouched: int = 0
    stored: Stored | None = None

    def __post_init__(self) -> None:
        """Allocate a byte per slot."""
        self.taken = np.zeros(self.raw.nslots, bool)
        # The first few slots that more than one frame names.
        self.doubled: list[int] = []

    def find(self, severity: str, structure: str, where: str, what: str, *, fixable: bool = False) -> None:
        """Note a broken rule."""
        self.findings.append(Finding(severity, structure, where, what))
        self.fixable &= fixable

    def find_each(
        self, severity: str, structure: str, numbers: Ints, say: Callable[[int], tuple[str, str]], *, fixable: bool = False
    ) -> None:
        """Note a rule that each of many numbers breaks; `say` gives where and what of one. The first are listed, the others counted."""
        for number in numbers[:_MOST_FINDINGS].tolist():
            self.find(severity, structure, *say(number), fixable=fixable)
        if len(numbers) > _MOST_FINDINGS:
            self.find(severity, structure, "others", f"{len(numbers) - _MOST_FINDINGS} more like these", fixable=fixable)

    def frames_naming(self, slots: Sequence[int]) -> dict[int, Naming]:
        """Return for each of a few slots which frames name it; a pass over the frame words."""
        naming = {slot: Naming() for slot in slots}
        wanted = np.array(sorted(naming), np.int64)
        for first in range(0, self.raw.nframes if len(wanted) else 0, _FRAMES_AT_ONCE):
            states, bad = _decode(self.raw, first)
            found = np.flatnonzero(np.isin(states, wanted) & ~bad)
            for slot in np.unique(states[found]).tolist():
                naming[slot].add(found[states[found] == slot] + first)
        return naming

    def result(self, repaired: int = 0, findings: Sequence[Finding] = ()) -> SwapCheckResult:
        """Return what this walk found, behind what was found before it."""
        return SwapCheckResult(
            clean=not self.findings,
            findings=[*findings, *self.findings],
            leaked_blocks=self.leaked_blocks,
            repaired=repaired,
            frames_swapped=self.swapped,
            frames_in_memory=self.in_memory,
            frames_untouched=self.untouched,
            not_compared=self.not_compared,
        )


def check_swap(
    path: str | Path, *, repair: bool = False, reservation: str | Path | None = None, progress: Progress = None
) -> SwapCheckResult:
    """Check a swap file; `repair` mends what is proven, `reservation` is where the file's reservation is now.

    Opens for reading, and for writing only when there is something to repair and all of it can be; otherwise the file stays
    byte-identical. Raises FormatError, DamagedError or NotFoundError when it cannot even be opened, and BusyError that names the
    process that runs it when there is something to repair.
    """
    path = Path(path)
    with RawSwap(path) as raw:
        walk = _walk(raw, reservation, progress)
    if not (repair and walk.findings and walk.fixable):
        return walk.result()
    with RawSwap(path, writable=True) as raw:
        # Another process may have written since: mend only what is so now.
        walk = _walk(raw, reservation, progress)
        if not (walk.findings and walk.fixable):
            return walk.result()
        apply_fixes(walk)
    # Storage that nothing names goes back where it came from as it does after a kill; a VM that was quicker has done it.
    with suppress(BusyError), SwapFile.open(path, writable=True, reservation=reservation):
        pass
    with RawSwap(path) as raw:
        again = _walk(raw, reservation, progress)
    again.leaked_blocks = walk.leaked_blocks
    return again.result(len(walk.findings), walk.findings)


def _walk(raw: RawSwap, reservation: str | Path | None, progress: Progress) -> Walk:
    walk = Walk(raw)
    _find_storage(walk)
    _check_headers(walk)
    _check_unused_words(walk)
    _check_log(walk)
    _check_frames(walk, progress)
    _check_doubled(walk)
    working = _is_working(walk)
    check_storage(walk, working=working)
    check_borrowed(walk, reservation, working=working)
    return walk


def _find_storage(walk: Walk) -> None:
    """Learn which slots have data while no process changes that; says why where it cannot be."""
    try:
        if walk.raw.is_idle:
            walk.stored = find_stored(walk.raw)
        else:
            walk.not_compared = RUNNING
    except StorageError as error:
        walk.not_compared = f"the file system does not tell what has storage ({error})"
    walk.raw.let_writers_in()


def _check_headers(walk: Walk) -> None:
    with open(walk.raw.path, "rb") as file:
        first, second = file.read(lay.PAGE), file.read(lay.PAGE)
    _, _, wrong = lay.SWAP_FORMAT.choose(first, second, walk.raw.path)
    for message in wrong:
        walk.find("error", "header", "block 0" if "copy A" in message else "block 1", message, fixable=True)


def _check_unused_words(walk: Walk) -> None:
    """Words behind the root words, the log's generation, and the last frame and storage words are 0."""
    raw, per_page = walk.raw, lay.WORDS_PER_PAGE
    log_start, data_start = raw.fields["log_start"], raw.fields["data_start"]
    for name, start, end in (
        ("root block", ROOT_BLOCK * per_page + lay.SWAP_ROOT.itemsize // 8, (ROOT_BLOCK + 1) * per_page),
        ("log", log_start * per_page + 1, (log_start + 1) * per_page),
        ("frame words", raw.frame_base + raw.nframes, raw.storage_base),
        ("storage words", raw.storage_base + raw.nblocks, data_start * per_page),
    ):
        wrong = start + np.flatnonzero(raw.journal.array[start:end])
        if len(wrong):
            what = f"{len(wrong)} unused words are not 0, the first is 0x{int(raw.journal.array[wrong[0]]):016x}"
            walk.find("error", name, f"0x{int(wrong[0]) * 8:x}", what, fixable=True)
            walk.fixes.append((wrong, np.zeros(len(wrong), np.uint64)))


def _check_log(walk: Walk) -> None:
    try:
        walk.raw.journal.require_no_later_record()
    except DamagedError as error:
        where, _, what = str(error).partition(": ")
        walk.find("error", "log", where, what)


def _check_frames(walk: Walk, progress: Progress) -> None:
    """Read all frame words, a stretch at a time; fill `taken` and `doubled`, and list words that are bad."""
    raw = walk.raw
    damaged: list[Ints] = []
    for first in range(0, raw.nframes, _FRAMES_AT_ONCE):
        states, bad = _decode(raw, first)
        damaged.append(np.flatnonzero(bad) + first)
        sound = states[~bad]
        slots = np.sort(sound[sound >= 0])
        again = walk.taken[slots]
        again[1:] |= slots[1:] == slots[:-1]
        walk.doubled += np.unique(slots[again])[: _MOST_FINDINGS - len(walk.doubled)].tolist()
        walk.taken[slots] = True
        walk.swapped += len(slots)
        walk.in_memory += int((sound == IN_MEMORY).sum())
        walk.untouched += int((sound == UNTOUCHED).sum())
        if progress is not None:
            progress(first + len(states), raw.nframes, "frames")

    def say(frame: int) -> tuple[str, str]:
        offset = (raw.frame_base + frame) * 8
        try:
            frame_state(int(raw.frame_words(frame, frame + 1)[0]), frame, raw.nslots, offset)
        except DamagedError as error:
            return f"frame {frame} (0x{offset:x})", str(error).partition(": ")[2]
        raise AssertionError("a word is bad by one rule and sound by the same")

    walk.find_each("error", "frame word", np.concatenate(damaged), say)


def _decode(raw: RawSwap, first: int) -> tuple[Ints, NDArray[np.bool_]]:
    behind = min(first + _FRAMES_AT_ONCE, raw.nframes)
    return decode_frames(raw.frame_words(first, behind), np.arange(first, behind), raw.nslots)


def _check_doubled(walk: Walk) -> None:
    for slot, naming in walk.frames_naming(walk.doubled).items():
        more = f", and by {naming.count - 2} more" if naming.count > 2 else ""
        walk.find("error", "slot", f"slot {slot}", f"is named by frame {naming.frames[0]} and by frame {naming.frames[1]}{more}")


def _is_working(walk: Walk) -> bool:
    """Tell whether a process is at work, or was killed in it, so that blocks without a page may have storage."""
    try:
        working = walk.raw.root.get("working")
    except DamagedError as error:
        walk.find("error", "root word", "working", str(error).partition(": ")[2], fixable=True)
        return True
    if working > 1:
        walk.find("error", "root word", "working", f"is {working}, must be 0 or 1", fixable=True)
    return working != 0 or not walk.raw.is_idle
