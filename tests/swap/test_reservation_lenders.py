"""Who may borrow: promises, places, and everything that can be wrong with a reservation or a swap file, each in one line."""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from pathlib import Path

import pytest

from nvmtool.errors import BusyError, DamagedError, ExistsError, FormatError, NoSpaceError, NotFoundError, RefusedError, UsageError
from nvmtool.media import lock
from nvmtool.media.imagefile import take_lock
from nvmtool.swap import borrower, reservationfile
from nvmtool.swap import layout as lay
from nvmtool.swap.create import create_swap
from nvmtool.swap.delete import delete_swap
from nvmtool.swap.lenders import Lender
from nvmtool.swap.reservation import create_reservation, forget_lender, join, leave, reservation_info
from nvmtool.swap.reservation_check import check_reservation
from nvmtool.swap.reservation_resize import resize_reservation
from nvmtool.swap.reservationfile import ReservationFile
from nvmtool.swap.swapfile import SwapFile

from .borrowing import BLOCK, Swap, make_swap_file


@pytest.fixture
def reservation(tmp_path: Path) -> Path:
    path = tmp_path / "pool.rsv"
    create_reservation(path, 32 * BLOCK, BLOCK)
    return path


def test_promises_never_exceed_the_size(reservation: Path) -> None:
    join(reservation, uuid.uuid4().bytes, reservation.parent / "a.swap", 20)
    with pytest.raises(RefusedError, match=r"cannot promise 832 KiB to .*b.swap: 1.25 MiB of 2 MiB are promised, 768 KiB are free"):
        join(reservation, uuid.uuid4().bytes, reservation.parent / "b.swap", 13)
    join(reservation, uuid.uuid4().bytes, reservation.parent / "b.swap", 12)
    facts = reservation_info(reservation)
    assert facts["promised_bytes"] == facts["size_bytes"]
    assert [each["promise_bytes"] for each in facts["lent_to"]] == [20 * BLOCK, 12 * BLOCK]
    assert [Path(each["swap_file"]).name for each in facts["lent_to"]] == ["a.swap", "b.swap"]


def test_a_swap_file_joins_once_and_leaves_once(reservation: Path) -> None:
    swap = uuid.uuid4().bytes
    join(reservation, swap, reservation.parent / "a.swap", 1)
    with pytest.raises(ExistsError, match=r"has promised blocks to .*a\.swap already"):
        join(reservation, swap, reservation.parent / "a.swap", 1)
    leave(reservation, swap, reservation.parent / "a.swap")
    with pytest.raises(NotFoundError, match="has promised nothing"):
        leave(reservation, swap, reservation.parent / "a.swap")
    assert check_reservation(reservation).clean


def test_paths_that_do_not_fit_are_refused(reservation: Path) -> None:
    with pytest.raises(UsageError, match="longer than the 413 bytes"):
        join(reservation, uuid.uuid4().bytes, reservation.parent / ("x" * 250) / ("y" * 250), 1)
    with pytest.raises(UsageError, match="not UTF-8"):
        join(reservation, uuid.uuid4().bytes, reservation.parent / os.fsdecode(b"\xff"), 1)


def test_a_swap_file_elsewhere_is_refused(reservation: Path, small_tmpfs: Path) -> None:
    with pytest.raises(RefusedError, match="not on the file system"):
        join(reservation, uuid.uuid4().bytes, small_tmpfs / "a.swap", 1)


def test_the_table_holds_its_number_of_lenders(reservation: Path) -> None:
    with ReservationFile.open(reservation, writable=True) as file:
        for number in range(lay.MAX_LENDERS):
            with file.transaction():
                file.lenders.store(Lender(number + 1, 0, uuid.uuid4().bytes, f"{number}.swap"))
    with pytest.raises(NoSpaceError, match="2048 swap files already"):
        join(reservation, uuid.uuid4().bytes, reservation.parent / "a.swap", 1)


def test_a_moved_swap_file_is_found_where_it_is_now(reservation: Path) -> None:
    path = reservation.parent / "a.swap"
    make_swap_file(path, reservation, 16, 8)
    moved = path.rename(reservation.parent / "b.swap")
    Swap(moved, reservation).close()
    assert reservation_info(reservation)["lent_to"][0]["swap_file"] == str(moved)
    assert check_reservation(reservation).clean


def test_a_reservation_and_its_swap_files_move_together(reservation: Path) -> None:
    make_swap_file(reservation.parent / "a.swap", reservation, 16, 8)
    folder = reservation.parent / "elsewhere"
    folder.mkdir()
    shutil.move(reservation, folder)
    shutil.move(reservation.parent / "a.swap", folder)
    assert check_reservation(folder / reservation.name).clean


def test_a_reservation_that_is_gone_foreign_or_forgetful_is_named(reservation: Path) -> None:
    path, other = reservation.parent / "a.swap", reservation.parent / "other.rsv"
    swap_uuid = make_swap_file(path, reservation, 16, 8)
    create_reservation(other, 16 * BLOCK, BLOCK)
    with pytest.raises(NotFoundError, match=r"a\.swap: its reservation .*gone\.rsv is gone; --reservation if it was moved"):
        Swap(path, reservation.parent / "gone.rsv")
    with pytest.raises(FormatError, match=r"other\.rsv: another reservation"):
        Swap(path, other)
    with pytest.raises(FormatError, match=r"a\.swap: not a reservation file, but a swap file"):
        Swap(path, path)
    leave(reservation, swap_uuid, path)
    with pytest.raises(RefusedError, match=r"pool\.rsv: does not know .*a\.swap"):
        Swap(path, reservation)


def test_a_busy_reservation_names_its_holder(reservation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borrower, "_FAULT_WAIT_SECONDS", 0.05)
    swap_path = reservation.parent / "a.swap"
    make_swap_file(swap_path, reservation, 16, 8)
    swap = Swap(swap_path, reservation)
    with reservation.open("r+b") as file:
        lock.lock(file.fileno(), reservation, lock.WRITER, exclusive=True, seconds=0)
        with pytest.raises(BusyError, match=r"pool\.rsv: in use by"):
            swap.borrow([1])
    swap.borrow([1])
    swap.close()


def test_a_vm_waits_longer_for_a_stopped_process_than_others_do(reservation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservationfile, "_TURN_WAIT_SECONDS", 0.05)
    swap_path = reservation.parent / "a.swap"
    make_swap_file(swap_path, reservation, 16, 8)
    swap = Swap(swap_path, reservation)
    with reservation.open("r+b") as file:
        lock.lock(file.fileno(), reservation, lock.WRITER, exclusive=True, seconds=0)
        with pytest.raises(BusyError, match=r"pool\.rsv: in use by"):
            resize_reservation(reservation, 16 * BLOCK)
        thread = threading.Timer(0.5, lock.unlock, [file.fileno(), lock.WRITER])
        thread.start()
        swap.borrow([1])
        thread.join()
    swap.close()


def test_a_copy_of_a_swap_file_neither_borrows_nor_takes_anything_from_the_original(reservation: Path) -> None:
    path, copy = reservation.parent / "a.swap", reservation.parent / "copy.swap"
    make_swap_file(path, reservation, 16, 8)
    swap = Swap(path, reservation)
    swap.borrow([1, 2])
    shutil.copy(path, copy)
    with pytest.raises(RefusedError, match=r"copy\.swap: has the uuid of .*a\.swap, which borrows .* one of them is a copy"):
        Swap(copy, reservation)
    with pytest.raises(RefusedError, match="one of them is a copy"):
        delete_swap(copy)
    assert reservation_info(reservation)["lent_bytes"] == 2 * BLOCK
    swap.borrow([3])
    swap.close()
    assert check_reservation(reservation).findings == []
    path.unlink()
    Swap(copy, reservation).close()
    assert check_reservation(reservation).findings == []


def test_a_removed_swap_file_is_forgotten_though_a_new_one_has_its_name(reservation: Path) -> None:
    path = reservation.parent / "a.swap"
    create_swap(path, memory_bytes=4 * BLOCK, reservation=reservation)
    path.unlink()
    create_swap(path, memory_bytes=8 * BLOCK, reservation=reservation)
    forget_lender(reservation, path)
    assert [each["promise_bytes"] for each in reservation_info(reservation)["lent_to"]] == [8 * BLOCK]
    with pytest.raises(RefusedError, match="is there still"):
        forget_lender(reservation, path)


def test_repairs_beside_create_leave_no_swap_file_without_its_promise(reservation: Path) -> None:
    done = threading.Event()

    def repair() -> None:
        while not done.is_set():
            check_reservation(reservation, repair=True)

    thread = threading.Thread(target=repair)
    thread.start()
    try:
        for number in range(20):
            create_swap(reservation.parent / f"{number}.swap", memory_bytes=BLOCK, reservation=reservation)
    finally:
        done.set()
        thread.join()
    assert reservation_info(reservation)["promised_bytes"] == 20 * BLOCK


def test_no_vm_begins_on_a_file_that_is_being_deleted(reservation: Path) -> None:
    swap_path = reservation.parent / "a.swap"
    create_swap(swap_path, memory_bytes=8 * BLOCK, reservation=reservation)
    with reservation.open("r+b") as file, swap_path.open("r+b") as swap_file:
        lock.lock(file.fileno(), reservation, lock.WRITER, exclusive=True, seconds=0)
        thread = threading.Thread(target=delete_swap, args=[swap_path])
        thread.start()
        while not lock.is_held(swap_file.fileno(), lock.WRITER):
            time.sleep(0.01)
        time.sleep(0.1)  # it waits for the reservation now
        with pytest.raises(BusyError, match=r"a\.swap: in use by"):
            SwapFile.open(swap_path, writable=True)
        lock.unlock(file.fileno(), lock.WRITER)
        thread.join()
        with pytest.raises(NotFoundError, match="was deleted just now"):
            take_lock(swap_file.fileno(), swap_path, writable=True)
    assert not swap_path.exists()
    assert reservation_info(reservation)["promised_bytes"] == 0


@pytest.mark.parametrize(
    ("size", "block", "message"),
    [(BLOCK, 3 * 4096, "power of two"), (BLOCK + 1, BLOCK, "multiple"), (0, BLOCK, "multiple"), (BLOCK, 32 << 20, "power of two")],
)
def test_sizes_that_cannot_be_are_refused(tmp_path: Path, size: int, block: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_reservation(tmp_path / "pool.rsv", size, block)
    assert list(tmp_path.iterdir()) == []


def test_creation_is_whole_or_not_at_all(small_tmpfs: Path, reservation: Path) -> None:
    with pytest.raises(NoSpaceError, match="no space for 67108864 bytes"):
        create_reservation(small_tmpfs / "pool.rsv", 64 << 20, BLOCK)
    assert list(small_tmpfs.iterdir()) == []
    with pytest.raises(ExistsError):
        create_reservation(reservation, BLOCK, BLOCK)


def test_shrinking_below_the_promises_is_refused(reservation: Path) -> None:
    join(reservation, uuid.uuid4().bytes, reservation.parent / "a.swap", 20)
    before = reservation_info(reservation)
    with pytest.raises(RefusedError, match=r"cannot shrink to 1.19 MiB: 1.25 MiB are promised"):
        resize_reservation(reservation, 19 * BLOCK)
    assert reservation_info(reservation) == before
    resize_reservation(reservation, 20 * BLOCK)
    assert reservation_info(reservation)["size_bytes"] == 20 * BLOCK


def test_a_shrunk_reservation_keeps_what_is_lent(folder: Path) -> None:
    reservation, path = folder / "pool.rsv", folder / "a.swap"
    create_reservation(reservation, 32 * BLOCK, BLOCK)
    make_swap_file(path, reservation, 30, 12)
    swap = Swap(path, reservation)
    for start in range(0, 24, 8):  # the last ones lent are far from the beginning
        blocks = list(range(start, start + 8))
        swap.borrow(blocks)
        if start < 16:
            swap.release(blocks)
    for block in range(16, 24):
        swap.write(block, block)
    change = resize_reservation(reservation, 12 * BLOCK)
    assert change["relabelled_blocks"] == 8
    assert os.stat(reservation).st_size == swap.borrower._file.data_offset + 12 * BLOCK
    swap.borrow([0, 1])
    swap.release([16, 17])
    assert all(swap.read(block) == bytes([block]) * BLOCK for block in range(18, 24))
    swap.close()
    assert check_reservation(reservation).findings == []


def test_growing_past_the_file_system_changes_nothing(small_tmpfs: Path) -> None:
    path = small_tmpfs / "pool.rsv"
    create_reservation(path, 16 * BLOCK, BLOCK)
    with pytest.raises(NoSpaceError):
        resize_reservation(path, 1600 * BLOCK)
    assert check_reservation(path).findings == []
    assert reservation_info(path)["size_bytes"] == 16 * BLOCK


def test_a_deleted_swap_files_blocks_are_allocated_anew(folder: Path) -> None:
    reservation, path = folder / "pool.rsv", folder / "a.swap"
    create_reservation(reservation, 32 * BLOCK, BLOCK)
    make_swap_file(path, reservation, 30, 12)
    swap = Swap(path, reservation)
    swap.borrow([1, 2, 3])
    swap.close()
    with pytest.raises(RefusedError, match="is there still"):
        forget_lender(reservation, path)
    path.unlink()
    result = check_reservation(reservation)
    assert [finding.structure for finding in result.findings] == ["swap file"]
    assert forget_lender(reservation, path) == {"blocks": 3, "bytes": 3 * BLOCK}
    with pytest.raises(NotFoundError, match="has promised nothing"):
        forget_lender(reservation, path)
    assert check_reservation(reservation).clean
    assert reservation_info(reservation)["held_bytes"] == 32 * BLOCK


def test_damaged_lenders_are_named(reservation: Path) -> None:
    join(reservation, uuid.uuid4().bytes, reservation.parent / "a.swap", 20)
    areas = lay.reservation_areas(BLOCK // 4096)
    ReservationFile.open(reservation, writable=True).close()
    with reservation.open("r+b") as file:
        file.seek(areas["lender_start"] * 4096 + 41)
        file.write(b"\x55")
    with pytest.raises(DamagedError, match=r"pool\.rsv: word 5 of lender 1 at 0x"):
        reservation_info(reservation)
