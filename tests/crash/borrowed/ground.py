"""The ground that a swap file and its reservation stand on: real files in memory, of whose storage this keeps account.

Each file is two media: its metadata, and its blocks. Behind the blocks stands a word per block that says what storage it has (ABSENT,
PARTLY: some pages, or never written; WRITTEN), and for the reservation one more: how many blocks its file is long. Cloning, punching and
allocating store to these words, so they may have happened or not before the next fence of that file; a fence of one file makes nothing
of the other durable, nor one of a file's metadata its blocks. File systems that log promise more.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from nvmtool.errors import NoSpaceError
from nvmtool.media import sysio
from nvmtool.media.pagefile import PageFile
from nvmtool.media.store import FileStore
from nvmtool.swap import check_storage, reservation, reservationfile, swapfile, swapside
from nvmtool.swap import layout as lay

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nvmtool.media.store import Chunk

    from ..trace import Media, Trace

SWAP, RESERVATION = "vm.swap", "vm.reservation"
FILE, PAGES, RESERVED_FILE, RESERVED_BLOCKS = "file", "pages", "reservation", "blocks"
ABSENT, PARTLY, WRITTEN = range(3)
NFRAMES, SLOTS_PER_BLOCK = 64, 16
BLOCK = SLOTS_PER_BLOCK * lay.PAGE
MOST_RESERVED = 8
# The tables of a reservation have room for what nobody tries here; states would be 128 MiB each.
_SMALL_TABLES = {"MAX_LENDERS": 8, "MAX_RESERVED_BLOCKS": 512}


@dataclass
class Area:
    """A file's blocks: where they begin, how many there may be, and what storage each has."""

    metadata: str
    medium: str
    base: int
    most: int
    marks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin without storage."""
        self.marks = [ABSENT] * self.most

    @property
    def marks_at(self) -> int:
        """Where the words about storage stand in the medium, in bytes."""
        return self.most * BLOCK

    def blocks(self, offset: int, length: int) -> range:
        """Return the blocks that a range of the file touches."""
        return range((offset - self.base) // BLOCK, -(-(offset + length - self.base) // BLOCK))


class Ground:
    """Two files in a folder. `trace`: where every change is written to; `clones`: how blocks move; `allocations_left`: then it is full."""

    def __init__(self, folder: Path, *, clones: bool, trace: Trace | None = None) -> None:
        """Stand on a folder, which may have no files yet."""
        self.folder, self.clones, self.trace = folder, clones, trace
        self.swap, self.reservation = folder / SWAP, folder / RESERVATION
        with mock.patch.multiple(lay, **_SMALL_TABLES):
            reserved = lay.reservation_areas(SLOTS_PER_BLOCK)
        fields = lay.swap_areas(NFRAMES, SLOTS_PER_BLOCK)
        self.areas = {
            SWAP: Area(FILE, PAGES, fields["data_start"] * lay.PAGE, fields["nblocks"]),
            RESERVATION: Area(RESERVED_FILE, RESERVED_BLOCKS, reserved["data_start"] * lay.PAGE, MOST_RESERVED),
        }
        self.allocations_left = -1

    def load(self, media: Media) -> None:
        """Let the files hold these media; of a block without storage the contents are lost."""
        for name, area in self.areas.items():
            content = media[area.medium]
            words = np.frombuffer(content, "<u8", area.most + 1, area.marks_at).tolist()
            length = words[-1] if name == RESERVATION else area.most
            marks = [mark if block < length else ABSENT for block, mark in enumerate(words[:-1])]
            fd = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(fd, 0)
            os.pwrite(fd, media[area.metadata], 0)
            os.ftruncate(fd, area.base + length * BLOCK)
            for block in range(length):
                if marks[block]:
                    os.pwrite(fd, content[block * BLOCK : (block + 1) * BLOCK], area.base + block * BLOCK)
            os.close(fd)
            area.marks = marks  # last: this file was cut to nothing before

    def media(self) -> Media:
        """Return what the files hold."""
        found = {}
        for name, area in self.areas.items():
            content = (self.folder / name).read_bytes()
            words = np.zeros(lay.WORDS_PER_PAGE, "<u8")
            words[: area.most] = area.marks
            words[area.most] = (len(content) - area.base) // BLOCK if name == RESERVATION else 0
            found[area.metadata] = content[: area.base]
            found[area.medium] = content[area.base :].ljust(area.marks_at, b"\0") + words.tobytes()
        return found

    def store(self, area: Area, offset: int, data: bytes, *, punched: bool = False) -> None:
        """Note a store to blocks, at an offset of the file."""
        if self.trace is not None:
            self.trace.store(area.medium, offset - area.base, data, punched=punched)

    def mark(self, area: Area, block: int, kind: int) -> None:
        """Note what storage a block has."""
        if area.marks[block] != kind:
            area.marks[block] = kind
            self._word(area, block, kind)

    def truncated(self, area: Area, size: int) -> None:
        """Note that a file's length changed, and that the storage behind its end is gone."""
        length = (size - area.base) // BLOCK
        self._word(area, area.most, length)
        for block in range(max(length, 0), area.most):
            self.mark(area, block, ABSENT)

    def extents(self, name: str, fd: int, offset: int, length: int) -> Iterator[sysio.Extent]:
        """Yield the storage of a range of whole blocks; in a block of which parts are written, pages that are not 0 are."""
        area = self.areas[name]
        for block in area.blocks(offset, length):
            if block >= area.most:  # headroom
                return
            at = area.base + block * BLOCK
            if area.marks[block] == WRITTEN:
                yield sysio.Extent(at, BLOCK, at, True, False)
            elif area.marks[block] == PARTLY:
                for page in range(at, at + BLOCK, lay.PAGE):
                    yield sysio.Extent(page, lay.PAGE, page, any(os.pread(fd, lay.PAGE, page)), False)

    def has_all(self, name: str, block: int) -> bool:
        """Tell whether all of a block has storage, written where blocks are cloned."""
        area = self.areas[name]
        with (self.folder / name).open("rb") as file:
            extents = list(self.extents(name, file.fileno(), area.base + block * BLOCK, BLOCK))
        return sum(each.length for each in extents if each.written or not self.clones) == BLOCK

    def _word(self, area: Area, number: int, value: int) -> None:
        if self.trace is not None:
            data = value.to_bytes(8, "little")
            self.trace.store(area.medium, area.marks_at + 8 * number, data, atomic=True, punched=value == ABSENT)


class GroundPages(PageFile):
    """Pages of a file that stands on the ground; of other files, and of metadata, nothing is noted."""

    ground: Ground

    def __init__(self, path: Path, fd: int, *, writable: bool) -> None:
        """Stand on an open descriptor."""
        super().__init__(path, fd, writable=writable)
        self._area = self.ground.areas.get(Path(path).name)

    def write(self, offset: int, chunks: Sequence[Chunk]) -> None:
        """Write chunks; a block that is written whole has written storage."""
        super().write(offset, chunks)
        if (area := self._area) is not None:
            data = b"".join(chunks)
            self.ground.store(area, offset, data)
            for block in area.blocks(offset, len(data)):
                whole = offset <= area.base + block * BLOCK and area.base + (block + 1) * BLOCK <= offset + len(data)
                self.ground.mark(area, block, WRITTEN if whole else max(area.marks[block], PARTLY))

    def allocate(self, offset: int, length: int) -> None:
        """Give blocks storage that was never written; raises NoSpaceError."""
        if (area := self._area) is None or offset < area.base:
            super().allocate(offset, length)
            return
        if offset >= self.size:
            return  # headroom, which no move here needs
        if self.ground.allocations_left == 0:
            raise NoSpaceError(f"{self.path}: full")
        self.ground.allocations_left -= 1
        self._dirty = True
        for block in area.blocks(offset, length):
            self.ground.mark(area, block, max(area.marks[block], PARTLY))

    def punch(self, offset: int, length: int) -> None:
        """Give storage back; a part of a block may go before the rest."""
        super().punch(offset, length)
        if (area := self._area) is not None:
            for block in area.blocks(offset, length):
                if area.marks[block]:
                    self.ground.store(area, area.base + block * BLOCK, bytes(BLOCK), punched=True)
                    self.ground.mark(area, block, PARTLY)
                    self.ground.mark(area, block, ABSENT)

    def clone_from(self, source: PageFile, source_offset: int, offset: int, length: int) -> bool:
        """Let a range hold what the source's does; what the source has no storage for is a hole afterwards."""
        self._alive()
        self._dirty = True
        area, other = self._area, source._area  # type: ignore[attr-defined]
        data = os.pread(source.fd, length, source_offset)
        os.pwrite(self.fd, data, offset)
        self.ground.store(area, offset, data)
        for block, theirs in zip(area.blocks(offset, length), other.blocks(source_offset, length), strict=True):
            self.ground.mark(area, block, PARTLY)
            self.ground.mark(area, block, other.marks[theirs])
        return True

    def extents(self, offset: int, length: int) -> list[sysio.Extent]:
        """Return the storage of a range."""
        return list(self.ground.extents(Path(self.path).name, self.fd, offset, length))

    def fence(self) -> None:
        """Make this file's blocks durable."""
        if self._dirty and self._area is not None and self.ground.trace is not None:
            self.ground.trace.fence(self._area.medium)
        super().fence()


class GroundStore(FileStore):
    """The metadata of a file that stands on the ground."""

    ground: Ground
    _inside = False

    def _seam(self, name: str, stores: list[tuple[int, bytes]], *arguments: Any) -> None:
        area, trace = self.ground.areas.get(self.path.name), self.ground.trace
        if area is None or trace is None or self._inside:
            getattr(super(), name)(*arguments)
            return
        dirty, self._inside = self._dirty, True
        for offset, data in stores:
            trace.store(area.metadata, offset, data, atomic=name == "store_word", logged=name == "store_logged")
        getattr(super(), name)(*arguments)
        self._inside = False
        if name == "store_durable" and not dirty:
            trace.fence(area.metadata, *((offset, len(data)) for offset, data in stores).__next__())
        elif name == "store_durable" or (name == "fence" and dirty):
            trace.fence(area.metadata)

    def store_word(self, offset: int, value: int) -> None:
        self._seam("store_word", [(offset, value.to_bytes(8, "little"))], offset, value)

    def store_bytes(self, offset: int, chunks: Sequence[Chunk]) -> None:
        self._seam("store_bytes", [(offset, b"".join(chunks))], offset, chunks)

    def store_logged(self, offset: int, content: Chunk) -> None:
        self._seam("store_logged", [(offset, bytes(content))], offset, content)

    def fence(self) -> None:
        self._seam("fence", [])

    def store_durable(self, offset: int, chunks: Sequence[Chunk]) -> None:
        self._seam("store_durable", [(offset, b"".join(chunks))], offset, chunks)


@contextmanager
def standing_on(ground: Ground) -> Iterator[None]:
    """Let everything that opens a swap file or a reservation do so on this ground."""
    pages = type("Pages", (GroundPages,), {"ground": ground})
    store = type("Store", (GroundStore,), {"ground": ground})
    truncate = os.ftruncate

    def name_of(fd: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))

    def ftruncate(fd: int, size: int) -> None:
        truncate(fd, size)
        if name_of(fd) == RESERVATION:
            ground.truncated(ground.areas[RESERVATION], size)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(lay, **_SMALL_TABLES))
        for module in (swapfile, swapside, reservationfile, reservation):
            stack.enter_context(mock.patch.object(module, "PageFile", pages))
        stack.enter_context(mock.patch.object(swapfile, "FileStore", store))
        for module in (swapside, reservationfile):
            stack.enter_context(mock.patch.object(module, "open_store", store))
        stack.enter_context(mock.patch.object(check_storage, "iter_extents", lambda fd, *span: ground.extents(name_of(fd), fd, *span)))
        stack.enter_context(mock.patch.object(sysio, "can_clone", lambda folder: ground.clones))
        stack.enter_context(mock.patch.object(os, "ftruncate", ftruncate))
        yield
