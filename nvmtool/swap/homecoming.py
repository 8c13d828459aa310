"""Give a reservation back the blocks of a swap file that is gone: their storage went with it, and is allocated anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import NoSpaceError
from ..media import word
from ..media.journal import runs
from ..text import human
from .blockmove import fill

if TYPE_CHECKING:
    from .lenders import Lender
    from .reservationfile import ReservationFile


def forget(file: ReservationFile, lender: Lender) -> None:
    """Allocate a lender's blocks anew in the reservation's turn, then clear its record.

    Raises NoSpaceError; then, and after a kill, blocks that have no storage yet are MOVING, and the same call goes on.
    """
    fates = file.words.get_all(file.nblocks)
    homes = np.flatnonzero(fates.of(lender.number))
    for start in range(0, len(homes), file.batch):
        part = homes[start : start + file.batch]
        # What is lent has no storage here: said otherwise first, so that a kill leaves none unnoticed.
        with file.transaction():
            file.words.put(part, word.MOVING, lender.number, fates.storage[part])
        try:
            for first, count in runs(part):
                fill(file.area, first, count, written=file.clones)
        except NoSpaceError as error:
            missing = human((len(homes) - start) * file.block_bytes)
            raise NoSpaceError(f"{file.path}: no space to allocate the {missing} that went with {lender.stored_path}") from error
        # The blocks must be whole before nobody remembers whose they were.
        file.pages.fence()
        with file.transaction():
            file.words.put_held(part)
    with file.transaction():
        file.lenders.remove(lender.number)
