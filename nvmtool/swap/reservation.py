"""Reservation files: make one, let swap files join and leave, and tell what it holds (technique T8)."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DamagedError, ExistsError, FormatError, NoSpaceError, NotFoundError, RefusedError, UsageError
from ..media import sysio, word
from ..media.journal import Journal
from ..media.newfile import NewFile
from ..media.pagefile import PageFile
from ..media.root import ROOT_BLOCK, new_root_block
from ..media.store import open_store, translated
from ..text import human
from . import layout as lay
from .blockmove import BlockArea, write_zeros
from .blockwords import held_words
from .borrower import refuse_copy
from .homecoming import forget
from .reservationfile import ALLOCATE, BLOCK_MOVES, CLONE, ReservationFile
from .swapside import SwapSide

if TYPE_CHECKING:
    from .lenders import Lender

Progress = Callable[[int, int, str], None] | None

_HEADER_COPIES = (0, 1)


def create_reservation(path: str | Path, size_bytes: int, block_bytes: int, progress: Progress = None) -> None:
    """Create a reservation whose blocks are all written; it appears whole or not at all, for its owner alone (mode 0600).

    Raises UsageError, ExistsError, NoSpaceError or StorageError.
    """
    path = Path(path)
    nblocks = blocks_of(size_bytes, block_bytes)
    if path.exists() or path.is_symlink():
        raise ExistsError(f"{path}: exists already")
    slots = block_bytes // lay.PAGE
    areas = lay.reservation_areas(slots)
    require_space(path.resolve().parent, path, size_bytes)
    new = NewFile(path)
    try:
        with translated(path):
            os.fchmod(new.fd, 0o600)
        new.allocate(areas["data_start"] * lay.PAGE + size_bytes, sparse=True)
        pages = PageFile(path, new.fd, writable=True)
        try:
            write_blocks(BlockArea(pages, areas["data_start"] * lay.PAGE, block_bytes), 0, nblocks, progress)
            pages.allocate(0, areas["block_start"] * lay.PAGE)
            pages.allocate(pages.size, lay.headroom_pages(slots) * lay.PAGE)
            pages.fence()
        finally:
            pages.close()
        _write_metadata(new, areas, nblocks, slots)
        if path.exists():
            raise ExistsError(f"{path}: exists already")
        new.publish()
    finally:
        new.close()


def join(reservation_path: Path, swap_uuid: bytes, swap_path: Path, promise_blocks: int) -> bytes:
    """Promise blocks to a swap file and return the reservation's UUID; durable on return.

    Raises RefusedError when not all promises could be kept, or for a swap file on another file system, ExistsError when it has joined
    already, UsageError for a path that does not fit, NoSpaceError when the table is full.
    """
    with ReservationFile.open(reservation_path, writable=True) as file:
        if file.lenders.find(swap_uuid) is not None:
            raise ExistsError(f"{reservation_path}: has promised blocks to {swap_path} already")
        stored = file.lenders.stored_path(swap_path)
        with translated(swap_path):
            folder = os.stat(swap_path.resolve().parent)
        if folder.st_dev != os.fstat(file.fd).st_dev:
            raise RefusedError(f"{swap_path}: is not on the file system of its reservation {reservation_path}")
        _require_free(file, swap_path, promise_blocks)
        with file.transaction():
            file.lenders.add(promise_blocks, swap_uuid, stored)
        return file.uuid


def promise_of(reservation_path: Path, swap_uuid: bytes) -> int:
    """Return how many blocks a swap file was promised; raises NotFoundError for one that has not joined."""
    with ReservationFile.open(reservation_path, writable=False) as file:
        return _require_lender(file, swap_uuid).promise


def set_promise(reservation_path: Path, swap_uuid: bytes, promise_blocks: int) -> int:
    """Promise more or fewer blocks to a swap file that has joined, in use or not; return the promise before. Durable on return.

    Raises RefusedError when not all promises could be kept, or for fewer blocks than are lent to it, UsageError, or NotFoundError for one
    that has not joined.
    """
    if promise_blocks < 0:
        raise UsageError(f"promise of {promise_blocks} blocks: must be 0 or more")
    with ReservationFile.open(reservation_path, writable=True) as file:
        lender = _require_lender(file, swap_uuid)
        if promise_blocks > lender.promise:
            _require_free(file, file.lenders.location(lender), promise_blocks - lender.promise)
        elif promise_blocks < lender.promise:
            _require_not_lent(file, lender, promise_blocks)
        if promise_blocks != lender.promise:
            with file.transaction():
                file.lenders.store(replace(lender, promise=promise_blocks))
        return lender.promise


def leave(reservation_path: Path, swap_uuid: bytes, swap_path: Path) -> None:
    """Bring all blocks of a swap file home and forget it, whatever the swap file's words say; killed, the same call goes on.

    The caller holds the swap file's WRITER lock where there is such a file. Raises NotFoundError, RefusedError for a copy, or
    NoSpaceError when the swap file is gone and there is no storage for its blocks.
    """
    with ReservationFile.open(reservation_path, writable=False) as file:
        lender = _require_lender(file, swap_uuid)
        refuse_copy(file, lender, swap_path)
    with suppress(NotFoundError, FormatError, DamagedError), SwapSide.open(swap_path, swap_uuid, writable=True) as side:
        side.bring_in_order(reservation_path, file.uuid, np.zeros(side.nblocks, bool))
    with ReservationFile.open(reservation_path, writable=True) as file:
        forget(file, lender)


def forget_lender(reservation_path: str | Path, swap_path: str | Path, *, dry_run: bool = False) -> dict[str, int]:
    """Take the promise and the blocks of a swap file that is gone; return `blocks` and `bytes` that are allocated anew.

    Raises RefusedError while the swap file is there, NotFoundError for one that was promised nothing, NoSpaceError, or FormatError when
    what is in its place cannot be told.
    """
    path, swap_path = Path(reservation_path), Path(swap_path)
    with ReservationFile.open(path, writable=not dry_run) as file:
        stored = file.lenders.stored_path(swap_path)
        known = [lender for lender in file.lenders if lender.stored_path == stored]
        if not known:
            raise NotFoundError(f"{path}: has promised nothing to {swap_path}")
        # Another swap file may have been created where one was removed.
        found = [lender for lender in known if not _is_there(file, lender)]
        if not found:
            raise RefusedError(f"{swap_path}: is there still; delete it first, then {path} has its blocks again")
        fates = file.words.get_all(file.nblocks)
        blocks = sum(int(np.count_nonzero(fates.of(lender.number))) for lender in found)
        for lender in [] if dry_run else found:
            forget(file, lender)
        return {"blocks": blocks, "bytes": blocks * file.block_bytes}


def reservation_info(path: str | Path) -> dict[str, Any]:
    """Return the facts that `reservation info --json` prints; sizes in bytes. Raises DamagedError."""
    with ReservationFile.open(Path(path), writable=False) as file:
        nblocks, size = file.nblocks, file.block_bytes
        fates = file.words.get_all(nblocks)
        held = int(np.count_nonzero(fates.kinds == word.HELD))
        counts = np.bincount(fates.lenders, minlength=lay.MAX_LENDERS + 1)
        return {
            "reservation": str(path),
            "format_version": lay.VERSION,
            "uuid": file.uuid_text,
            "block_size": size,
            "size_bytes": nblocks * size,
            "held_bytes": held * size,
            "lent_bytes": (nblocks - held) * size,
            "promised_bytes": file.lenders.promised() * size,
            "allocated_bytes": file.pages.allocated_bytes(),
            "block_move": BLOCK_MOVES[CLONE if file.clones else ALLOCATE],
            "lent_to": [
                {
                    "swap_file": str(file.lenders.location(lender)),
                    "bytes": int(counts[lender.number]) * size,
                    "promise_bytes": lender.promise * size,
                }
                for lender in file.lenders
            ],
        }


def blocks_of(size_bytes: int, block_bytes: int) -> int:
    """Return how many blocks a reservation of this size has; raises UsageError."""
    if block_bytes % lay.PAGE or not lay.is_slots_per_block(block_bytes // lay.PAGE):
        least, most = lay.MIN_SLOTS_PER_BLOCK * lay.PAGE, lay.MAX_SLOTS_PER_BLOCK * lay.PAGE
        raise UsageError(f"block size {block_bytes}: must be a power of two from {least} to {most}")
    most = lay.MAX_RESERVED_BLOCKS * block_bytes
    if size_bytes % block_bytes or not 0 < size_bytes <= most:
        raise UsageError(f"size {size_bytes}: must be a multiple of the block size {block_bytes}, from {block_bytes} to {most}")
    return size_bytes // block_bytes


def write_blocks(area: BlockArea, first: int, end: int, progress: Progress) -> None:
    """Give blocks storage and write zeros, which cloning needs; raises NoSpaceError."""
    step = max((16 << 20) // area.block_bytes, 1)
    for block in range(first, end, step):
        write_zeros(area, block, min(step, end - block))
        if progress is not None:
            progress((min(block + step, end) - first) * area.block_bytes, (end - first) * area.block_bytes, "bytes")


def word_area_bytes(nblocks: int) -> int:
    """Return how much of the words' area `nblocks` blocks need, in whole pages."""
    return -(-nblocks // lay.WORDS_PER_PAGE) * lay.PAGE


def require_space(folder: Path, path: Path, size_bytes: int) -> None:
    """Raise NoSpaceError when a folder's file system has not so much free: before hours of writing, not after."""
    with translated(path):
        free = os.statvfs(folder)
    if free.f_bavail * free.f_frsize < size_bytes:
        raise NoSpaceError(f"{path}: no space for {size_bytes} bytes: {human(free.f_bavail * free.f_frsize)} are free")


def _require_free(file: ReservationFile, swap_path: Path, more: int) -> None:
    promised, nblocks = file.lenders.promised(), file.nblocks
    if promised + more > nblocks:
        size, used, free = (human(max(number, 0) * file.block_bytes) for number in (nblocks, promised, nblocks - promised))
        raise RefusedError(
            f"{file.path}: cannot promise {human(more * file.block_bytes)} to {swap_path}: {used} of {size} are promised, {free} are free"
        )


def _require_lender(file: ReservationFile, swap_uuid: bytes) -> Lender:
    lender = file.lenders.find(swap_uuid)
    if lender is None:
        raise NotFoundError(f"{file.path}: has promised nothing to a swap file with the uuid {uuid.UUID(bytes=swap_uuid)}")
    return lender


def _require_not_lent(file: ReservationFile, lender: Lender, promise_blocks: int) -> None:
    lent = int(np.count_nonzero(file.words.get_all(file.nblocks).of(lender.number)))
    if lent > promise_blocks:
        asked, had = human(promise_blocks * file.block_bytes), human(lent * file.block_bytes)
        raise RefusedError(f"{file.path}: cannot promise only {asked} to {file.lenders.location(lender)}: it has {had}")


def _write_metadata(new: NewFile, areas: dict[str, int], nblocks: int, slots: int) -> None:
    store = open_store(new.path, new.fd, areas["data_start"] * lay.PAGE, writable=True)
    try:
        zeros = bytes(areas["block_start"] * lay.PAGE - lay.LOG_START * lay.PAGE)
        store.store_bytes(lay.LOG_START * lay.PAGE, [zeros])
        Journal.format(store, areas["log_start"])
        mechanism = CLONE if sysio.can_clone(new.path.resolve().parent) else ALLOCATE
        numbers = {"nblocks": nblocks, "mechanism": mechanism}
        store.store_bytes(ROOT_BLOCK * lay.PAGE, [new_root_block(lay.RESERVATION_ROOT, lay.RESERVATION_ROOT_PLACE, numbers)])
        words = held_words(0, nblocks).tobytes()
        store.store_bytes(areas["block_start"] * lay.PAGE, [words.ljust(word_area_bytes(nblocks), b"\0")])
        fields = {"uuid": uuid.uuid4().bytes, "generation": 1, "slots_per_block": slots, "created": time.time_ns() // 1000}
        header = lay.RESERVATION_FORMAT.encode({**fields, **{name: areas[name] for name in areas}})
        # Headers last: without them the rest is no reservation.
        store.fence()
        for copy in _HEADER_COPIES:
            store.store_bytes(copy * lay.PAGE, [header])
        store.fence()
    finally:
        store.close()


def _is_there(file: ReservationFile, lender: Lender) -> bool:
    try:
        with SwapSide.open(file.lenders.location(lender), lender.uuid, writable=False):
            return True
    except NotFoundError:
        return False
