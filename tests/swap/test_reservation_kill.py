"""Processes are killed while they lend and give back: every block is on exactly one side afterwards, and nothing was lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nvmtool.errors import StorageError
from nvmtool.media import word
from nvmtool.media.pagefile import page_buffer
from nvmtool.swap.create import create_swap
from nvmtool.swap.reservation import create_reservation, reservation_info
from nvmtool.swap.reservation_check import check_reservation
from nvmtool.swap.reservation_resize import resize_reservation
from nvmtool.swap.reservationfile import ReservationFile
from nvmtool.swap.swapfile import SwapFile

from . import borrowing
from .borrowing import BLOCK, SLOTS, Swap, make_swap_file, stored_bytes

KILLS = int(os.environ.get("NVMTOOL_KILLS", "6"))
ROOT = Path(__file__).parents[2]


def start(swap: Path, reservation: Path, seed: int, rounds: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "tests.swap.borrowing", str(swap), str(reservation), str(seed), str(rounds)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lent(reservation: Path) -> list[tuple[int, int]]:
    """Return (lender, storage block) of every block that is lent; fail on one that is on its way."""
    with ReservationFile.open(reservation, writable=False) as file:
        fates = file.words.get_all(file.nblocks)
    assert not (fates.kinds == word.MOVING).any()
    away = fates.kinds == word.LENT
    return list(zip(fates.lenders[away].tolist(), fates.storage[away].tolist(), strict=True))


def test_after_a_kill_each_block_is_on_one_side_and_storage_is_the_same(folder: Path) -> None:
    reservation, path = folder / "pool.rsv", folder / "vm.swap"
    create_reservation(reservation, 64 * BLOCK, BLOCK)
    make_swap_file(path, reservation, 60, 48)
    with ReservationFile.open(reservation, writable=False) as file:
        offset = file.data_offset
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    random_ = random.Random(seed)
    for number in range(KILLS):
        process = start(path, reservation, seed + number, 0)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        time.sleep(random_.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if number % 2:
            assert check_reservation(reservation, repair=True).clean
        swap = Swap(path, reservation)
        assert sorted(storage for _, storage in lent(reservation)) == np.flatnonzero(swap.occupied()).tolist()
        assert stored_bytes(reservation, offset) + stored_bytes(path, swap.data_offset) == 64 * BLOCK
        swap.close()
        assert check_reservation(reservation).findings == []


def test_processes_that_lend_at_once_never_lend_one_block_twice(folder: Path) -> None:
    reservation = folder / "pool.rsv"
    create_reservation(reservation, 60 * BLOCK, BLOCK)
    paths = [folder / f"vm{number}.swap" for number in range(4)]
    for path in paths:
        make_swap_file(path, reservation, 30, 15)
    processes = [start(path, reservation, number, 30) for number, path in enumerate(paths)]
    while any(process.poll() is None for process in processes):
        result = check_reservation(reservation)
        assert [finding for finding in result.findings if finding.severity == "error"] == []
        time.sleep(0.05)
    for process in processes:
        assert process.wait() == 0, process.communicate()[1]
    assert check_reservation(reservation).findings == []
    blocks = lent(reservation)
    assert len(set(blocks)) == len(blocks)
    for number, path in enumerate(paths):
        swap = Swap(path, reservation)
        assert sorted(storage for lender, storage in blocks if lender == number + 1) == np.flatnonzero(swap.occupied()).tolist()
        swap.close()


def test_resizing_while_processes_lend_leaves_their_blocks_alone(folder: Path) -> None:
    reservation = folder / "pool.rsv"
    create_reservation(reservation, 60 * BLOCK, BLOCK)
    paths = [folder / f"vm{number}.swap" for number in range(2)]
    for path in paths:
        make_swap_file(path, reservation, 30, 15)
    processes = [start(path, reservation, number, 80) for number, path in enumerate(paths)]
    sizes = [30, 700, 40, 90, 30, 64]
    for size in sizes:
        resize_reservation(reservation, size * BLOCK)
        time.sleep(0.1)
    for process in processes:
        assert process.wait() == 0, process.communicate()[1]
    assert reservation_info(reservation)["size_bytes"] == sizes[-1] * BLOCK
    assert check_reservation(reservation).findings == []


class _Killed(BaseException):
    pass


def _cut_off_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the process end, as far as it can tell, before the step-th thing that it does to either file."""
    steps = iter(range(1 << 30))

    def cut(original):  # type: ignore[no-untyped-def]
        def instead(*arguments: object, **options: object) -> object:
            if next(steps) >= step:
                raise _Killed
            return original(*arguments, **options)

        return instead

    for name in ("punch", "allocate", "clone_from", "write"):
        monkeypatch.setattr(borrowing.PageFile, name, cut(getattr(borrowing.PageFile, name)))
    for name in ("store_bytes", "store_durable", "store_word"):
        monkeypatch.setattr(borrowing.FileStore, name, cut(getattr(borrowing.FileStore, name)))


@pytest.mark.parametrize("operation", ["borrow", "release", "grow", "shrink"])
def test_cut_off_before_each_store_everything_is_whole(folder: Path, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reservation, path = folder / "pool.rsv", folder / "vm.swap"
    create_reservation(reservation, 24 * BLOCK, BLOCK)
    make_swap_file(path, reservation, 30, 12)
    swap = Swap(path, reservation)
    swap.borrow([2, 3, 4, 9, 11, 12])
    swap.release([3, 4])
    swap.close()
    sizes = {"grow": 30, "shrink": 12}
    for step in range(60):
        swap = Swap(path, reservation)
        before = swap.occupied().copy()
        assert sorted(storage for _, storage in lent(reservation)) == np.flatnonzero(before).tolist(), step
        if not before[5]:
            swap.borrow([5])
        if before[20]:
            swap.release([20, 21, 22])
        if not before[2]:
            swap.borrow([2, 9])
        with monkeypatch.context() as patched:
            _cut_off_at(patched, step)
            try:
                if operation == "borrow":
                    swap.borrow([20, 21, 22])
                elif operation == "release":
                    swap.release([2, 9])
                else:
                    resize_reservation(reservation, sizes[operation] * BLOCK)
                done = True
            except _Killed:
                done = False
            swap.kill()
        Swap(path, reservation).close()
        if operation in sizes:
            resize_reservation(reservation, sizes[operation] * BLOCK)
            assert check_reservation(reservation).findings == [], step
            resize_reservation(reservation, 24 * BLOCK)
        result = check_reservation(reservation)
        assert result.findings == [], step
        if done:
            return
    raise AssertionError("the operation never ended")


def test_cut_off_while_an_emptied_block_goes_back_repair_keeps_its_storage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reservation, path = folder / "pool.rsv", folder / "vm.swap"
    create_reservation(reservation, 12 * BLOCK, BLOCK)
    create_swap(path, memory_bytes=8 * BLOCK, reservation=reservation)
    with ReservationFile.open(reservation, writable=False) as file:
        offset = file.data_offset
    pages = page_buffer(4 * SLOTS)
    pages[:] = 7
    frames = np.arange(4 * SLOTS)
    for step in range(60):
        done = True
        swap = SwapFile.open(path, writable=True)
        missing = frames[swap.states(frames) < 0]
        swap.swap_out(missing, [pages[frame].data for frame in missing.tolist()])
        with monkeypatch.context() as patched:
            _cut_off_at(patched, step)
            try:
                swap.forget(frames[: 2 * SLOTS])
                swap.commit()
            except _Killed:
                done = False
            swap.storage._file.close()  # type: ignore[attr-defined]  # as a kill would
            swap.pages.close()
            swap._file.close()
        assert check_reservation(reservation, repair=True).clean, step
        assert stored_bytes(reservation, offset) + stored_bytes(path, swap.data_offset) == 12 * BLOCK, step
        assert check_reservation(reservation).findings == [], step
        if done:
            return
    raise AssertionError("the operation never ended")


def test_without_extents_a_file_system_still_lends(small_tmpfs: Path) -> None:
    reservation, path = small_tmpfs / "pool.rsv", small_tmpfs / "vm.swap"
    create_reservation(reservation, 20 * BLOCK, BLOCK)
    make_swap_file(path, reservation, 16, 12)
    swap = Swap(path, reservation)
    with pytest.raises(StorageError):
        swap.physical(0)
    swap.borrow([1, 2, 3])
    swap.release([2])
    swap.close()
    assert check_reservation(reservation).clean
    assert reservation_info(reservation)["lent_bytes"] == 2 * BLOCK
