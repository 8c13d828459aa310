"""Check a reservation: its words, its promises, its blocks' storage, and what the swap files themselves say; mend what is proven.

Borrowers wait while it looks (WRITER is held shared), so nothing is in the middle of a move. What a running VM is about to say of its
blocks is no finding; of a swap file without a VM everything must agree.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, NotFoundError, NvmtoolError, StorageError
from ..findings import CheckResult, Finding
from ..media import lock, word
from ..media.header import COPIES
from ..media.journal import runs
from ..media.store import translated
from . import layout as lay
from .blockmove import fill
from .blockwords import Fates
from .homecoming import forget
from .reservationfile import ReservationFile
from .swapside import SwapSide

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .lenders import Lender

    Ints = NDArray[np.int64]
    Progress = Callable[[int, int, str], None] | None

_MOST_FINDINGS = 100
_BLOCKS_AT_ONCE = 4096


@dataclass
class Survey:
    """What a look at a reservation found, and what can be mended: blocks to punch, blocks to fill, lenders to settle or to forget."""

    file: ReservationFile
    findings: list[Finding] = field(default_factory=list)
    fixable: bool = True
    leaked: list[int] = field(default_factory=list)
    lacking: list[int] = field(default_factory=list)
    unsettled: list[Lender] = field(default_factory=list)
    gone: list[Lender] = field(default_factory=list)

    def find(self, severity: str, structure: str, where: str, what: str, *, fixable: bool = False) -> None:
        """Note a broken rule."""
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(Finding(severity, structure, where, what))
        self.fixable &= fixable


def check_reservation(path: str | Path, *, repair: bool = False, progress: Progress = None) -> CheckResult:
    """Check a reservation and what it says of its swap files; `repair` mends what is proven.

    Opens for writing only when there is something to repair and all of it can be. Raises FormatError, DamagedError or BusyError when
    the file cannot even be opened, NoSpaceError when blocks must be allocated anew and cannot.
    """
    path = Path(path)
    with ReservationFile.open(path, writable=False, exclusive=True) as file:
        before = _survey(file, progress)
    if not (repair and before.findings and before.fixable):
        return CheckResult(not before.findings, before.findings, len(before.leaked), 0)
    for lender in before.unsettled:
        _settle(before.file, lender)
    with ReservationFile.open(path, writable=True) as file:
        # Others may have borrowed since: mend only what is so now.
        now = _survey(file, progress)
        if now.fixable:
            _mend(now)
    with ReservationFile.open(path, writable=False, exclusive=True) as file:
        after = _survey(file, progress)
    mended = [finding for finding in before.findings if finding not in after.findings]
    return CheckResult(not after.findings, mended + after.findings, len(before.leaked), len(mended))


def _survey(file: ReservationFile, progress: Progress) -> Survey:
    survey = Survey(file)
    _check_headers(survey)
    _check_size(survey)
    try:
        file.journal.require_no_later_record()
        lenders = list(file.lenders)
        fates = file.words.get_all(file.nblocks)
        _ = file.clones
    except DamagedError as error:
        where, _, what = str(error).removeprefix(f"{file.path}: ").partition(": ")
        survey.find("error", "words", where, what)
        return survey
    _check_lenders(survey, lenders, fates)
    for lender in lenders:
        _check_lender(survey, lender, fates)
    _check_storage(survey, fates, progress)
    return survey


def _check_headers(survey: Survey) -> None:
    both = os.pread(survey.file.fd, len(COPIES) * lay.PAGE, 0)
    _, copy, wrong = lay.RESERVATION_FORMAT.choose(both[: lay.PAGE], both[lay.PAGE :], survey.file.path)
    for message in wrong:
        survey.find("error", "header", f"block {1 - copy}", message, fixable=True)


def _check_size(survey: Survey) -> None:
    file = survey.file
    size, wanted = os.fstat(file.fd).st_size, file.size_of(file.nblocks)
    if size > wanted and lock.try_lock(file.fd, lock.RESIZER, exclusive=file.journal.writable):
        survey.find("leak", "file", f"0x{wanted:x}", f"{size - wanted} bytes past the last block", fixable=True)
    lock.unlock(file.fd, lock.RESIZER)


def _check_lenders(survey: Survey, lenders: list[Lender], fates: Fates) -> None:
    """Check what the reservation alone tells: promises, and that each storage block is lent once, by a lender that there is."""
    nblocks = len(fates.kinds)
    promised = sum(lender.promise for lender in lenders)
    if promised > nblocks:
        survey.find("error", "promises", "lender table", f"{promised} blocks are promised, there are {nblocks}")
    if len({lender.uuid for lender in lenders}) != len(lenders):
        survey.find("error", "lender table", "uuids", "two lenders have one uuid")
    counts = np.bincount(fates.lenders, minlength=lay.MAX_LENDERS + 1)
    promises = {lender.number: lender.promise for lender in lenders}
    for number in (np.flatnonzero(counts[1:]) + 1).tolist():
        if number not in promises:
            survey.find("error", "block words", f"lender {number}", f"{counts[number]} blocks are lent to it, there is none")
        elif counts[number] > promises[number]:
            survey.find("error", "promises", f"lender {number}", f"has {counts[number]} blocks, promised were {promises[number]}")
    away = np.flatnonzero(fates.kinds != word.HELD)
    order = away[np.lexsort((fates.storage[away], fates.lenders[away]))]
    same = (np.diff(fates.lenders[order]) == 0) & (np.diff(fates.storage[order]) == 0)
    for block in order[1:][same].tolist():
        where = f"storage block {int(fates.storage[block])} of lender {int(fates.lenders[block])}"
        survey.find("error", "block words", f"block {block}", f"{where} is another reserved block too")


def _check_lender(survey: Survey, lender: Lender, fates: Fates) -> None:
    """Compare what is lent with what the swap file says that it has."""
    path = survey.file.lenders.location(lender)
    where = f"lender {lender.number}"
    try:
        side = SwapSide.open(path, lender.uuid, writable=False)
    except NotFoundError as error:
        if (moved := _moved_to(path, lender.uuid)) is not None:
            survey.find("error", "swap file", where, f"{path}: is {moved} now; open it there once: swap check --repair, or swap run")
            return
        gone = _is_gone(survey.file, path)
        # Without a lent block only a promise is lost: a creation was killed before the file had its name.
        severity = "error" if (fates.lenders == lender.number).any() else "leak"
        survey.find(severity, "swap file", where, f"{error}" + ("" if gone else "; if it is deleted: reservation forget"), fixable=gone)
        survey.gone += [lender] if gone else []
        return
    except NvmtoolError as error:
        survey.find("error", "swap file", where, str(error))
        return
    try:
        if side.reservation_uuid != survey.file.uuid:
            survey.find(
                "error", "swap file", where, f"{path}: borrows from another reservation (uuid {uuid.UUID(bytes=side.reservation_uuid)})"
            )
        idle = side.keep_writers_away(exclusive=False)
        _compare(survey, lender, fates, side.occupied(), idle=idle)
    except NvmtoolError as error:
        survey.find("error", "swap file", where, str(error))
    finally:
        side.close()


def _compare(survey: Survey, lender: Lender, fates: Fates, occupied: NDArray[np.bool_], *, idle: bool) -> None:
    where = f"lender {lender.number}"
    homes = np.flatnonzero(fates.of(lender.number))
    storage = fates.storage[homes]
    if len(storage) and storage.max() >= len(occupied):
        survey.find("error", "block words", where, f"storage block {storage.max()} is lent, the swap file has {len(occupied)}")
        return
    lent = np.zeros(len(occupied), bool)
    lent[storage] = True
    alone = np.flatnonzero(occupied & ~lent)
    if len(alone):
        survey.find("error", "swap file", where, f"{len(alone)} storage blocks hold pages and are not lent, the first is {alone[0]}")
    if not idle:
        return  # a running VM says the rest with its next request
    moving = int(np.count_nonzero(fates.kinds[homes] == word.MOVING))
    empty = np.flatnonzero(lent & ~occupied)
    if moving:
        survey.find("leak", "block words", where, f"{moving} blocks were being moved when a process was killed", fixable=True)
    if len(empty):
        survey.find(
            "leak", "swap file", where, f"{len(empty)} storage blocks are lent and hold no page, the first is {empty[0]}", fixable=True
        )
    if moving or len(empty):
        survey.unsettled.append(lender)


def _check_storage(survey: Survey, fates: Fates, progress: Progress) -> None:
    """Check that held blocks have storage and lent ones have none; those on their way may have either."""
    nblocks = len(fates.kinds)
    try:
        survey.file.area.is_written(0, 1)
    except StorageError:
        return  # a file system that does not tell (tmpfs)
    for start in range(0, nblocks, _BLOCKS_AT_ONCE):
        stored = _stored(survey.file, start, min(_BLOCKS_AT_ONCE, nblocks - start))
        kinds = fates.kinds[start : start + len(stored)]
        survey.lacking += (np.flatnonzero((kinds == word.HELD) & (stored < survey.file.block_bytes)) + start).tolist()
        survey.leaked += (np.flatnonzero((kinds == word.LENT) & (stored > 0)) + start).tolist()
        if progress is not None:
            progress(start + len(stored), nblocks, "blocks")
    for block in survey.lacking[:_MOST_FINDINGS]:
        survey.find("error", "held block", f"block {block}", "has not all of its storage", fixable=True)
    for block in survey.leaked[:_MOST_FINDINGS]:
        survey.find("leak", "lent block", f"block {block}", "has storage in the reservation too", fixable=True)


def _stored(file: ReservationFile, first: int, count: int) -> Ints:
    """Return of each block of a run how many bytes have storage, only written ones where blocks are cloned."""
    offset, length = file.area.bounds(first, count)
    stored = np.zeros(count, np.int64)
    size = file.block_bytes
    for extent in file.pages.extents(offset, length):
        if extent.written or not file.clones:
            start, end = extent.offset - offset, extent.offset - offset + extent.length
            edges = np.arange(start // size, -(-end // size))
            stored[edges] += np.minimum(end, (edges + 1) * size) - np.maximum(start, edges * size)
    return stored


def _is_gone(file: ReservationFile, path: Path) -> bool:
    """Tell whether a swap file that is not found is gone: its folder is on the reservation's file system, so that is mounted."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    return folder.stat().st_dev == os.fstat(file.fd).st_dev


def _moved_to(path: Path, swap_uuid: bytes) -> Path | None:
    """Return where a swap file is that was renamed within its folder, perhaps under a running VM."""
    if not path.parent.is_dir():
        return None
    for other in sorted(path.parent.iterdir()):
        with suppress(NvmtoolError, OSError):
            if other.is_file():
                SwapSide.open(other, swap_uuid, writable=False).close()
                return other
    return None


def _settle(file: ReservationFile, lender: Lender) -> None:
    """Do for a swap file without a VM what its next one would: each block that was moving ends on the side that the pages are on."""
    with SwapSide.open(file.lenders.location(lender), lender.uuid, writable=True) as side:
        if side.keep_writers_away(exclusive=True):  # else a VM has begun since, which does it
            side.bring_in_order(file.path, file.uuid, side.occupied())


def _mend(survey: Survey) -> None:
    """Mend what is left in the reservation's turn; each step leaves a whole reservation, and a second repair goes on after a kill."""
    file = survey.file
    for first, count in runs(np.array(survey.leaked, np.int64)):
        file.area.punch(first, count)
    for lender in survey.gone:
        forget(file, lender)
    for first, count in runs(np.array(survey.lacking, np.int64)):
        fill(file.area, first, count, written=file.clones)
    file.pages.fence()
    if any(finding.structure == "header" for finding in survey.findings):
        header = lay.RESERVATION_FORMAT.encode(file.fields)
        for copy in COPIES:
            # One at a time: the other copy is whole while this one is written.
            file.journal.store.store_bytes(copy * lay.PAGE, [header])
            file.journal.store.fence()
    if any(finding.structure == "file" for finding in survey.findings):
        with translated(file.path):
            os.ftruncate(file.fd, file.size_of(file.nblocks))
