"""A check of a swap file sees whether its reservation is there, and whether both say the same."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from nvmtool.errors import DamagedError, NotFoundError
from nvmtool.media.pagefile import page_buffer
from nvmtool.swap.check import check_swap
from nvmtool.swap.create import create_swap
from nvmtool.swap.reservation import create_reservation, reservation_info
from nvmtool.swap.reservation_check import check_reservation
from nvmtool.swap.swapfile import SwapFile

PAGE, BLOCK = 4096, 16 * 4096


@pytest.fixture
def borrower(tmp_path: Path) -> Path:
    """A swap file with 40 pages in three storage blocks of a reservation."""
    pool, path = tmp_path / "pool.rsv", tmp_path / "vm.swap"
    create_reservation(pool, 8 * BLOCK, BLOCK)
    create_swap(path, memory_bytes=8 * BLOCK, reservation=pool)
    with SwapFile.open(path, writable=True) as swap:
        swap.swap_out(np.arange(40), [row.data for row in page_buffer(40)])
    return path


def _found(path: Path, **options: object) -> list[str]:
    return [f"{finding.severity} {finding.structure}: {finding.what}" for finding in check_swap(path, **options).findings]


def test_a_sound_borrower_is_clean_and_its_storage_is_the_reservations(borrower: Path) -> None:
    assert _found(borrower) == []
    assert reservation_info(borrower.parent / "pool.rsv")["lent_bytes"] == 3 * BLOCK


def test_a_reservation_that_is_gone_or_moved_is_named(borrower: Path) -> None:
    pool, elsewhere = borrower.parent / "pool.rsv", borrower.parent / "moved.rsv"
    pool.rename(elsewhere)
    assert _found(borrower) == ["error reservation: is gone; --reservation if it was moved"]
    with pytest.raises(NotFoundError, match="is gone; --reservation"):
        SwapFile.open(borrower, writable=True)
    assert _found(borrower, reservation=elsewhere) == []
    with SwapFile.open(borrower, writable=True, reservation=elsewhere) as swap:
        assert swap.used_slots == 40


def test_another_reservation_and_one_that_is_not_one_are_named(borrower: Path) -> None:
    create_reservation(borrower.parent / "other.rsv", BLOCK, BLOCK)
    assert "is another one" in _found(borrower, reservation=borrower.parent / "other.rsv")[0]
    assert "not a reservation file, but a swap file of nvmtool" in _found(borrower, reservation=borrower)[0]


def test_storage_that_was_not_lent_is_an_error_and_a_lent_block_without_pages_comes_home(borrower: Path) -> None:
    pool = borrower.parent / "pool.rsv"
    older = pool.read_bytes()
    with SwapFile.open(borrower, writable=True) as swap:
        swap.swap_out(np.arange(40, 60), [row.data for row in page_buffer(20)])
    newer = pool.read_bytes()
    pool.write_bytes(older)
    assert _found(borrower) == ["error reservation: has storage that " + str(pool) + " did not lend"]
    assert not check_swap(borrower, repair=True).clean
    pool.write_bytes(newer)
    with SwapFile.open(borrower, writable=True) as swap:
        swap.forget(np.arange(40, 60))
    pool.write_bytes(newer)
    assert _found(borrower) == [f"leak reservation: is lent by {pool} and holds nothing"]
    result = check_swap(borrower, repair=True)
    assert (result.clean, result.repaired) == (True, 1)
    assert reservation_info(pool)["lent_bytes"] == 3 * BLOCK


def test_a_block_that_came_home_before_the_swap_file_said_so_is_no_finding(borrower: Path) -> None:
    pool = borrower.parent / "pool.rsv"
    swap = SwapFile.open(borrower, writable=True)
    swap.forget(np.arange(16))
    swap.commit()
    # The storage is the reservation's again; the word that counts no page says so with the next commit.
    assert check_reservation(pool).clean
    _kill(swap)
    assert check_reservation(pool).clean
    assert reservation_info(pool)["lent_bytes"] == 2 * BLOCK
    with SwapFile.open(borrower, writable=True):
        pass
    assert check_reservation(pool).clean
    assert _found(borrower) == []


def test_killed_after_closing_the_words_the_next_open_still_says_what_is_lent(borrower: Path) -> None:
    pool = borrower.parent / "pool.rsv"
    swap = SwapFile.open(borrower, writable=True)
    swap.swap_out(np.arange(40, 60), [row.data for row in page_buffer(20)])
    swap._rest()
    _kill(swap)
    [finding] = check_reservation(pool).findings
    assert finding.what == "1 blocks were being moved when a process was killed"
    with SwapFile.open(borrower, writable=True):
        pass
    assert check_reservation(pool).clean


def _kill(swap: SwapFile) -> None:
    """Let go of everything as a kill would."""
    swap.storage._file.close()
    swap.pages.close()
    swap._file.close()


def test_an_open_that_fails_leaves_nothing_open(borrower: Path) -> None:
    with SwapFile.open(borrower, writable=True) as swap:
        word_of_frame_5 = (swap.fields["frame_start"] * PAGE) + 5 * 8
    data = bytearray(borrower.read_bytes())
    data[word_of_frame_5 + 1] ^= 1
    borrower.write_bytes(data)
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert _is_damaged(borrower)
    gc.collect()  # mappings go with the frames that the exception held
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def _is_damaged(path: Path) -> bool:
    try:
        SwapFile.open(path, writable=True)
    except DamagedError:
        return True
    return False
