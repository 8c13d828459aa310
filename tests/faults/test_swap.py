"""Each store, allocation, punch and fence on a swap file failed, once and from then on: no page is lost, and the file is clean."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nvmtool.errors import NvmtoolError
from nvmtool.media.pagefile import page_buffer
from nvmtool.swap.check import check_swap
from nvmtool.swap.defrag import Defragmenter
from nvmtool.swap.moves import Mover
from nvmtool.swap.swapfile import SwapFile
from tests.swap.guest import PAGE, Guest, page_of

from .seam import ERRORS, Seam, failing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FRAMES = 512
NEW = np.arange(100, 160)
VERSION = 1000


def _swap_out(swap: SwapFile) -> None:
    frames = NEW[swap.states(NEW) < 0]
    buffer = page_buffer(len(frames))
    buffer[:] = [np.frombuffer(page_of(frame, VERSION), np.uint8) for frame in frames.tolist()]
    swap.swap_out(frames, [row.data for row in buffer])


def _swap_in(swap: SwapFile) -> None:
    for frame in np.flatnonzero(swap.states_of_range(0, 200) >= 0).tolist():
        swap.swap_in(frame, memoryview(bytearray(PAGE)))


def _defragment(swap: SwapFile) -> None:
    Defragmenter(Mover(swap), swap.pages, swap.data_offset, swap.block_bytes, live=False, max_bytes=60 * PAGE).run()


def _all(swap: SwapFile) -> None:
    for operation in (_swap_out, _swap_in, _swap_out, _defragment):
        operation(swap)


OPERATIONS: dict[str, Callable[[SwapFile], None]] = {"swap out": _swap_out, "swap in": _swap_in, "defrag": _defragment, "all": _all}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    guest = Guest(tmp_path_factory.mktemp("swap") / "vm.swap", frames=FRAMES)
    guest.out(range(FRAMES))
    guest.bring_in(frame for frame in range(FRAMES) if frame % 5 < 3 or 100 <= frame < 200)
    guest.close()
    return guest


def _run(path: Path, operation: Callable[[SwapFile], None]) -> None:
    with SwapFile.open(path, writable=True) as swap:
        operation(swap)


def _pages(path: Path) -> dict[int, bytes]:
    with SwapFile.open(path) as swap:
        frames = np.flatnonzero(swap.states_of_range(0, FRAMES) >= 0)
        out = page_buffer(len(frames))
        swap.read_pages(frames, out)
        return {frame: row.tobytes() for frame, row in zip(frames.tolist(), out, strict=True)}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_failed_store_or_fence_loses_no_page(name: str, template: Guest, tmp_path: Path) -> None:
    operation, path = OPERATIONS[name], tmp_path / "vm.swap"
    subprocess.run(["cp", template.path, path], check=True)
    with failing(Seam()) as counted:
        _run(path, operation)
    before, after = template.swapped, _pages(path)
    # All in turn: what one call of each does is tried above, and what it leaves for the next at every third.
    for at in range(1, counted.calls + 1, 3 if name == "all" else 1):
        for once, error in ((True, ERRORS[0]), (False, ERRORS[at % 2])):
            subprocess.run(["cp", template.path, path], check=True)
            where = f"{name}: call {at} of {counted.calls}, once {once}, {error.__name__}"
            with failing(Seam(at, once=once, error=error)) as seam:
                try:
                    _run(path, operation)
                    failed = False
                except NvmtoolError:
                    failed = True
            assert seam.struck, where
            pages = _pages(path)
            assert failed or pages == after, (where, seam.struck)
            assert before.keys() & after.keys() <= pages.keys(), (where, seam.struck)
            for frame, page in pages.items():
                assert page in (before.get(frame), after.get(frame), page_of(frame, VERSION)), (where, seam.struck, frame)
            result = check_swap(path)
            assert result.clean, (where, seam.struck, result.findings[:3])
            with SwapFile.open(path, writable=True) as swap:
                assert swap.density.total == swap.used_slots, where
            assert check_swap(path).clean, (where, seam.struck)


def test_a_failed_swap_out_can_be_tried_again_at_once(template: Guest, tmp_path: Path) -> None:
    path = tmp_path / "vm.swap"
    subprocess.run(["cp", template.path, path], check=True)
    for at in range(1, 9):
        with failing(Seam(at)) as seam, SwapFile.open(path, writable=True) as swap:
            try:
                _swap_out(swap)
            except NvmtoolError:
                if seam.struck in ("fence", "store_durable"):
                    swap.writable = False  # dead: nothing more is stored
                    continue
                assert (swap.states(NEW) < 0).all()
                _swap_out(swap)
            swap.commit()
            assert swap.density.total == swap.used_slots, seam.struck
            swap.forget(NEW)
        assert check_swap(path).clean, (at, seam.struck)
