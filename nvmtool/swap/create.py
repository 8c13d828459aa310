"""Make a new swap file."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ExistsError, NvmtoolError, UsageError
from ..media.header import COPIES
from ..media.journal import Journal
from ..media.newfile import NewFile, remove_file
from ..media.root import ROOT_BLOCK, new_root_block
from ..media.store import FileStore, translated
from . import layout as lay
from .reservation import join, leave, reservation_info

DEFAULT_BLOCK_BYTES = 1 << 20
_ZEROS = bytes(1 << 20)


def create_swap(
    path: str | Path,
    *,
    memory_bytes: int,
    block_bytes: int | None = None,
    reservation: str | Path | None = None,
    promise_bytes: int | None = None,
) -> None:
    """Create an empty swap file for a VM's memory; it appears whole or not at all.

    Its metadata (8 bytes a page frame) is allocated, its storage blocks are not. Storage blocks have the reservation's size, or 1 MiB,
    unless said. Raises UsageError, ExistsError, NoSpaceError, or RefusedError when the reservation has no room for the promise (the VM's
    memory unless said). Killed in between, a reservation may keep the promise of a file that never came, which its check takes back.
    """
    path = Path(path)
    if promise_bytes is not None and reservation is None:
        raise UsageError("a promise needs a reservation that makes it")
    if block_bytes is None:
        block_bytes = DEFAULT_BLOCK_BYTES if reservation is None else reservation_info(reservation)["block_size"]
    slots_per_block = _check_sizes(memory_bytes, block_bytes)
    if path.exists():
        raise ExistsError(f"{path}: exists already")
    fields: dict[str, Any] = {
        "uuid": uuid.uuid4().bytes,
        "reservation_uuid": bytes(16),
        "reservation_path": "",
        "generation": 1,
        "nframes": memory_bytes // lay.PAGE,
        "slots_per_block": slots_per_block,
        "created": time.time_ns() // 1000,
        **lay.swap_areas(memory_bytes // lay.PAGE, slots_per_block),
    }
    if reservation is None:
        _write_file(path, fields)
        return
    promise_blocks = -(-(memory_bytes if promise_bytes is None else promise_bytes) // block_bytes)
    fields["reservation_path"] = _stored_path(path, Path(reservation))
    fields["reservation_uuid"] = join(Path(reservation), fields["uuid"], path, promise_blocks)
    try:
        _write_file(path, fields)
    except BaseException:  # an interrupt too must not leave a promise to nobody
        leave(Path(reservation), fields["uuid"], path)
        raise
    _promise_again(path, fields["uuid"], Path(reservation), promise_blocks)


def _promise_again(path: Path, swap_uuid: bytes, reservation: Path, promise_blocks: int) -> None:
    """Renew the promise when a repair took it back because the file was not there yet; from now on it is."""
    try:
        with suppress(ExistsError):
            join(reservation, swap_uuid, path, promise_blocks)
    except NvmtoolError:
        remove_file(path)
        raise


def _stored_path(path: Path, reservation: Path) -> str:
    """Return the reservation's path as the header keeps it: relative when both are in one tree, so that they can move together."""
    folder, target = path.resolve().parent, reservation.resolve()
    stored = str(target.relative_to(folder)) if target.is_relative_to(folder) else str(target)
    if len(os.fsencode(stored)) > lay.SWAP_HEADER["reservation_path"].itemsize:
        raise UsageError(f"{reservation}: path is too long for the header")
    return stored


def _write_file(path: Path, fields: dict[str, Any]) -> None:
    new = NewFile(path)
    try:
        if new.in_place:
            raise UsageError(f"{path}: a swap file is a regular file")
        with translated(path):
            os.fchmod(new.fd, 0o600)  # it will hold a guest's memory
        metadata = int(fields["data_start"]) * lay.PAGE
        new.allocate(metadata, sparse=False)
        with translated(path):
            os.ftruncate(new.fd, metadata + int(fields["nblocks"]) * int(fields["slots_per_block"]) * lay.PAGE)
        store = FileStore(path, new.fd, metadata, writable=True)
        # The first write to allocated space costs the file system a transaction of its own: not in the log, please.
        log_start, log_bytes = int(fields["log_start"]) * lay.PAGE, int(fields["log_blocks"]) * lay.PAGE
        for start in range(0, log_bytes, len(_ZEROS)):
            store.store_bytes(log_start + start, [_ZEROS[: log_bytes - start]])
        Journal.format(store, int(fields["log_start"]))
        store.store_bytes(ROOT_BLOCK * lay.PAGE, [new_root_block(lay.SWAP_ROOT, lay.SWAP_ROOT_PLACE, {"working": 0})])
        # Headers last: without them the rest is no swap file.
        store.fence()
        for copy in COPIES:
            store.store_bytes(copy * lay.PAGE, [lay.SWAP_FORMAT.encode(fields)])
        store.fence()
        store.close()
        new.publish()
    finally:
        new.close()


def _check_sizes(memory_bytes: int, block_bytes: int) -> int:
    """Return the slots of a storage block; raises UsageError."""
    if block_bytes % lay.PAGE or not lay.is_slots_per_block(block_bytes // lay.PAGE):
        least, most = lay.MIN_SLOTS_PER_BLOCK * lay.PAGE, lay.MAX_SLOTS_PER_BLOCK * lay.PAGE
        raise UsageError(f"block size {block_bytes}: must be a power of two from {least} to {most}")
    if memory_bytes % lay.PAGE or not 0 < memory_bytes <= lay.MAX_FRAMES * lay.PAGE:
        raise UsageError(f"memory {memory_bytes}: must be a multiple of {lay.PAGE} from {lay.PAGE} to {lay.MAX_FRAMES * lay.PAGE}")
    return block_bytes // lay.PAGE
