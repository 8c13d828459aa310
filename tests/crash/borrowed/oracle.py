"""The full judgement of one crash state of a swap file and its reservation, by the product's own ways in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.errors import NotFoundError, NvmtoolError
from nvmtool.media import word
from nvmtool.swap.check import check_swap
from nvmtool.swap.reservation_check import check_reservation
from nvmtool.swap.reservationfile import ReservationFile
from nvmtool.swap.swapfile import SwapFile

from ..subject import Verdict
from ..swap.model import Model, digest_of, pattern
from ..swap.operations import into_memory, out
from .ground import ABSENT, RESERVATION, RESERVED_FILE, SWAP, Ground, standing_on
from .operations import OTHER
from .workloads import ENDS, LEFT, THERE, folder, read_all

if TYPE_CHECKING:
    from nvmtool.findings import Finding

    from ..trace import Media

_PROBE = 999


class _OnGround:
    """What both judges share: files that are used again for each state."""

    def __init__(self, *, clones: bool) -> None:
        """Make a folder."""
        self._folder = folder()
        self._ground = Ground(Path(self._folder.name), clones=clones)

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()

    def judge(self, media: Media) -> Verdict:
        """Return what a state shows and whether all promises hold in it; any exception is a broken promise."""
        return self._safely(media, self._judge)

    def glance(self, media: Media) -> Verdict:
        """Return what an orderly end has left."""
        return self._safely(media, self._glance)

    def _safely(self, media: Media, look: object) -> Verdict:
        self._ground.load(media)
        try:
            with standing_on(self._ground):
                return look()  # type: ignore[operator,no-any-return]
        except NvmtoolError as error:
            return Verdict("", f"does not open: {type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - a traceback is what is looked for
            return Verdict("", f"traceback: {type(error).__name__}: {error}")

    def _judge(self) -> Verdict:
        raise NotImplementedError

    def _glance(self) -> Verdict:
        raise NotImplementedError

    def _astray(self) -> str:
        """Return which block has too much storage or too little where nobody works: each has one, on one side."""
        ground = self._ground
        reserved, storage = ground.areas[RESERVATION].marks, ground.areas[SWAP].marks
        with ReservationFile.open(ground.reservation, writable=False) as file:
            fates, nblocks, promised = file.words.get_all(file.nblocks), file.nblocks, file.lenders.promised()
        if promised > nblocks:
            return f"{promised} blocks are promised, there are {nblocks}"
        lent = set()
        for block, (kind, where) in enumerate(zip(fates.kinds.tolist(), fates.storage.tolist(), strict=True)):
            if kind == word.MOVING:
                return f"reserved block {block} is on its way still"
            if kind == word.HELD and not ground.has_all(RESERVATION, block):
                return f"reserved block {block} is held and lacks storage"
            if kind == word.LENT and (reserved[block] or not ground.has_all(SWAP, where)):
                return f"reserved block {block} is lent, and the storage is not on that side alone"
            lent |= {where} if kind == word.LENT else set()
        extra = [block for block, mark in enumerate(storage) if mark and block not in lent]
        if extra or any(reserved[nblocks:]):
            return f"storage that is nobody's: storage blocks {extra}, behind the reservation {reserved[nblocks:]}"
        return ""


class BorrowedOracle(_OnGround):
    """Judges states in which the swap file goes on."""

    def _glance(self) -> Verdict:
        verdict, leaks = self._read()
        if verdict.problem:
            return verdict
        with SwapFile.open(self._ground.swap) as swap:
            idle = not swap.root.get("working") and not (swap.used == 0).any()
        problem = self._astray() if idle else "closed, and still says that somebody works on it"
        return Verdict(verdict.digest, problem, bool(leaks))

    def _judge(self) -> Verdict:
        ground = self._ground
        content = ground.media()
        before, leaks = self._read()
        if before.problem:
            return before
        if ground.media() != content:
            return Verdict(before.digest, "a reading command wrote")
        if leaks and (problem := self._repaired_first()):
            return Verdict(before.digest, problem)
        ground.load(content)
        with SwapFile.open(ground.swap, writable=True):
            pass
        after, leaks = self._read()
        if after.problem or after.digest != before.digest:
            return Verdict(before.digest, f"recovery shows another state, or: {after.problem}")
        if problem := self._mend(leaks):
            return Verdict(before.digest, problem)
        recovered = self._but_the_reservations_log()
        with SwapFile.open(ground.swap, writable=True):
            pass
        if self._but_the_reservations_log() != recovered:
            return Verdict(before.digest, "opening again changed something")
        return Verdict(before.digest, self._next_operation())

    def _repaired_first(self) -> str:
        """Let the check of the reservation repair it, and the swap file be opened only then."""
        check_reservation(self._ground.reservation, repair=True)
        if found := check_reservation(self._ground.reservation).findings:
            return f"repair left: {found[0].structure} {found[0].where} {found[0].what}"
        with SwapFile.open(self._ground.swap, writable=True):
            pass
        after, leaks = self._read()
        if after.problem or leaks:
            return f"after the repair: {after.problem or leaks[0]}"
        return self._astray()

    def _but_the_reservations_log(self) -> Media:
        # Only the next one who opens a reservation moves home what the last one committed.
        return {name: content for name, content in self._ground.media().items() if name != RESERVED_FILE}

    def _mend(self, leaks: list[Finding]) -> str:
        """Let the check of the reservation mend what only it can: what a resize or a swap file that never came has left."""
        others = [each for each in leaks if each.structure != "file"]
        if others:
            return f"recovery left: {others[0].structure} {others[0].where} {others[0].what}"
        check_reservation(self._ground.reservation, repair=True)
        found = [*check_swap(self._ground.swap).findings, *check_reservation(self._ground.reservation).findings]
        if found:
            return f"after recovery and repair: {found[0].structure} {found[0].where} {found[0].what}"
        return self._astray()

    def _read(self) -> tuple[Verdict, list[Finding]]:
        """Check both files and read everything; what is no leak is a problem, but for a promise to a file that never came."""
        found = [*check_swap(self._ground.swap).findings, *check_reservation(self._ground.reservation).findings]
        found = [each for each in found if OTHER not in each.what]
        if errors := [each for each in found if each.severity != "leak"]:
            return Verdict("", f"check: {errors[0].structure} {errors[0].where} {errors[0].what}"), found
        return Verdict(digest_of(read_all(self._ground))), found

    def _next_operation(self) -> str:
        """Swap so many pages out that another block is lent, and read all of them again after another open."""
        with SwapFile.open(self._ground.swap, writable=True) as swap:
            model = read_all(self._ground)
            into_memory(swap, [0] if isinstance(model[0], bytes) else [])
            others = [frame for frame, state in model.items() if frame > 0 and not isinstance(state, bytes)]
            out(swap, [0, *others], _PROBE)
        found = read_all(self._ground)
        wanted: Model = {**model, **{frame: pattern(frame * 1000 + _PROBE) for frame in (0, *others)}}
        if found != wanted:
            return "the next swap-out is not there, or took another page's place"
        verdict, leaks = self._read()
        return verdict.problem or ("the next swap-out leaves leaks" if leaks else self._astray())


class EndOracle(_OnGround):
    """Judges states in which a swap file's borrowing was being ended: the same call must end it, with every block at home."""

    def __init__(self, what: str, swap_uuid: bytes, *, clones: bool) -> None:
        """Judge a way to end: `leave`, or `forget`, of which the swap file is gone."""
        super().__init__(clones=clones)
        self._what, self._uuid = what, swap_uuid

    def _glance(self) -> Verdict:
        return Verdict(self._digest(), "" if self._digest() == THERE else self._not_home())

    def _judge(self) -> Verdict:
        digest = self._digest()
        for each in check_reservation(self._ground.reservation).findings:
            # The swap file's own words are as they were: it is about to go, or gone.
            if each.structure in ("held block", "lent block"):
                return Verdict(digest, f"check: {each.structure} {each.where} {each.what}")
        try:
            ENDS[self._what](self._ground, self._uuid)
        except NotFoundError:
            if digest == THERE:
                raise
        return Verdict(digest, self._not_home())

    def _digest(self) -> str:
        if self._what == "forget":
            self._ground.swap.unlink(missing_ok=True)
            self._ground.areas[SWAP].marks = [ABSENT] * self._ground.areas[SWAP].most
        with ReservationFile.open(self._ground.reservation, writable=False) as file:
            return LEFT if file.lenders.find(self._uuid) is None else THERE

    def _not_home(self) -> str:
        found = check_reservation(self._ground.reservation).findings
        if found:
            return f"check: {found[0].structure} {found[0].where} {found[0].what}"
        with ReservationFile.open(self._ground.reservation, writable=False) as file:
            away = np.count_nonzero(file.words.get_all(file.nblocks).kinds != word.HELD)
        return f"{away} blocks did not come home" if away else self._astray()
