"""Small swap files, their anatomy, and how a damaged one is probed: the second format that this harness damages."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nvmtool.errors import NvmtoolError
from nvmtool.findings import CheckResult
from nvmtool.media import word
from nvmtool.media.journal import LOG_RECORD
from nvmtool.media.root import ROOT_BLOCK
from nvmtool.swap import layout as lay
from nvmtool.swap.check import check_swap
from nvmtool.swap.defrag import plan_defrag
from nvmtool.swap.info import swap_info
from nvmtool.swap.swapfile import SwapFile
from tests.crash.swap.model import Model, read_model
from tests.crash.swap.operations import into_memory, out
from tests.crash.swap.workloads import make_base
from tests.limits import HANG_SECONDS, Hang, limited

from .anatomy import Anatomy, Word
from .probe import Outcome

PER_PAGE = lay.WORDS_PER_PAGE


@dataclass
class SwapImage:
    """A swap file and what it must show; `earlier` models are right too once a record of the log is torn, the oldest first."""

    path: Path
    model: Model
    earlier: list[Model] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take note of where there is storage."""
        with SwapFile.open(self.path) as swap:
            self.fields: dict[str, Any] = swap.fields
            self.used = swap.used.copy()

    def contents(self) -> bytes:
        """Return the bytes of the file."""
        return self.path.read_bytes()

    def restore(self, contents: bytes) -> None:
        """Put the bytes of the file back, and its storage: what is written must not fill holes."""
        now = self.path.read_bytes()
        with self.path.open("r+b") as file:
            file.truncate(len(contents))
            block_bytes, data = self.fields["slots_per_block"] * lay.PAGE, self.fields["data_start"] * lay.PAGE
            if len(now) < len(contents):
                for block in np.flatnonzero(self.used >= 0).tolist():
                    os.posix_fallocate(file.fileno(), data + block * block_bytes, block_bytes)
            for start in range(0, len(contents), lay.PAGE):
                page = contents[start : start + lay.PAGE]
                if page != now[start : start + lay.PAGE] and not (start >= data and not any(page) and start >= len(now)):
                    file.seek(start)
                    file.write(page)


def plain_swap(folder: Path) -> SwapImage:
    """Three storage blocks with pages, two without storage; frames in slots, in memory and untouched."""
    path = folder / "vm.swap"
    make_base(path)
    with SwapFile.open(path) as swap:
        model = read_model(swap)
    return SwapImage(path, model)


def logged_swap(folder: Path) -> SwapImage:
    """A file whose log still holds two records, as after a kill."""
    path = folder / "vm.swap"
    make_base(path)
    swap = SwapFile.open(path, writable=True)
    earlier = [read_model(swap)]
    out(swap, [2, 3], 1)
    earlier.append(read_model(swap))
    into_memory(swap, [26])
    swap.commit()
    model = read_model(swap)
    swap.close(commit=False)
    return SwapImage(path, model, earlier)


KINDS = {"plain": plain_swap, "logged": logged_swap}


def anatomy_of(image: SwapImage) -> Anatomy:
    """Dissect a sound swap file: its sealed words as they are at home, its blocks, and the records of its log."""
    fields, stored = image.fields, np.frombuffer(image.contents(), "<u8", image.fields["data_start"] * PER_PAGE)
    words: dict[int, Word] = {}

    def add(index: int, structure: str, name: str, place: int) -> None:
        words[index] = Word(index, structure, name, place, int(stored[index]))

    add(ROOT_BLOCK * PER_PAGE, "root", "working", word.place(lay.SWAP_ROOT_PLACE, 0, 0))
    add(fields["log_start"] * PER_PAGE, "log", "generation", word.place(0x70, 0, 0))
    for frame in range(fields["nframes"]):
        add(fields["frame_start"] * PER_PAGE + frame, "frame", "word", word.place(lay.FRAME_PLACE, 0, frame))
    for block in range(fields["nblocks"]):
        add(fields["storage_start"] * PER_PAGE + block, "storage", "word", word.place(lay.STORAGE_PLACE, 0, block))
    blocks = {0: "header", 1: "header", ROOT_BLOCK: "root", fields["log_start"]: "log"}
    for name in ("frame", "storage"):
        blocks |= dict.fromkeys(range(fields[f"{name}_start"], fields[f"{name}_start"] + fields[f"{name}_blocks"]), name)
    records = list(_log_records(image))
    for offset, size in records:
        blocks |= dict.fromkeys(range(offset // lay.PAGE, -(-(offset + size) // lay.PAGE)), "log record")
    return Anatomy(words, blocks, records, fields["data_start"], fields["data_start"])


def _log_records(image: SwapImage) -> list[tuple[int, int]]:
    with SwapFile.open(image.path) as swap:
        count, view = swap.journal.sequence, bytes(swap.journal.store.view)
    found, offset = [], (image.fields["log_start"] + 1) * lay.PAGE
    for _ in range(count):
        head = np.frombuffer(view, LOG_RECORD, 1, offset)[0]
        size = LOG_RECORD.itemsize + 16 * int(head["nwords"]) + (8 + lay.PAGE) * int(head["nblocks"])
        found.append((offset, size))
        offset += -(-size // lay.PAGE) * lay.PAGE
    return found


class SwapProbe:
    """Probes damages of one swap file: check, info, every page, the plan of a defragmentation, and an open for writing of a copy."""

    def __init__(self, image: SwapImage) -> None:
        """Stand on an image."""
        self.image = image
        self.slowest = 0.0
        self._copy = image.path.with_name("copy.swap")

    def repair(self) -> CheckResult:
        """Check the file and repair it."""
        return check_swap(self.image.path, repair=True)

    def run(self, *, same_names: bool = True, writing: bool = True) -> Outcome:
        """Check and read the file as it is now, and open a copy for writing; every exception that is no NvmtoolError is a fault."""
        outcome, started = Outcome(), time.monotonic()
        try:
            with limited():
                self._check(outcome)
                self._read(outcome, self.image.path, writable=False)
                if writing:
                    shutil.copyfile(self.image.path, self._copy)
                    self._read(outcome, self._copy, writable=True)
        except Hang:
            outcome.faults.append(f"hang: more than {HANG_SECONDS} s")
        except Exception as error:  # noqa: BLE001 - what must never be is what is looked for
            last = error.__traceback__
            while last is not None and last.tb_next is not None:
                last = last.tb_next
            outcome.faults.append(f"traceback: {type(error).__name__}: {error} in {last and last.tb_frame.f_code.co_qualname}")
        self.slowest = max(self.slowest, time.monotonic() - started)
        return outcome

    def _check(self, outcome: Outcome) -> None:
        try:
            outcome.result = check_swap(self.image.path)
            outcome.check = "clean" if outcome.result.clean else "found"
        except NvmtoolError as error:
            self._one_line(outcome, error)
            outcome.check = type(error).__name__

    def _read(self, outcome: Outcome, path: Path, *, writable: bool) -> None:
        try:
            with SwapFile.open(path, writable=writable) as swap:
                swap_info(swap)
                plan_defrag(swap)
                found = read_model(swap)
            if found in self.image.earlier and outcome.reads == "same":
                outcome.reads = "earlier"
            elif found != self.image.model and found not in self.image.earlier:
                outcome.reads = "different"
        except NvmtoolError as error:
            self._one_line(outcome, error)
            outcome.reads = "error" if outcome.reads == "same" else outcome.reads
            outcome.errors.append(f"{type(error).__name__}: {error}")

    @staticmethod
    def _one_line(outcome: Outcome, error: NvmtoolError) -> None:
        if "\n" in str(error):
            outcome.faults.append(f"more than one line: {error}")
