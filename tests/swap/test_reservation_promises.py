"""Promises that change while their swap files are in use: never more than can be kept, never less than is lent."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nvmtool.errors import BusyError, NotFoundError, RefusedError, UsageError
from nvmtool.media import lock
from nvmtool.swap.create import create_swap
from nvmtool.swap.lenders import Lender
from nvmtool.swap.reservation import create_reservation, join, leave, promise_of, reservation_info, set_promise
from nvmtool.swap.reservation_check import check_reservation
from nvmtool.swap.reservation_resize import grow_reservation, resize_reservation
from nvmtool.swap.reservationfile import ReservationFile

from .borrowing import BLOCK, Swap, make_swap_file


@pytest.fixture
def reservation(tmp_path: Path) -> Path:
    path = tmp_path / "pool.rsv"
    create_reservation(path, 32 * BLOCK, BLOCK)
    return path


def _make(reservation: Path, name: str, promise: int) -> tuple[Path, bytes]:
    path = reservation.parent / name
    return path, make_swap_file(path, reservation, 16, promise)


def _lender(reservation: Path, swap_uuid: bytes) -> Lender | None:
    with ReservationFile.open(reservation, writable=False) as file:
        return file.lenders.find(swap_uuid)


def test_a_promise_of_nothing_is_a_promise(reservation: Path) -> None:
    path, swap_uuid = _make(reservation, "a.swap", 0)
    assert promise_of(reservation, swap_uuid) == 0
    swap = Swap(path, reservation)
    with pytest.raises(RefusedError, match="was promised 0 B and has 0 B; 64 KiB more is refused"):
        swap.borrow([1])
    swap.close()
    assert check_reservation(reservation).clean
    assert check_reservation(reservation, repair=True).clean
    assert [each["promise_bytes"] for each in reservation_info(reservation)["lent_to"]] == [0]
    leave(reservation, swap_uuid, path)
    assert reservation_info(reservation)["lent_to"] == []


def test_a_swap_file_is_created_with_a_promise_of_nothing(reservation: Path) -> None:
    create_swap(reservation.parent / "a.swap", memory_bytes=16 * BLOCK, reservation=reservation, promise_bytes=0)
    assert [each["promise_bytes"] for each in reservation_info(reservation)["lent_to"]] == [0]
    assert check_reservation(reservation).clean


def test_a_promise_grows_under_a_running_vm_step_by_step(reservation: Path) -> None:
    path, swap_uuid = _make(reservation, "a.swap", 0)
    swap = Swap(path, reservation)
    for promise in range(1, 6):
        assert set_promise(reservation, swap_uuid, promise) == promise - 1
        assert promise_of(reservation, swap_uuid) == promise
        swap.borrow([promise])
        with pytest.raises(RefusedError, match="more is refused"):
            swap.borrow([promise + 1])
    swap.close()
    assert check_reservation(reservation).clean


def test_a_promise_that_cannot_be_kept_is_refused(reservation: Path) -> None:
    _, a = _make(reservation, "a.swap", 20)
    _, b = _make(reservation, "b.swap", 2)
    with pytest.raises(RefusedError, match=r"cannot promise 704 KiB to .*b\.swap: 1.38 MiB of 2 MiB are promised, 640 KiB are free"):
        set_promise(reservation, b, 13)
    assert set_promise(reservation, b, 12) == 2
    assert set_promise(reservation, a, 0) == 20
    assert set_promise(reservation, b, 32) == 12
    facts = reservation_info(reservation)
    assert facts["promised_bytes"] == facts["size_bytes"] == 32 * BLOCK
    assert check_reservation(reservation).clean


def test_a_promise_never_falls_below_what_is_lent(reservation: Path) -> None:
    path, swap_uuid = _make(reservation, "a.swap", 8)
    swap = Swap(path, reservation)
    swap.borrow([1, 2, 3])
    with pytest.raises(RefusedError, match=r"cannot promise only 128 KiB to .*a\.swap: it has 192 KiB"):
        set_promise(reservation, swap_uuid, 2)
    assert set_promise(reservation, swap_uuid, 3) == 8
    with pytest.raises(RefusedError, match="more is refused"):
        swap.borrow([4])
    swap.release([1])
    assert set_promise(reservation, swap_uuid, 2) == 3
    swap.close()
    assert promise_of(reservation, swap_uuid) == 2
    assert check_reservation(reservation).clean


def test_a_changed_promise_keeps_all_else_of_its_record(reservation: Path) -> None:
    path, swap_uuid = _make(reservation, "a.swap", 8)
    set_promise(reservation, swap_uuid, 5)
    assert _lender(reservation, swap_uuid) == Lender(1, 5, swap_uuid, path.name)


def test_promises_to_nobody_and_of_less_than_nothing_are_refused(reservation: Path) -> None:
    stranger = uuid.uuid4()
    for call in (lambda: promise_of(reservation, stranger.bytes), lambda: set_promise(reservation, stranger.bytes, 1)):
        with pytest.raises(NotFoundError, match=f"has promised nothing to a swap file with the uuid {stranger}"):
            call()
    join(reservation, stranger.bytes, reservation.parent / "a.swap", 3)
    with pytest.raises(UsageError, match="must be 0 or more"):
        set_promise(reservation, stranger.bytes, -1)
    assert promise_of(reservation, stranger.bytes) == 3


def test_a_reservation_grows_by_steps_each_promised_at_once(reservation: Path) -> None:
    path, swap_uuid = _make(reservation, "a.swap", 0)
    _make(reservation, "b.swap", 32)
    swap = Swap(path, reservation)
    for step in range(1, 4):
        with pytest.raises(RefusedError, match="cannot promise"):
            set_promise(reservation, swap_uuid, step)
        grow_reservation(reservation, BLOCK)
        assert reservation_info(reservation)["size_bytes"] == (32 + step) * BLOCK
        set_promise(reservation, swap_uuid, step)
        swap.borrow([step])
    swap.close()
    assert check_reservation(reservation).clean
    with pytest.raises(RefusedError, match="are promised"):
        resize_reservation(reservation, 34 * BLOCK)


def test_one_with_enough_that_nobody_was_promised_stays_as_it_is(reservation: Path) -> None:
    for free in (0, -BLOCK, BLOCK, 32 * BLOCK):
        grow_reservation(reservation, free)
        assert reservation_info(reservation)["size_bytes"] == 32 * BLOCK


@pytest.mark.parametrize("free", [33 * BLOCK + 1, 33 * BLOCK - BLOCK // 2])
def test_parts_of_blocks_are_refused(reservation: Path, free: int) -> None:
    with pytest.raises(UsageError):
        grow_reservation(reservation, free)
    assert reservation_info(reservation)["size_bytes"] == 32 * BLOCK


def test_who_wants_it_to_grow_waits_for_another_who_changes_its_size(reservation: Path) -> None:
    with reservation.open("r+b") as file, ThreadPoolExecutor() as pool:
        assert lock.try_lock(file.fileno(), lock.RESIZER, exclusive=True)
        with pytest.raises(BusyError, match=r"pool\.rsv: in use by"):
            resize_reservation(reservation, 40 * BLOCK)
        growing = pool.submit(grow_reservation, reservation, 33 * BLOCK)
        assert not growing.done()
        lock.unlock(file.fileno(), lock.RESIZER)
        growing.result(60)
    assert reservation_info(reservation)["size_bytes"] == 33 * BLOCK
