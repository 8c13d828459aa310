"""What check finds in a reservation, and what repair mends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nvmtool.errors import DamagedError
from nvmtool.media import word
from nvmtool.swap import layout as lay
from nvmtool.swap.reservation import create_reservation, reservation_info
from nvmtool.swap.reservation_check import check_reservation
from nvmtool.swap.reservationfile import ReservationFile

from .borrowing import BLOCK, Swap, make_swap_file


class Pool:
    """A reservation of 32 blocks that has lent 4 of them."""

    def __init__(self, folder: Path) -> None:
        self.path, self.swap_path = folder / "pool.rsv", folder / "a.swap"
        create_reservation(self.path, 32 * BLOCK, BLOCK)
        make_swap_file(self.swap_path, self.path, 30, 12)
        swap = Swap(self.swap_path, self.path)
        swap.borrow([1, 2, 3, 4])
        swap.close()

    def put(self, block: int, kind: int, lender: int = 1, storage: int = 0) -> None:
        with ReservationFile.open(self.path, writable=True) as file, file.transaction():
            if kind == word.HELD:
                file.words.put_held(np.array([block]))
            else:
                file.words.put(np.array([block]), kind, lender, np.array([storage]))

    def found(self) -> list[tuple[str, str]]:
        return [(finding.severity, finding.what) for finding in check_reservation(self.path).findings]

    def repaired(self) -> int:
        result = check_reservation(self.path, repair=True)
        assert result.clean
        assert check_reservation(self.path).findings == []
        return result.repaired


@pytest.fixture
def pool(folder: Path) -> Pool:
    return Pool(folder)


def test_a_renamed_swap_file_is_not_taken_for_gone(pool: Pool) -> None:
    renamed = pool.swap_path.rename(pool.swap_path.with_name("b.swap"))
    result = check_reservation(pool.path, repair=True)
    assert not result.clean
    assert result.repaired == 0
    assert f"is {renamed} now" in result.findings[0].what
    Swap(renamed, pool.path).close()
    assert check_reservation(pool.path).clean


def test_a_block_lent_twice_is_an_error_that_nobody_can_mend(pool: Pool) -> None:
    pool.put(20, word.LENT, storage=3)
    found = pool.found()
    assert ("error", "storage block 3 of lender 1 is another reserved block too") in found
    result = check_reservation(pool.path, repair=True)
    assert not result.clean
    assert result.repaired == 0


def test_a_block_lent_to_nobody_is_an_error(pool: Pool) -> None:
    pool.put(20, word.LENT, lender=7, storage=3)
    assert ("error", "1 blocks are lent to it, there is none") in pool.found()


def test_pages_in_a_block_that_is_not_lent_are_an_error(pool: Pool) -> None:
    pool.put(0, word.HELD)
    assert ("error", "1 storage blocks hold pages and are not lent, the first is 1") in pool.found()


def test_a_lent_block_with_storage_is_a_leak_that_repair_punches(pool: Pool) -> None:
    with ReservationFile.open(pool.path, writable=True) as file:
        file.area.pages.allocate(*file.area.bounds(2, 1))
        if file.clones:
            file.area.pages.write(file.area.bounds(2, 1)[0], [bytes(BLOCK)])
        file.pages.fence()
    assert pool.found() == [("leak", "has storage in the reservation too")]
    assert pool.repaired() == 1


def test_a_held_block_without_storage_gets_it(pool: Pool) -> None:
    with ReservationFile.open(pool.path, writable=True) as file:
        file.area.punch(12, 2)
        file.pages.fence()
    assert pool.found() == [("error", "has not all of its storage")] * 2
    assert pool.repaired() == 2


def test_a_block_that_was_on_its_way_is_settled(pool: Pool) -> None:
    pool.put(20, word.MOVING, storage=9)
    assert pool.found()[0] == ("leak", "1 blocks were being moved when a process was killed")
    pool.repaired()
    assert reservation_info(pool.path)["lent_bytes"] == 4 * BLOCK


def test_a_running_vm_is_no_finding_and_not_disturbed(pool: Pool) -> None:
    swap = Swap(pool.swap_path, pool.path)
    swap.borrower.take(np.array([10, 11]))
    assert pool.found() == []
    swap.commit(np.array([10, 11]), present=True)
    assert pool.found() == []
    swap.commit(np.array([1, 2]), present=False)
    assert check_reservation(pool.path, repair=True).findings == []
    swap.borrower.give_back(np.array([1, 2]))
    swap.close()
    assert pool.found() == []


def test_a_deleted_swap_file_loses_its_promise(pool: Pool) -> None:
    pool.swap_path.unlink()
    assert check_reservation(pool.path, repair=True).clean
    facts = reservation_info(pool.path)
    assert (facts["held_bytes"], facts["lent_to"]) == (32 * BLOCK, [])


def test_another_swap_file_in_its_place_is_noticed(pool: Pool) -> None:
    other = Pool(pool.path.parent / "other") if (pool.path.parent / "other").mkdir() is None else None
    assert other is not None
    pool.swap_path.unlink()
    other.swap_path.rename(pool.swap_path)
    assert "another swap file" in pool.found()[0][1]


def test_a_swap_file_that_this_version_cannot_read_keeps_its_promise(pool: Pool) -> None:
    with pool.swap_path.open("r+b") as file:
        for copy in range(2):
            file.seek(copy * 4096 + 8)
            file.write(b"\2")
    assert "format version 2" in pool.found()[0][1]
    result = check_reservation(pool.path, repair=True)
    assert (result.clean, result.repaired) == (False, 0)
    assert reservation_info(pool.path)["lent_bytes"] == 4 * BLOCK


def test_a_damaged_header_copy_is_written_again(pool: Pool) -> None:
    with pool.path.open("r+b") as file:
        file.seek(30)
        file.write(b"\xaa")
    assert "header copy A" in pool.found()[0][1]
    assert pool.repaired() == 1


def test_a_tail_that_a_killed_resize_left_is_cut_off(pool: Pool) -> None:
    with pool.path.open("r+b") as file:
        file.seek(0, 2)
        file.write(bytes(BLOCK))
    assert pool.found() == [("leak", f"{BLOCK} bytes past the last block")]
    assert pool.repaired() == 1


def test_damaged_words_are_named(pool: Pool) -> None:
    areas = lay.reservation_areas(BLOCK // 4096)
    ReservationFile.open(pool.path, writable=True).close()
    with pool.path.open("r+b") as file:
        file.seek(areas["block_start"] * 4096 + 17 * 8 + 2)
        file.write(b"\x99")
    (finding,) = check_reservation(pool.path).findings
    assert finding.severity == "error"
    assert f"0x{areas['block_start'] * 4096 + 17 * 8:x}" in finding.where
    with pytest.raises(DamagedError):
        reservation_info(pool.path)


def test_a_truncated_reservation_is_named(pool: Pool) -> None:
    with pool.path.open("r+b") as file:
        file.truncate(lay.reservation_areas(BLOCK // 4096)["data_start"] * 4096 + 31 * BLOCK)
    with pytest.raises(DamagedError, match="truncated"):
        check_reservation(pool.path)
