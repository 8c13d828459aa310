"""Let a reservation grow or shrink while its swap files are in use (technique T8)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import NoSpaceError, RefusedError
from ..media import lock, word
from ..media.journal import runs
from ..media.store import translated
from ..text import human
from .blockwords import held_words
from .layout import PAGE, WORDS_PER_PAGE
from .reservation import Progress, blocks_of, require_space, word_area_bytes, write_blocks
from .reservationfile import ReservationFile

_RESIZER_SECONDS = 60.0


def resize_reservation(path: str | Path, size_bytes: int, progress: Progress = None) -> dict[str, int]:
    """Change a reservation's size; return `size_bytes_before`, `size_bytes` and `relabelled_blocks`.

    Killed anywhere it is whole, and the same call finishes. Swap files borrow and give back meanwhile. Raises BusyError,
    UsageError, NoSpaceError when there is no storage to grow, or RefusedError for a size below what is promised.
    """
    with ReservationFile.open(Path(path), writable=True) as file:
        lock.lock(file.fd, file.path, lock.RESIZER, exclusive=True, seconds=0)
        return _resize(file, size_bytes, progress)


def grow_reservation(path: str | Path, free_bytes: int, progress: Progress = None) -> None:
    """Let a reservation have at least so many bytes that nobody was promised; its cost is that of what is added.

    Waits for another who changes the size, for a minute at most. Raises as `resize_reservation`.
    """
    with ReservationFile.open(Path(path), writable=True) as file:
        # Whoever changes the size may need the turn to end.
        file.end_turn()
        lock.lock(file.fd, file.path, lock.RESIZER, exclusive=True, seconds=_RESIZER_SECONDS)
        with file.turn():
            missing = free_bytes - (file.nblocks - file.lenders.promised()) * file.block_bytes
        if missing > 0:
            _resize(file, file.nblocks * file.block_bytes + missing, progress)


def _resize(file: ReservationFile, size_bytes: int, progress: Progress) -> dict[str, int]:
    nblocks = blocks_of(size_bytes, file.block_bytes)
    before = file.nblocks
    relabelled = 0
    if nblocks > before:
        # Nobody else touches what is past the end: the others may borrow during the long part.
        file.end_turn()
        require_space(file.path.resolve().parent, file.path, size_bytes - os.fstat(file.fd).st_size)
        _write_tail(file, before, nblocks, progress)
        with file.turn():
            _take_in(file, before, nblocks)
    else:
        relabelled = _shrink(file, before, nblocks)
    with translated(file.path):
        # Last: also the tail that a killed call left.
        os.ftruncate(file.fd, file.size_of(nblocks))
    return {"size_bytes_before": before * file.block_bytes, "size_bytes": size_bytes, "relabelled_blocks": relabelled}


def _write_tail(file: ReservationFile, before: int, nblocks: int, progress: Progress) -> None:
    try:
        with translated(file.path):
            os.ftruncate(file.fd, file.size_of(nblocks))
        file.pages.allocate(file.fields["block_start"] * PAGE, word_area_bytes(nblocks))
        write_blocks(file.area, before, nblocks, progress)
    except NoSpaceError:
        with translated(file.path):
            os.ftruncate(file.fd, file.size_of(before))
        raise
    # The blocks must be whole before they can be lent.
    file.pages.fence()


def _take_in(file: ReservationFile, before: int, nblocks: int) -> None:
    # New pages of words go home without the log, so nothing in the log may name them.
    file.journal.checkpoint()
    split = min(-(-before // WORDS_PER_PAGE) * WORDS_PER_PAGE, nblocks)
    with file.transaction():
        file.words.put_held(np.arange(before, split))
        for first in range(split, nblocks, WORDS_PER_PAGE):
            content = held_words(first, min(WORDS_PER_PAGE, nblocks - first)).tobytes()
            file.journal.add_fresh(file.fields["block_start"] + first // WORDS_PER_PAGE, content.ljust(PAGE, b"\0"))
        file.root.put("nblocks", nblocks)


def _shrink(file: ReservationFile, before: int, nblocks: int) -> int:
    promised = file.lenders.promised()
    if nblocks < promised:
        asked, needed = human(nblocks * file.block_bytes), human(promised * file.block_bytes)
        raise RefusedError(f"{file.path}: cannot shrink to {asked}: {needed} are promised")
    relabelled = 0
    while before > nblocks:
        # From the end: each step is a smaller reservation that is whole by itself.
        end = max(nblocks, before - file.batch)
        relabelled += _cut_off(file, before, end)
        before = end
    return relabelled


def _cut_off(file: ReservationFile, before: int, nblocks: int) -> int:
    """Give up the blocks from `nblocks` on: held blocks below stand for those that are lent."""
    tail = np.arange(nblocks, before)
    fates = file.words.get(tail)
    away = fates.kinds != word.HELD
    kinds, lenders, storage = fates.kinds[away], fates.lenders[away], fates.storage[away]
    stand_ins = np.sort(file.words.find_held(len(storage), nblocks, 0))
    with file.transaction():
        # Until their own storage is gone they are on their way: then a kill cannot leave them with storage unnoticed.
        file.words.put(stand_ins, word.MOVING, lenders, storage)
        file.root.put("nblocks", nblocks)
    # Those that were on their way stay so, with storage: where the swap file's is, its next recovery finds out.
    lent = kinds == word.LENT
    for first, count in runs(stand_ins[lent]):
        file.area.punch(first, count)
    file.pages.fence()
    with file.transaction():
        file.words.put(stand_ins[lent], word.LENT, lenders[lent], storage[lent])
    return len(storage)
