"""Small reservations with their swap file, their anatomy, and how a damaged one is probed."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nvmtool.errors import NvmtoolError
from nvmtool.media import word
from nvmtool.media.journal import LOG_RECORD
from nvmtool.media.root import ROOT_BLOCK
from nvmtool.swap import layout as lay
from nvmtool.swap.reservation import reservation_info
from nvmtool.swap.reservation_check import check_reservation
from nvmtool.swap.reservationfile import ReservationFile
from nvmtool.swap.swapfile import SwapFile
from tests.crash.borrowed.ground import Ground, standing_on
from tests.crash.borrowed.workloads import base, read_all
from tests.limits import HANG_SECONDS, Hang, limited

from .anatomy import Anatomy, Word
from .edit import write_at
from .probe import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvmtool.findings import CheckResult

    Contents = tuple[tuple[bytes, tuple[int, ...]], ...]

PER_PAGE = lay.WORDS_PER_PAGE


@dataclass
class Shown:
    """What a reservation shows: the pages of its swap file, its size and promises, and its facts."""

    model: dict[int, Any]
    facts: dict[str, Any]


class ReservationImage:
    """A reservation that lends three of six blocks, and its swap file; `logged`: its log holds what was said last."""

    def __init__(self, folder: Path, *, logged: bool) -> None:
        """Make both files in a folder."""
        self.ground = Ground(folder, clones=True)
        self.ground.load(base(clones=True).media)
        self.path = self.ground.reservation
        with standing_on(self.ground):
            if not logged:
                with ReservationFile.open(self.path, writable=True):
                    pass
            with ReservationFile.open(self.path, writable=False) as file:
                self.fields, self.nblocks, self.nrecords = file.fields, file.nblocks, file.journal.sequence
            self.shown = shown(self.ground)
            self.earlier = list(self._earlier())

    def contents(self) -> Contents:
        """Return both files, and what storage their blocks have."""
        return tuple(((self.ground.folder / name).read_bytes(), tuple(area.marks)) for name, area in self.ground.areas.items())

    def restore(self, contents: Contents) -> None:
        """Put both files back."""
        for (name, area), (content, marks) in zip(self.ground.areas.items(), contents, strict=True):
            (self.ground.folder / name).write_bytes(content)
            area.marks = list(marks)

    def _earlier(self) -> Iterator[Shown]:
        """Yield what is right too once a record of the log, and so all behind it, counts as torn."""
        contents = self.contents()
        for offset, _ in _log_records(self):
            write_at(self.path, offset, bytes(8))
            with suppress(NvmtoolError):
                yield shown(self.ground)
            self.restore(contents)


def shown(ground: Ground) -> Shown:
    """Return what both files show; raises NvmtoolError."""
    facts = reservation_info(ground.reservation)
    # The file system's own count, and what only swap files compare.
    del facts["allocated_bytes"], facts["uuid"]
    return Shown(read_all(ground), facts)


def plain_reservation(folder: Path) -> ReservationImage:
    """Make one whose log is empty."""
    return ReservationImage(folder, logged=False)


def logged_reservation(folder: Path) -> ReservationImage:
    """Make one whose log holds records."""
    return ReservationImage(folder, logged=True)


KINDS = {"plain": plain_reservation, "logged": logged_reservation}


def anatomy_of(image: ReservationImage) -> Anatomy:
    """Dissect a sound reservation: its sealed words that mean something, its blocks, and the records of its log."""
    fields = image.fields
    stored = np.frombuffer(image.path.read_bytes(), "<u8")
    words: dict[int, Word] = {}

    def add(index: int, structure: str, name: str, place: int) -> None:
        words[index] = Word(index, structure, name, place, int(stored[index]))

    for number, name in enumerate(lay.RESERVATION_ROOT.names):
        add(ROOT_BLOCK * PER_PAGE + number, "root", name, word.place(lay.RESERVATION_ROOT_PLACE, 0, number))
    add(fields["log_start"] * PER_PAGE, "log", "generation", word.place(0x70, 0, 0))
    lenders, per_record = fields["lender_start"] * PER_PAGE, lay.LENDER_RECORD.itemsize // 8
    for index in (*range(per_record), *range(per_record, PER_PAGE, per_record)):
        name = ("promise", "uuid[0]", "uuid[1]", "uuid[2]", "path_bytes")[index] if index < 5 else "path"
        add(lenders + index, "lender", name if index < per_record else "promise", word.place(lay.LENDER_PLACE, 0, index))
    for block in range(image.nblocks):
        add(fields["block_start"] * PER_PAGE + block, "block", "word", word.place(lay.RESERVED_PLACE, 0, block))
    blocks = {0: "header", 1: "header", ROOT_BLOCK: "root", fields["log_start"]: "log"}
    blocks |= {fields["lender_start"]: "lender", fields["block_start"]: "block"}
    records = list(_log_records(image))
    for offset, size in records:
        blocks |= dict.fromkeys(range(offset // lay.PAGE, -(-(offset + size) // lay.PAGE)), "log record")
    return Anatomy(words, blocks, records, fields["data_start"], fields["data_start"])


def _log_records(image: ReservationImage) -> list[tuple[int, int]]:
    content, found = image.path.read_bytes(), []
    offset = (image.fields["log_start"] + 1) * lay.PAGE
    for _ in range(image.nrecords):
        head = np.frombuffer(content, LOG_RECORD, 1, offset)[0]
        size = LOG_RECORD.itemsize + 16 * int(head["nwords"]) + (8 + lay.PAGE) * int(head["nblocks"])
        found.append((offset, size))
        offset += -(-size // lay.PAGE) * lay.PAGE
    return found


class ReservationProbe:
    """Probes damages of one reservation: check, facts, and the swap file's pages, read and opened for writing."""

    def __init__(self, image: ReservationImage) -> None:
        """Stand on an image."""
        self.image = image
        self.slowest = 0.0

    def repair(self) -> CheckResult:
        """Check the reservation and repair it."""
        with standing_on(self.image.ground):
            return check_reservation(self.image.path, repair=True)

    def run(self, *, same_names: bool = True, writing: bool = True) -> Outcome:
        """Check and read both files as they are now, and open the swap file for writing; then all is put back."""
        outcome, started = Outcome(), time.monotonic()
        contents = self.image.contents()
        try:
            with limited(), standing_on(self.image.ground):
                self._check(outcome)
                self._read(outcome)
                if self.image.contents() != contents:
                    outcome.faults.append("a reading command changed a file")
                if writing:
                    self._write(outcome)
        except Hang:
            outcome.faults.append(f"hang: more than {HANG_SECONDS} s")
        except Exception as error:  # noqa: BLE001 - what must never be is what is looked for
            last = error.__traceback__
            while last is not None and last.tb_next is not None:
                last = last.tb_next
            outcome.faults.append(f"traceback: {type(error).__name__}: {error} in {last and last.tb_frame.f_code.co_qualname}")
        if writing:
            self.image.restore(contents)
        self.slowest = max(self.slowest, time.monotonic() - started)
        return outcome

    def _check(self, outcome: Outcome) -> None:
        try:
            outcome.result = check_reservation(self.image.path)
            outcome.check = "clean" if outcome.result.clean else "found"
        except NvmtoolError as error:
            self._note(outcome, error)
            outcome.check = type(error).__name__

    def _read(self, outcome: Outcome) -> None:
        try:
            if (found := shown(self.image.ground)) != self.image.shown:
                outcome.reads = "earlier" if found in self.image.earlier else "different"
        except NvmtoolError as error:
            self._note(outcome, error)
            outcome.reads = "error"

    def _write(self, outcome: Outcome) -> None:
        """Open the swap file for writing, as a VM that starts does: its pages must stay what they are, whatever the reservation says."""
        try:
            with SwapFile.open(self.image.ground.swap, writable=True):
                pass
        except NvmtoolError as error:
            self._note(outcome, error)
        with SwapFile.open(self.image.ground.swap) as swap:
            pages = self.image.shown.model
            frames = np.array([frame for frame, state in pages.items() if isinstance(state, bytes)])
            buffer = np.empty((len(frames), lay.PAGE), np.uint8)
            swap.read_pages(frames, buffer)
        if [page.tobytes() for page in buffer] != [pages[frame] for frame in frames.tolist()]:
            outcome.faults.append("the swap file lost pages when it was opened for writing")

    @staticmethod
    def _note(outcome: Outcome, error: NvmtoolError) -> None:
        if "\n" in str(error):
            outcome.faults.append(f"more than one line: {error}")
        outcome.errors.append(f"{type(error).__name__}: {error}")
