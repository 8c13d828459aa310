"""Blocks move between a reservation and its swap files: the very block where the file system can, and never more or less of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nvmtool.errors import RefusedError
from nvmtool.swap.reservation import create_reservation, leave, reservation_info
from nvmtool.swap.reservation_check import check_reservation
from nvmtool.swap.reservation_resize import resize_reservation
from nvmtool.swap.reservationfile import CLONE, ReservationFile

from .borrowing import BLOCK, Swap, make_swap_file, page_places, stored_bytes

# Extent maps have blocks of their own, which st_blocks counts.
EXTENT_MAPS = 64 << 10


class Pair:
    """A reservation of 64 blocks and a swap file of 40 that was promised 32."""

    def __init__(self, folder: Path) -> None:
        self.reservation, self.path = folder / "pool.rsv", folder / "vm.swap"
        create_reservation(self.reservation, 64 * BLOCK, BLOCK)
        self.uuid = make_swap_file(self.path, self.reservation, 40, 32)
        self.swap = Swap(self.path, self.reservation)
        self.reserved_offset = self.swap.borrower._file.data_offset

    def data_bytes(self) -> int:
        return stored_bytes(self.reservation, self.reserved_offset) + stored_bytes(self.path, self.swap.data_offset)

    def allocated(self) -> int:
        return sum(os.stat(path).st_blocks * 512 for path in (self.reservation, self.path))

    def home_of(self, block: int) -> int:
        return int(self.swap.borrower._home[block])

    def reserved_places(self, block: int) -> list[int]:
        return page_places(self.swap.borrower._file.pages, self.reserved_offset + block * BLOCK)

    def clean(self) -> bool:
        return check_reservation(self.reservation).findings == []


def test_a_new_reservation_is_whole_written_and_private(folder: Path) -> None:
    path = folder / "pool.rsv"
    create_reservation(path, 64 * BLOCK, BLOCK)
    assert os.stat(path).st_mode & 0o777 == 0o600
    with ReservationFile.open(path, writable=False) as file:
        assert file.area.is_written(0, 64)
        kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout.strip()
        assert file.clones == (kind in ("xfs", "btrfs"))
    facts = reservation_info(path)
    assert (facts["size_bytes"], facts["held_bytes"], facts["lent_bytes"], facts["lent_to"]) == (64 * BLOCK, 64 * BLOCK, 0, [])
    assert facts["allocated_bytes"] >= 64 * BLOCK
    assert check_reservation(path).clean


def test_the_very_block_moves_and_comes_home(cloning_folder: Path) -> None:
    pair = Pair(cloning_folder)
    before = [pair.reserved_places(block) for block in range(64)]
    pair.swap.borrow([3, 4, 5, 17])
    homes = {block: pair.home_of(block) for block in (3, 4, 5, 17)}
    for block, home in homes.items():
        assert pair.swap.physical(block) == before[home]
        assert pair.reserved_places(home) == []
    pair.swap.release([4, 17])
    for block in (4, 17):
        assert pair.reserved_places(homes[block]) == before[homes[block]]
        assert pair.swap.physical(block) == []
    pair.swap.close()
    assert pair.clean()


def test_storage_of_both_files_together_is_the_same_at_every_step(folder: Path) -> None:
    pair = Pair(folder)
    data, allocated = pair.data_bytes(), pair.allocated()
    random = np.random.default_rng(7)
    mine: list[int] = []
    for _ in range(40):
        if mine and random.random() < 0.5:
            gone = sorted(random.choice(mine, size=min(len(mine), 5), replace=False).tolist())
            pair.swap.commit(np.array(gone), present=False)
            assert pair.data_bytes() == data
            pair.swap.borrower.give_back(np.array(gone))
            mine = [block for block in mine if block not in gone]
        elif len(mine) <= 26:
            more = sorted(random.choice([b for b in range(40) if b not in mine], size=6, replace=False).tolist())
            pair.swap.borrower.take(np.array(more))
            assert pair.data_bytes() == data
            pair.swap.commit(np.array(more), present=True)
            mine += more
        assert pair.data_bytes() == data
        assert abs(pair.allocated() - allocated) <= EXTENT_MAPS
        assert reservation_info(pair.reservation)["lent_bytes"] == len(mine) * BLOCK
    pair.swap.close()
    assert pair.clean()


def test_a_block_that_was_allocated_comes_home_to_be_cloned_again(cloning_folder: Path) -> None:
    pair = Pair(cloning_folder)
    pair.swap.borrow([1])
    # As if a clone had been refused: storage that was never written, which cloning would lose.
    pair.swap.pages.punch(pair.swap.offset(1), BLOCK)
    pair.swap.pages.allocate(pair.swap.offset(1), BLOCK)
    home = pair.home_of(1)
    pair.swap.release([1])
    assert pair.swap.borrower._file.area.is_written(home, 1)
    pair.swap.close()
    assert pair.clean()


def test_a_clone_that_is_refused_is_an_allocation(overwriting_folder: Path) -> None:
    pair = Pair(overwriting_folder)
    pair.swap.close()
    with ReservationFile.open(pair.reservation, writable=True) as file, file.transaction():
        file.root.put("mechanism", CLONE)  # as after a restore from another file system
    pair.swap = Swap(pair.path, pair.reservation)
    data = pair.data_bytes()
    pair.swap.borrow([1, 2, 3, 9])
    assert pair.data_bytes() == data
    pair.swap.release([2, 3, 9])
    assert pair.data_bytes() == data
    pair.swap.close()
    assert pair.clean()


def test_more_than_the_promise_is_refused_and_changes_nothing(folder: Path) -> None:
    pair = Pair(folder)
    pair.swap.borrow(list(range(30)))
    before = pair.data_bytes()
    with pytest.raises(RefusedError, match="promised 2 MiB"):
        pair.swap.borrower.take(np.arange(30, 33))
    assert pair.data_bytes() == before
    pair.swap.borrow([30, 31])
    pair.swap.close()
    assert reservation_info(pair.reservation)["lent_bytes"] == 32 * BLOCK
    assert pair.clean()


def test_leaving_brings_every_block_home(folder: Path) -> None:
    pair = Pair(folder)
    pair.swap.borrow(list(range(20)))
    data = pair.data_bytes()
    pair.swap.borrower.close()
    leave(pair.reservation, pair.uuid, pair.path)
    assert pair.data_bytes() == data == stored_bytes(pair.reservation, pair.reserved_offset)
    facts = reservation_info(pair.reservation)
    assert (facts["held_bytes"], facts["promised_bytes"], facts["lent_to"]) == (64 * BLOCK, 0, [])
    assert pair.clean()


def test_a_full_file_system_lends_what_was_promised(overwriting_folder: Path) -> None:
    pair = Pair(overwriting_folder)
    ballast = overwriting_folder / "ballast"
    _fill(ballast)
    try:
        pair.swap.borrow(list(range(32)))
        pair.swap.release(list(range(0, 32, 2)))
        pair.swap.borrow(list(range(0, 32, 2)))
    finally:
        ballast.unlink()
    pair.swap.close()
    assert pair.clean()


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        try:
            for size in (1 << 20, 4096):
                while True:
                    file.write(bytes(size))
                    file.flush()
                    os.fsync(file.fileno())
        except OSError:
            pass


def test_more_blocks_than_one_transaction_holds(overwriting_folder: Path) -> None:
    reservation, path = overwriting_folder / "pool.rsv", overwriting_folder / "vm.swap"
    nblocks = 4200
    create_reservation(reservation, nblocks * BLOCK, BLOCK)
    make_swap_file(path, reservation, nblocks, 4100)
    swap = Swap(path, reservation)
    offset = swap.borrower._file.data_offset
    assert swap.borrower._file.batch < 4000
    swap.borrower.take(np.arange(100, 4100))
    assert stored_bytes(reservation, offset) == 200 * BLOCK
    assert stored_bytes(path, swap.offset(100)) == 4000 * BLOCK
    resize_reservation(reservation, 4100 * BLOCK)
    swap.borrower.give_back(np.arange(100, 4100))
    assert stored_bytes(reservation, offset) == 4100 * BLOCK
    assert stored_bytes(path, swap.data_offset) == 0
    swap.close()
    assert check_reservation(reservation).findings == []
