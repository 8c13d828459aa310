"""Delete a swap file that no VM runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import BusyError
from ..media import lock
from ..media.imagefile import close_file, open_file, take_lock
from ..media.newfile import remove_file
from . import layout as lay


@dataclass(frozen=True)
class DeleteResult:
    """What deleting gave back; `bytes_released` is the file system's own count."""

    bytes_released: int
    reservation: str | None


def delete_swap(path: str | Path, *, dry_run: bool = False) -> DeleteResult:
    """Delete a swap file and the pages in it; also a damaged one, as long as a header copy is sound.

    Raises FormatError for any other file, BusyError that names the process that has it open for writing, or NotFoundError.
    """
    path = Path(path)
    fd = open_file(path, writable=not dry_run)
    try:
        fields = lay.SWAP_FORMAT.read(path, fd)
        if dry_run and lock.is_held(fd, lock.WRITER):
            raise BusyError(f"{path}: in use by {lock.holder(path, lock.WRITER)}")
        take_lock(fd, path, writable=not dry_run)
        result = DeleteResult(os.fstat(fd).st_blocks * 512, fields["reservation_path"] or None)
        if not dry_run:
            remove_file(path)
    finally:
        close_file(fd)
    return result
