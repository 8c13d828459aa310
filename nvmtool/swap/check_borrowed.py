"""Check a swap file against its reservation: that it is there, knows the file, and lent just the blocks that the file has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import BusyError, DamagedError, FormatError, NotFoundError
from .opening import reservation_location
from .reservationfile import ReservationFile

if TYPE_CHECKING:
    from pathlib import Path

    from .check import Walk


def check_borrowed(walk: Walk, said: str | Path | None, *, working: bool) -> None:
    """Compare with the reservation; blocks only of a file that nobody is `working` on, or was killed in doing so."""
    raw = walk.raw
    if not any(raw.fields["reservation_uuid"]):
        return
    path = reservation_location(raw.path, raw.fields, said)
    try:
        with ReservationFile.open(path, writable=False) as file:
            _compare(walk, file, compare_blocks=raw.is_idle and not working)
    except NotFoundError:
        walk.find("error", "reservation", str(path), "is gone; --reservation if it was moved")
    except (FormatError, DamagedError) as error:
        where, _, what = str(error).partition(": ")
        walk.find("error", "reservation", where, what)
    except BusyError as error:
        walk.not_compared = walk.not_compared or str(error)


def _compare(walk: Walk, file: ReservationFile, *, compare_blocks: bool) -> None:
    raw = walk.raw
    if file.uuid != raw.fields["reservation_uuid"]:
        walk.find("error", "reservation", str(file.path), f"is another one (uuid {file.uuid_text}) than this file borrows from")
        return
    lender = file.lenders.find(raw.fields["uuid"])
    if lender is None:
        walk.find("error", "reservation", str(file.path), "was promised nothing: it does not know this file")
        return
    fates = file.words.get_all(file.nblocks)
    lent = np.sort(fates.storage[fates.of(lender.number)])
    if compare_blocks:
        present = np.flatnonzero(raw.storage_words)
        here = lambda block: (f"storage block {block}", f"has storage that {file.path} did not lend")  # noqa: E731
        there = lambda block: (f"storage block {block}", f"is lent by {file.path} and holds nothing")  # noqa: E731
        walk.find_each("error", "reservation", np.setdiff1d(present, lent), here)
        walk.find_each("leak", "reservation", np.setdiff1d(lent, present), there, fixable=True)
