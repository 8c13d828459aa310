"""Make a new device image and its mass store."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BusyError, DamagedError, ExistsError, FormatError, UsageError
from ..media import lock, sysio
from ..media.journal import Journal
from ..media.newfile import NewFile
from ..media.pagefile import page_buffer
from ..media.root import new_root_block
from ..media.store import open_store, translated
from . import layout as lay
from .device import read_header
from .header import Header, encode_header, plan_areas
from .mass import MassStore, check_new_mass
from .pairing import new_tag

if TYPE_CHECKING:
    from ..media.store import Store

MIN_BLOCKS = 64
MAX_BLOCKS = 1 << 36


def format_device(
    path: str | Path,
    *,
    size_bytes: int,
    mass: str | Path,
    block_size: int = lay.BLOCK_SIZE,
    sparse: bool = False,
    force: bool = False,
) -> None:
    """Create an empty device image and its mass store; both appear whole or not at all.

    A block device is written in place (its size must be at least `size_bytes`). Raises UsageError, ExistsError, BusyError or
    NoSpaceError, or RefusedError for a mass store of another image; killed in between, at most a mass store without an image is left.
    """
    path, mass = Path(path), Path(mass)
    size_blocks = _check_sizes(path, size_bytes, block_size)
    replaced = _check_targets(path, mass, force=force)
    header = Header(
        # An image that is formatted again stays the same device: cut off between the two files, the same call may replace its store again.
        uuid=replaced or uuid.uuid4().bytes,
        mass_uuid=uuid.uuid4().bytes,
        generation=1,
        size_blocks=size_blocks,
        created=time.time_ns() // 1000,
        mass_path=_stored_mass_path(path, mass),
        **plan_areas(size_blocks),
    )
    image, store = NewFile(path), NewFile(mass)
    try:
        mass_tag = new_tag()
        MassStore.format(store, header.mass_uuid, header.uuid, mass_tag)
        _write_image(image, header, mass_tag, sparse=sparse)
        # The mass store first: an image never names a store that is not there.
        store.publish()
        image.publish()
    finally:
        image.close()
        store.close()


def _write_image(image: NewFile, header: Header, mass_tag: int, *, sparse: bool) -> None:
    size = header.size_blocks * lay.BLOCK_SIZE
    image.allocate(size, sparse=sparse, hint="; --sparse allocates later")
    if image.in_place and sysio.file_size(image.fd) < size:
        raise UsageError(f"{image.path}: the device has {sysio.file_size(image.fd)} bytes, fewer than {size}")
    opened = open_store(image.path, image.fd, size, writable=True)
    if image.in_place:
        # A block device keeps what it held before; words that are not 0 would count as present.
        _store_zeros(opened, 0, header.data_start)
    elif not sparse:
        # The first write to allocated space costs the file system a transaction of its own: not in the log, please.
        _store_zeros(opened, header.log_start, header.log_blocks)
    Journal.format(opened, header.log_start)
    opened.store_bytes(lay.ROOT_BLOCK * lay.BLOCK_SIZE, [new_root_block(lay.ROOT, lay.ROOT_PLACE, _first_numbers(mass_tag))])
    # Headers last: without them the rest is no image.
    opened.fence()
    block = encode_header(header)
    for copy in lay.HEADER_BLOCKS:
        opened.store_bytes(copy * lay.BLOCK_SIZE, [block])
    opened.fence()
    opened.close()


def _first_numbers(mass_tag: int) -> dict[str, int]:
    return {"used_slots": 0, "lent_blocks": 0, "nregions": 0, "mass_tag": mass_tag, "mass_tag_before": mass_tag}


def _store_zeros(store: Store, first: int, nblocks: int) -> None:
    zeros = page_buffer(256).reshape(-1).data
    end = (first + nblocks) * lay.BLOCK_SIZE
    for start in range(first * lay.BLOCK_SIZE, end, len(zeros)):
        store.store_bytes(start, [zeros[: end - start]])


def _check_sizes(path: Path, size_bytes: int, block_size: int) -> int:
    if block_size != lay.BLOCK_SIZE:
        raise UsageError(f"block size {block_size}: this version knows {lay.BLOCK_SIZE} only")
    if size_bytes % lay.BLOCK_SIZE:
        raise UsageError(f"size {size_bytes}: must be a multiple of {lay.BLOCK_SIZE}")
    if not MIN_BLOCKS <= size_bytes // lay.BLOCK_SIZE <= MAX_BLOCKS:
        raise UsageError(f"size {size_bytes}: must be from {MIN_BLOCKS * lay.BLOCK_SIZE} to {MAX_BLOCKS * lay.BLOCK_SIZE}")
    return size_bytes // lay.BLOCK_SIZE


def _check_targets(path: Path, mass: Path, *, force: bool) -> bytes | None:
    """Raise when something must not be overwritten; return the UUID of the image that is replaced."""
    if path.resolve() == mass.resolve():
        raise UsageError(f"{mass}: the image and its mass store must be two files")
    if path.is_dir() or mass.is_dir():
        raise UsageError(f"{path if path.is_dir() else mass}: is a folder")
    try:
        if len(_stored_mass_path(path, mass).encode()) > lay.HEADER["mass_path"].itemsize:
            raise UsageError(f"{mass}: path is too long for the header")
    except UnicodeEncodeError:
        raise UsageError(f"{mass}: path is not UTF-8") from None
    replaced = None
    if path.exists():
        if not force:
            raise ExistsError(f"{path}: exists already; --force overwrites it")
        with translated(path):
            fd = os.open(path, os.O_RDWR)
        try:
            if not lock.try_lock(fd, lock.WRITER, exclusive=True):
                raise BusyError(f"{path}: in use by {lock.holder(path, lock.WRITER)}")
            with suppress(FormatError, DamagedError):
                replaced = read_header(path, fd).uuid
        finally:
            os.close(fd)
    check_new_mass(mass, replaced=replaced, force=force)
    return replaced


def _stored_mass_path(path: Path, mass: Path) -> str:
    """Return the mass store's path as the header keeps it: relative when both are in one tree, so that they can move together."""
    folder = path.resolve().parent
    target = mass.resolve()
    return str(target.relative_to(folder)) if target.is_relative_to(folder) else str(target)
