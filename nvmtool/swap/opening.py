"""What opening a swap file takes besides its words: its header, the end of an earlier helper, and where its storage comes from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DamagedError, UsageError
from ..media import lock
from . import layout as lay
from .borrower import Borrower
from .storage import PlainStorage

if TYPE_CHECKING:
    from ..media.pagefile import PageFile
    from .storage import Storage

# So long the copies of a helper whose VM is gone may take.
_HELPER_SECONDS = 10.0


def wait_for_helper(fd: int, path: Path) -> None:
    """Let a helper of the writer before this one copy what it has begun; raises BusyError that names it."""
    lock.lock(fd, path, lock.HELPER, exclusive=True, seconds=_HELPER_SECONDS)
    lock.unlock(fd, lock.HELPER)


def read_fields(path: Path, fd: int) -> dict[str, Any]:
    """Return the header in force of an open file; raises FormatError, or DamagedError when the file is shorter than it says."""
    fields = lay.SWAP_FORMAT.read(path, fd)
    size = os.fstat(fd).st_size
    wanted = fields["data_start"] * lay.PAGE + fields["nblocks"] * fields["slots_per_block"] * lay.PAGE
    if size < wanted:
        raise DamagedError(f"{path}: truncated: {size} bytes, the header says {wanted}")
    return fields


def reservation_location(path: Path, fields: dict[str, Any], said: str | Path | None = None) -> Path:
    """Return where a swap file's reservation is: where somebody says, else where the header says."""
    return Path(said) if said is not None else path.resolve().parent / fields["reservation_path"]


def open_storage(path: Path, fields: dict[str, Any], pages: PageFile, reservation: str | Path | None, *, writable: bool) -> Storage:
    block_bytes, data_offset = fields["slots_per_block"] * lay.PAGE, fields["data_start"] * lay.PAGE
    if not any(fields["reservation_uuid"]):
        if reservation is not None:
            raise UsageError(f"{path}: has no reservation")
        return PlainStorage(pages, data_offset, block_bytes)
    if not writable:  # a reader gives and takes nothing
        return PlainStorage(pages, data_offset, block_bytes)
    return Borrower.open(
        reservation_location(path, fields, reservation),
        reservation_uuid=fields["reservation_uuid"],
        swap_uuid=fields["uuid"],
        swap_path=path,
        pages=pages,
        data_offset=data_offset,
        block_bytes=block_bytes,
        writable=writable,
    )
