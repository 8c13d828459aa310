"""The mass store: a file of 4 KiB slots, paired with one device image by UUID.

The device image says which slots are in use and what they must hold; this module only moves bytes. Slots are written before the
transaction that names them commits, and given back to the file system after no reader can name them any more.
"""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, ExistsError, FormatError, RefusedError, StorageError
from ..media import lock, sysio, word
from ..media.checksum import crc32c
from ..media.journal import run_arrays, runs
from ..media.newfile import NewFile
from ..media.store import Writer, translated
from . import layout as lay

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ..media.store import Chunk

    SlotNumbers = NDArray[np.int64]


_WAIT_SECONDS = 1.0
_TAG_PLACE = word.place(lay.MASS_TAG_PLACE, 0, 0)


class MassStore:
    """An open mass store. Slot numbers are int64 arrays or ints, from 1 on."""

    def __init__(self, path: Path, fd: int, tag: int, *, writable: bool) -> None:
        """Take over an open descriptor whose header was checked and shows a tag."""
        self.path = path
        self.tag = tag
        self._announced = False
        self._can_punch = writable
        self._fd = fd
        status = os.fstat(fd)
        self._had_name = stat.S_ISREG(status.st_mode) and status.st_nlink > 0
        self._writer = Writer(fd, past_cache=writable)
        self._dirty = False
        self._dead = False

    @staticmethod
    def format(new: NewFile, store_uuid: bytes, device_uuid: bytes, tag: int) -> None:
        """Write the header of an empty mass store into a new file."""
        header = np.zeros(1, lay.MASS_HEADER)
        fields = header[0]
        fields["magic"], fields["version"], fields["block_size"] = lay.MASS_MAGIC, lay.VERSION, lay.BLOCK_SIZE
        fields["uuid"], fields["device_uuid"] = np.void(store_uuid), np.void(device_uuid)
        fields["crc"] = crc32c(header.tobytes())
        with translated(new.path):
            os.pwrite(new.fd, (header.tobytes() + _sealed_tag(tag)).ljust(lay.BLOCK_SIZE, b"\0"), 0)

    @classmethod
    def open(cls, path: Path, *, expected_uuid: bytes, device_uuid: bytes, min_slots: int, writable: bool) -> MassStore:
        """Open the store that belongs to a device image.

        Raises StorageError when it is missing, FormatError when it is another file, DamagedError when it is too short.
        """
        try:
            fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        except OSError as error:
            raise StorageError(f"{path}: mass store cannot be opened: {error.strerror}; use --mass if it was moved") from error
        try:
            *found, tag = _read_header(path, fd)
            if tuple(found) != (expected_uuid, device_uuid):
                raise FormatError(
                    f"{path}: mass store {uuid.UUID(bytes=found[0])} belongs to device {uuid.UUID(bytes=found[1])}; "
                    f"expected mass store {uuid.UUID(bytes=expected_uuid)} of device {uuid.UUID(bytes=device_uuid)}"
                )
            size = sysio.file_size(fd)
            if size < min_slots * lay.BLOCK_SIZE:
                raise DamagedError(f"{path}: mass store has {size} bytes, its slots end at {min_slots * lay.BLOCK_SIZE}")
        except BaseException:  # an interrupt too must not leak the descriptor
            os.close(fd)
            raise
        return cls(path, fd, tag, writable=writable)

    @property
    def size_bytes(self) -> int:
        """The file's size; its free slots are holes."""
        return sysio.file_size(self._fd)

    def write(self, slots: SlotNumbers, chunks: Sequence[Chunk]) -> None:
        """Write chunks that together fill the slots in order; begin to bring them to the medium.

        Raises NoSpaceError when the file system is full; nothing names these slots yet.
        """
        assert self._announced, "the image must know of the change first"
        self._dirty = True
        size = lay.BLOCK_SIZE
        starts, lengths = run_arrays(slots)
        if len(starts) > 1:
            # Each run of slots is one vectored write: cut the chunks where the runs end.
            chunks = [part for chunk in chunks for part in _blocks_of(chunk)]
        done = 0
        for first, nslots in zip(starts.tolist(), lengths.tolist(), strict=True):
            batch = chunks if len(starts) == 1 else chunks[done : done + nslots]
            with translated(self.path):
                self._writer.write(first * size, batch)
            done += nslots

    def lock(self) -> None:
        """Be the only process that changes the store; raises BusyError when a copy of the image is in use."""
        lock.lock(self._fd, self.path, lock.WRITER, exclusive=True, seconds=_WAIT_SECONDS)

    def show_tag(self, tag: int) -> None:
        """Let the header show a tag (pairing.py); durable on return."""
        self._announced = True
        if tag != self.tag:
            with translated(self.path):
                os.pwrite(self._fd, _sealed_tag(tag), lay.MASS_HEADER.itemsize)
            self._dirty = True
            self.fence()
            self.tag = tag

    def fence(self) -> None:
        """Return when all written slots are durable; raises StorageError, after which the handle is dead."""
        if self._dead:
            raise StorageError(f"{self.path}: an earlier flush failed")
        if self._dirty:
            self._dirty = False  # before: what another thread writes while the flush is under way is not covered by it
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                self._dead = True
                raise StorageError(f"{self.path}: flush failed: {error.strerror}") from error
            if self._had_name and os.fstat(self._fd).st_nlink == 0:  # and with the last descriptor go the contents
                raise StorageError(f"{self.path}: was deleted while it was in use")

    def read(self, slots: SlotNumbers, crcs: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Return the slots' contents, shape (n, 4096), each proven by its CRC-32C; raises DamagedError."""
        out = np.empty((len(slots), lay.BLOCK_SIZE), np.uint8)
        view = out.reshape(-1).data
        starts, lengths = run_arrays(slots)
        done = 0
        for first, nslots in zip(starts.tolist(), lengths.tolist(), strict=True):
            end = done + nslots * lay.BLOCK_SIZE
            self._read_exactly(view[done:end], first * lay.BLOCK_SIZE)
            done = end
        for position, (slot, expected) in enumerate(zip(slots.tolist(), crcs.tolist(), strict=True)):
            found = crc32c(view[position * lay.BLOCK_SIZE : (position + 1) * lay.BLOCK_SIZE])
            if found != expected:
                raise DamagedError(
                    f"{self.path}: slot {slot} at 0x{slot * lay.BLOCK_SIZE:x}: checksum 0x{found:08x}, expected 0x{expected:08x}"
                )
        return out

    def iter_damage(self, slots: SlotNumbers, crcs: NDArray[np.uint32]) -> Iterator[tuple[int, str]]:
        """Yield (slot, what is wrong) of the slots that cannot be read or do not match their checksums."""
        try:
            self.read(slots, crcs)
        except (DamagedError, StorageError) as error:
            if len(slots) == 1:
                yield int(slots[0]), str(error)
                return
            half = len(slots) // 2
            yield from self.iter_damage(slots[:half], crcs[:half])
            yield from self.iter_damage(slots[half:], crcs[half:])

    def punch(self, slots: SlotNumbers) -> None:
        """Give slots back to the file system where it can take them; durable after `fence`."""
        for first, nslots in runs(np.unique(slots)):
            if self._can_punch:
                self._dirty = True
                with translated(self.path):
                    self._can_punch = sysio.punch_hole(self._fd, first * lay.BLOCK_SIZE, nslots * lay.BLOCK_SIZE)

    def iter_data(self) -> list[tuple[int, int]]:
        """Return (first slot, slots) of the ranges that occupy storage, the header left out."""
        found = []
        position, end = lay.BLOCK_SIZE, self.size_bytes
        while position < end:
            try:
                start = os.lseek(self._fd, position, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                break
            position = os.lseek(self._fd, start, os.SEEK_HOLE)
            first = -(-start // lay.BLOCK_SIZE)
            found.append((first, -(-position // lay.BLOCK_SIZE) - first))
        return found

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
        os.close(self._fd)

    def _read_exactly(self, view: memoryview, offset: int) -> None:
        while view:
            try:
                count = os.preadv(self._fd, [view], offset)
            except OSError as error:
                raise StorageError(f"{self.path}: reading at 0x{offset:x}: {error.strerror}") from error
            if count == 0:
                raise DamagedError(f"{self.path}: mass store ends at 0x{offset:x}, inside a slot that is in use")
            view, offset = view[count:], offset + count


def _blocks_of(chunk: Chunk) -> list[Chunk]:
    view = memoryview(chunk)
    return [view[start : start + lay.BLOCK_SIZE] for start in range(0, len(view), lay.BLOCK_SIZE)]


def check_new_mass(path: Path, *, replaced: bytes | None, force: bool) -> None:
    """Raise when a file that must not be overwritten is in the new mass store's place.

    `replaced` is the UUID of the image that the new one replaces. Raises ExistsError, or with force RefusedError for another image's store.
    """
    if not path.exists() or not (path.stat().st_size or stat.S_ISBLK(path.stat().st_mode)):
        return
    if not force:
        raise ExistsError(f"{path}: exists already; --force overwrites it")
    with translated(path):
        fd = os.open(path, os.O_RDONLY)
    try:
        _, owner, _ = _read_header(path, fd)
    except (FormatError, DamagedError):
        return
    finally:
        os.close(fd)
    if owner != replaced:
        raise RefusedError(f"{path}: is the mass store of device {uuid.UUID(bytes=owner)}; delete it first if that image is gone")


def _sealed_tag(tag: int) -> bytes:
    return word.seal(tag, _TAG_PLACE).to_bytes(8, "little")


def _read_header(path: Path, fd: int) -> tuple[bytes, bytes, int]:
    with translated(path):
        block = os.pread(fd, lay.BLOCK_SIZE, 0)
    if len(block) < lay.BLOCK_SIZE:
        raise DamagedError(f"{path}: mass store is cut off inside its header ({len(block)} bytes)")
    record = np.frombuffer(block, lay.MASS_HEADER, 1)[0]
    if bytes(record["magic"]) != lay.MASS_MAGIC:
        raise FormatError(f"{path}: not a mass store (magic {block[:8]!r})")
    if int(record["version"]) != lay.VERSION:
        raise FormatError(f"{path}: mass store version {int(record['version'])}; this nvmtool knows {lay.VERSION}")
    bare = record.copy()
    bare["crc"] = 0
    if crc32c(bare.tobytes()) != int(record["crc"]) or any(block[lay.MASS_HEADER.itemsize + 8 :]):
        raise DamagedError(f"{path}: mass store header checksum is wrong")
    if int(record["block_size"]) != lay.BLOCK_SIZE:
        raise FormatError(f"{path}: mass store block size {int(record['block_size'])}")
    offset = lay.MASS_HEADER.itemsize
    tag = word.unseal(int.from_bytes(block[offset : offset + 8], "little"), _TAG_PLACE, f"{path}: mass store tag", offset)
    return bytes(record["uuid"]), bytes(record["device_uuid"]), tag
