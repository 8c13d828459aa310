"""Defragmentation of an idle file reaches the fewest blocks with the fewest moves, stops anywhere, and loses nothing."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nvmtool.errors import UsageError
from nvmtool.swap.check import check_swap
from nvmtool.swap.defrag import Defragmenter, DefragResult, plan_defrag
from nvmtool.swap.moves import Mover
from nvmtool.swap.swapfile import SwapFile

from .guest import PAGE, Guest

if TYPE_CHECKING:
    from pathlib import Path


def defragment(swap: SwapFile, **budgets: float) -> DefragResult:
    return Defragmenter(Mover(swap), swap.pages, swap.data_offset, swap.block_bytes, live=False, **budgets).run()  # type: ignore[arg-type]


def sparse_guest(path: Path, *, seed: int = 1, frames: int = 2048, slots: int = 16, share: float = 0.4) -> Guest:
    guest = Guest(path, frames=frames, block_bytes=slots * PAGE)
    guest.fill(seed, share=share)
    return guest


@pytest.mark.parametrize("slots", [16, 64, 256])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.97])
def test_reaches_the_fewest_blocks_with_the_fewest_moves(slots: int, share: float, tmp_path: Path) -> None:
    guest = sparse_guest(tmp_path / "vm.swap", seed=slots, slots=slots, share=share)
    optimal = -(-len(guest.swapped) // slots)
    result = defragment(guest.swap)
    assert (result.blocks_after, result.blocks_optimal, guest.swap.blocks_allocated) == (optimal, optimal, optimal)
    assert result.pages_moved == result.pages_optimal
    assert result.bytes_released == (result.blocks_before - optimal) * slots * PAGE
    assert result.complete
    guest.close()
    guest.verify()
    assert check_swap(guest.path).clean
    assert guest.path.stat().st_blocks * 512 <= guest.swap.data_offset + (optimal + 1) * slots * PAGE


def test_the_plan_of_a_dry_run_is_what_happens(tmp_path: Path) -> None:
    guest = sparse_guest(tmp_path / "vm.swap")
    guest.close()
    with SwapFile.open(guest.path) as reader:
        planned = plan_defrag(reader)
    guest.open()
    done = defragment(guest.swap)
    left_out = {"live", "passes", "seconds"}
    same = [field.name for field in dataclasses.fields(done) if field.name not in left_out]
    assert [getattr(planned, name) for name in same] == [getattr(done, name) for name in same]
    guest.close()


def test_a_second_run_moves_nothing(tmp_path: Path) -> None:
    guest = sparse_guest(tmp_path / "vm.swap")
    defragment(guest.swap)
    again = defragment(guest.swap)
    assert (again.pages_moved, again.blocks_released, again.complete) == (0, 0, True)
    guest.close()


def test_an_empty_file_and_a_full_one_need_nothing(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "vm.swap", frames=128)
    assert defragment(guest.swap).pages_moved == 0
    guest.out(range(128))
    result = defragment(guest.swap)
    assert (result.pages_moved, result.blocks_after, result.complete) == (0, 8, True)
    guest.close()
    guest.verify()


def test_budgets_are_kept_and_later_runs_do_the_rest(tmp_path: Path) -> None:
    guest = sparse_guest(tmp_path / "vm.swap")
    first = defragment(guest.swap, max_bytes=0)
    assert (first.pages_moved, first.blocks_released) == (0, 0)
    assert not first.complete
    assert defragment(guest.swap, max_seconds=0).pages_moved == 0
    moved, runs = 0, 0
    while True:
        result = defragment(guest.swap, max_bytes=100 * PAGE)
        assert result.pages_moved <= 100
        moved, runs = moved + result.pages_moved, runs + 1
        guest.verify()
        if result.complete:
            break
    assert runs > 2
    assert moved == first.pages_optimal
    assert result.blocks_after == first.blocks_optimal
    guest.close()
    assert check_swap(guest.path).clean
    with pytest.raises(UsageError):
        defragment(guest.swap, max_bytes=-1)


def test_a_page_that_is_swapped_in_between_plan_and_commit_is_not_moved(tmp_path: Path) -> None:
    guest = sparse_guest(tmp_path / "vm.swap")
    mover = Mover(guest.swap)
    mover.begin()
    moves = mover.plan(50)
    owners = {guest.swap.state_of(frame): frame for frame in guest.swapped}
    gone, back = (owners[slot] for slot in moves.sources[:2].tolist())
    guest.bring_in([gone, back])
    guest.swap.commit()
    guest.out([back])
    place = guest.swap.state_of(back)
    for source, target in zip(moves.sources.tolist(), moves.targets.tolist(), strict=True):
        page = bytearray(PAGE)
        guest.swap.pages.read(guest.swap.offset_of(source), [memoryview(page)])
        guest.swap.pages.write(guest.swap.offset_of(target), [bytes(page)])
    assert mover.commit() == len(moves.sources) - 2
    mover.end()
    assert guest.swap.state_of(back) == place
    assert guest.swap.density.total == guest.swap.used_slots, "no slot is held for what was not moved"
    guest.verify()
    guest.close()
    assert check_swap(guest.path).clean


def test_a_page_that_is_forgotten_between_plan_and_commit_is_not_moved(tmp_path: Path) -> None:
    guest = sparse_guest(tmp_path / "vm.swap")
    mover = Mover(guest.swap)
    mover.begin()
    moves = mover.plan(50)
    owners = {guest.swap.state_of(frame): frame for frame in guest.swapped}
    gone = [owners[slot] for slot in moves.sources[:5].tolist()]
    guest.swap.forget(np.array(gone))
    for frame in gone:
        del guest.swapped[frame]
    for source, target in zip(moves.sources.tolist(), moves.targets.tolist(), strict=True):
        page = bytearray(PAGE)
        guest.swap.pages.read(guest.swap.offset_of(source), [memoryview(page)])
        guest.swap.pages.write(guest.swap.offset_of(target), [bytes(page)])
    assert mover.commit() == len(moves.sources) - 5
    mover.end()
    assert (guest.swap.states(np.array(gone)) < 0).all()
    guest.verify()
    guest.close()
    assert check_swap(guest.path).clean


def test_an_aborted_plan_leaves_no_slot_held(tmp_path: Path) -> None:
    guest = sparse_guest(tmp_path / "vm.swap")
    taken = guest.swap.density.taken.copy()
    mover = Mover(guest.swap)
    mover.begin()
    assert len(mover.plan(500).targets)
    mover.end()
    assert guest.swap.density.taken.tolist() == taken.tolist()
    guest.close()
    guest.verify()


_RUN = """
import sys
from nvmtool.swap.defrag import Defragmenter
from nvmtool.swap.moves import Mover
from nvmtool.swap.remote import RemoteMover
from nvmtool.swap.swapfile import SwapFile
with SwapFile.open(sys.argv[1], writable=True) as swap:
    print("open", flush=True)
    Defragmenter(Mover(swap), swap.pages, swap.data_offset, swap.block_bytes, live=False, max_bytes=int(sys.argv[2])).run()
"""


def test_killed_at_random_moments_nothing_is_lost_and_the_next_run_goes_on(tmp_path: Path) -> None:
    guest = sparse_guest(tmp_path / "vm.swap", frames=16384)
    guest.close()
    rng = random.Random(7)
    for _ in range(12):
        command = [sys.executable, "-c", _RUN, str(guest.path), str(800 * PAGE)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.wait()
        process.stdout.close()
        guest.verify()
        errors = [finding for finding in check_swap(guest.path).findings if finding.severity == "error"]
        assert errors == []
    guest.open()
    result = defragment(guest.swap)
    assert result.complete
    assert result.blocks_after == -(-len(guest.swapped) // 16)
    guest.close()
    guest.verify()
    assert check_swap(guest.path).clean
