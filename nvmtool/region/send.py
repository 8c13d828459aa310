"""Sending a snapshot as a stream, whole or as what differs from an older one."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import RefusedError
from ..media import word
from ..media.journal import runs
from ..media.newfile import NewFile
from ..media.stream import STREAM, OutStream
from . import layout as lay
from . import stream_format as form
from .snapshots import diff_states
from .transfer import iter_data, require_all_pointers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from .region import Region

    Ints = NDArray[np.int64]
    Progress = Callable[[int, int, str], None] | None

_DIGEST_BYTES = 16
_PIECE_BLOCKS = 4096


@dataclass(frozen=True)
class SendResult:
    """Blocks of data and of holes that the stream names, and its size."""

    blocks: int
    hole_blocks: int
    stream_bytes: int
    seconds: float


def send_snapshot(region: Region, snapshot: str, dst: str, base: str | None = None, progress: Progress = None) -> SendResult:
    """Write a snapshot to a file, which appears whole or not at all, or to standard output (`-`).

    With a base, an older or newer snapshot of the same region, only what differs from it. Purged blocks are verified on the way; so is
    all of the base, whose digest the receiver compares. Raises NotFoundError, DamagedError, NoSpaceError, StorageError, or BusyError when
    the image's writer could not wait any longer: the stream then lacks its end.
    """
    started = time.monotonic()
    record = region.snapshot(snapshot)
    if base == snapshot:
        raise RefusedError(f"{snapshot!r} does not differ from itself")
    for name in (snapshot,) if base is None else (snapshot, base):
        require_all_pointers(region, name)
    header = form.StreamHeader(
        size_blocks=region.nblocks,
        virtblock=int(region.mapping == "virtblock"),
        created=record.get("created"),
        region=region.name,
        snapshot=snapshot,
        base=base or "",
        base_digest=bytes(_DIGEST_BYTES) if base is None else digest_of(region, base),
    )
    if dst == STREAM:
        return _Sending(region, snapshot, base, OutStream(1), progress).run(header, started)
    region.device.require_other_file(dst)
    new = NewFile(Path(dst))
    try:
        result = _Sending(region, snapshot, base, OutStream(new.fd), progress).run(header, started)
        new.publish()
    finally:
        new.close()
    return result


def digest_of(region: Region, snapshot: str | None) -> bytes:
    """Return 16 bytes that two states have in common when their contents are equal, wherever and in whatever image they are.

    BLAKE2b over the number (8 bytes) and the CRC-32C (4 bytes) of each block that is not all zeros, in ascending order.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    zeros = form.crcs_of(np.zeros((1, lay.BLOCK_SIZE), np.uint8))[0]
    for indexes, kinds, values in iter_data(region, snapshot):
        entries = np.zeros(len(indexes), np.dtype([("index", "<u8"), ("crc", "<u4")]))
        entries["index"] = indexes
        for start in range(0, len(indexes), _PIECE_BLOCKS):
            piece = slice(start, start + _PIECE_BLOCKS)
            entries["crc"][piece] = form.crcs_of(_contents(region, kinds[piece], values[piece]))
        digest.update(entries[entries["crc"] != zeros].tobytes())
    return digest.digest()


def _contents(region: Region, kinds: NDArray[np.uint64], values: Ints) -> NDArray[np.uint8]:
    """Return blocks that are not holes; those on the mass store are verified."""
    out = np.empty((len(values), lay.BLOCK_SIZE), np.uint8)
    in_nvm, on_mass = kinds == word.BLOCK, kinds == word.SLOT
    out[in_nvm] = region.device.store.view.reshape(-1, lay.BLOCK_SIZE)[values[in_nvm]]
    if on_mass.any():
        out[on_mass] = region.device.slots.read(values[on_mass])
    return out


class _Sending:
    """One stream on its way out."""

    def __init__(self, region: Region, snapshot: str, base: str | None, out: OutStream, progress: Progress) -> None:
        self._region, self._snapshot, self._base = region, snapshot, base
        self._out, self._progress = out, progress
        self._records = self._blocks = self._holes = self._bytes = 0

    def run(self, header: form.StreamHeader, started: float) -> SendResult:
        self._write(header.encode())
        for indexes, kinds, values in self._pieces():
            for first, length in runs(indexes[kinds == 0]):
                self._holes += length
                self._record(form.HOLE, first, length)
            # A piece has holes or data at each place, and records must ascend: so a piece is of one kind.
            for start, length in _runs_of(indexes[kinds != 0]):
                at = np.flatnonzero(kinds != 0)[start : start + length]
                data = _contents(self._region, kinds[at], values[at])
                self._record(form.DATA, int(indexes[at[0]]), length, form.crcs_of(data))
                self._write(data.reshape(-1).data)
            if self._progress is not None and len(indexes):
                self._progress(min(int(indexes[-1]) + 1, header.size_blocks) * lay.BLOCK_SIZE, self._region.size_bytes, "bytes")
        # Without its end a stream is nothing: none is written over what may be a mixture.
        self._region.device.require_current()
        sent = self._blocks + self._holes
        self._write(form.encode_record(self._records, form.END, self._records, sent))
        if self._progress is not None:
            self._progress(self._region.size_bytes, self._region.size_bytes, "bytes")
        return SendResult(self._blocks, self._holes, self._bytes, round(time.monotonic() - started, 6))

    def _pieces(self) -> Iterator[tuple[Ints, NDArray[np.uint64], Ints]]:
        """Yield (logical blocks, kinds, values) in ascending order; each piece is of holes alone, or of data alone."""
        if self._base is None:
            yield from iter_data(self._region, self._snapshot)
            return
        root = self._region.root_of(self._snapshot)
        for offset, length in diff_states(self._region, self._base, self._snapshot):
            first, end = offset // lay.BLOCK_SIZE, (offset + length) // lay.BLOCK_SIZE
            for start in range(first, end, _PIECE_BLOCKS):
                indexes = np.arange(start, min(start + _PIECE_BLOCKS, end))
                kinds, values = self._region.pages.resolve(root, indexes)
                bounds = np.flatnonzero((kinds[1:] == 0) != (kinds[:-1] == 0)) + 1
                pairs = zip(np.split(indexes, bounds), np.split(kinds, bounds), np.split(values, bounds), strict=True)
                yield from pairs

    def _record(self, kind: int, first: int, count: int, crcs: NDArray[np.uint32] | None = None) -> None:
        self._write(form.encode_record(self._records, kind, first, count, crcs))
        self._records += 1
        self._blocks += count if kind == form.DATA else 0

    def _write(self, data: memoryview | bytes) -> None:
        self._out.write(data)
        self._bytes += len(data)


def _runs_of(indexes: Ints) -> Iterator[tuple[int, int]]:
    """Yield (position, length) of the runs of consecutive numbers, none longer than a record may be."""
    position = 0
    for _, length in runs(indexes):
        for start in range(0, length, form.MOST_BLOCKS):
            yield position + start, min(form.MOST_BLOCKS, length - start)
        position += length
