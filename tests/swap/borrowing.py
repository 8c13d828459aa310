"""The borrower's side for tests: a swap file of which only the storage-block words are used. Run as a program it lends in a loop."""

from __future__ import annotations

import os
import random
import sys
import uuid
from pathlib import Path

import numpy as np

from nvmtool.errors import NvmtoolError
from nvmtool.media import lock, word
from nvmtool.media.imagefile import ImageFile
from nvmtool.media.journal import Journal
from nvmtool.media.pagefile import PageFile, page_buffer
from nvmtool.media.root import new_root_block
from nvmtool.media.store import FileStore
from nvmtool.swap import layout as lay
from nvmtool.swap.borrower import Borrower
from nvmtool.swap.reservation import join

BLOCK = 64 << 10
SLOTS = BLOCK // 4096


def make_swap_file(path: Path, reservation: Path, nblocks: int, promise: int) -> bytes:
    """Write an empty swap file that has joined a reservation; return its UUID."""
    swap_uuid = uuid.uuid4().bytes
    reservation_uuid = join(reservation, swap_uuid, path, promise)
    areas = lay.swap_areas((nblocks - 1) * SLOTS, SLOTS)
    fields = {"uuid": swap_uuid, "reservation_uuid": reservation_uuid, "generation": 1, "nframes": (nblocks - 1) * SLOTS}
    fields |= {"slots_per_block": SLOTS, "created": 1, "reservation_path": str(reservation), **areas}
    header = lay.SWAP_FORMAT.encode(fields)
    root = new_root_block(lay.SWAP_ROOT, lay.SWAP_ROOT_PLACE, {"working": 0})
    with path.open("wb") as file:
        file.truncate((areas["data_start"] + nblocks * SLOTS) * 4096)
        file.write(header + header + root)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, areas["data_start"] * 4096)
    store = FileStore(path, os.open(path, os.O_RDWR), areas["data_start"] * 4096, writable=True)
    Journal.format(store, areas["log_start"])
    store.fence()
    os.close(store.fd)
    store.close()
    return swap_uuid


class Swap:
    """An open swap file with its borrower; a storage block holds pages exactly when its word is present."""

    def __init__(self, path: Path, reservation: Path, *, recover: bool = True) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR)
        lock.lock(self.fd, path, lock.WRITER, exclusive=True, seconds=5)
        fields = lay.SWAP_FORMAT.read(path, self.fd)
        self.nblocks = fields["nblocks"]
        self.data_offset = fields["data_start"] * 4096
        self._words_at = fields["storage_start"] * 512
        store = FileStore(path, self.fd, self.data_offset, writable=True)
        self.file = ImageFile(store, fields["log_start"], fields["log_blocks"], writable=True, fd=self.fd)
        self.pages = PageFile(path, self.fd, writable=True)
        try:
            self.borrower = Borrower.open(
                reservation,
                reservation_uuid=fields["reservation_uuid"],
                swap_uuid=fields["uuid"],
                swap_path=path,
                pages=self.pages,
                data_offset=self.data_offset,
                block_bytes=BLOCK,
                writable=True,
            )
        except NvmtoolError:
            self.file.close()
            raise
        if recover:
            self.borrower.recover(self.occupied())

    def occupied(self) -> np.ndarray:
        return self.file.journal.array[self._words_at : self._words_at + self.nblocks] != 0

    def commit(self, blocks: np.ndarray, *, present: bool) -> None:
        payloads = np.full(len(blocks), word.STORAGE << 52 | 2, np.uint64)
        words = word.seal_array(payloads, word.places_array(lay.STORAGE_PLACE, 0, blocks)) if present else np.zeros(len(blocks), np.uint64)
        self.pages.fence()
        with self.file.transaction():
            self.file.journal.set_words(self._words_at + blocks, words)

    def write(self, block: int, byte: int) -> None:
        buffer = page_buffer(SLOTS)
        buffer[:] = byte
        self.pages.write(self.offset(block), [buffer.data.cast("B")])

    def read(self, block: int) -> bytes:
        buffer = page_buffer(SLOTS)
        self.pages.read(self.offset(block), [buffer.data.cast("B")])
        return buffer.tobytes()

    def borrow(self, blocks: list[int]) -> None:
        self.borrower.take(np.array(blocks, np.int64))
        self.commit(np.array(blocks, np.int64), present=True)

    def release(self, blocks: list[int]) -> None:
        self.commit(np.array(blocks, np.int64), present=False)
        self.borrower.give_back(np.array(blocks, np.int64))

    def offset(self, block: int) -> int:
        return self.data_offset + block * BLOCK

    def physical(self, block: int) -> list[int]:
        """Return where each page of a block is on the file system's device."""
        return page_places(self.pages, self.offset(block))

    def kill(self) -> None:
        """Let go of everything as a kill would."""
        self.borrower._file.close()
        self.pages.close()
        self.file.close()

    def close(self) -> None:
        self.borrower.close()
        self.pages.close()
        self.file.close()


def page_places(pages: PageFile, offset: int) -> list[int]:
    """Return the physical place of each page of a block that has storage."""
    extents = pages.extents(offset, BLOCK)
    return [extent.physical + at for extent in extents for at in range(0, extent.length, 4096)]


def stored_bytes(path: Path, offset: int) -> int:
    """Return how much of a file has storage from an offset on (FIEMAP)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        pages = PageFile(path, fd, writable=False)
        stored = sum(extent.length for extent in pages.extents(offset, os.fstat(fd).st_size - offset))
        pages.close()
        return stored
    finally:
        os.close(fd)


def churn(path: Path, reservation: Path, seed: int, rounds: int) -> None:
    """Borrow and release at random, checking that the pages stay what they are; 0 rounds never end."""
    random_ = random.Random(seed)
    swap = Swap(path, reservation)
    mine = {int(block): swap.read(int(block))[0] for block in np.flatnonzero(swap.occupied())}
    print("ready", flush=True)
    done = 0
    while rounds == 0 or done < rounds:
        done += 1
        free = [block for block in range(swap.nblocks) if block not in mine]
        if random_.random() < 0.5 and len(mine) + 8 <= swap.borrower._lender.promise:
            blocks = sorted(random_.sample(free, random_.randint(1, 8)))
            swap.borrower.take(np.array(blocks))
            for block in blocks:
                mine[block] = random_.randint(1, 255)
                swap.write(block, mine[block])
            swap.commit(np.array(blocks), present=True)
        elif mine:
            blocks = sorted(random_.sample(sorted(mine), min(len(mine), random_.randint(1, 8))))
            for block in blocks:
                assert swap.read(block) == bytes([mine.pop(block)]) * BLOCK, block
            swap.release(blocks)
    for block, byte in mine.items():
        assert swap.read(block) == bytes([byte]) * BLOCK, block
    swap.close()


if __name__ == "__main__":
    churn(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
