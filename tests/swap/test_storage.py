"""Storage of a swap file without a reservation: allocated when it is taken, punched when it is given back."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from nvmtool.errors import NoSpaceError
from nvmtool.media.pagefile import PageFile
from nvmtool.swap.storage import PlainStorage

BLOCK = 64 << 10
OFFSET = 1 << 20


@pytest.fixture
def pages(tmp_path: Path) -> Generator[PageFile]:
    yield from _pages(tmp_path / "swap", OFFSET + 16 * BLOCK)


def _pages(path: Path, size: int) -> Generator[PageFile]:
    path.touch()
    os.truncate(path, size)
    fd = os.open(path, os.O_RDWR)
    opened = PageFile(path, fd, writable=True)
    yield opened
    opened.close()
    os.close(fd)


def stored(pages: PageFile) -> list[int]:
    return [block for block in range(16) if pages.stored_bytes(OFFSET + block * BLOCK, BLOCK) == BLOCK]


def test_blocks_have_storage_from_take_to_give_back(pages: PageFile) -> None:
    storage = PlainStorage(pages, OFFSET, BLOCK)
    storage.take(np.array([1, 2, 3, 7]))
    assert stored(pages) == [1, 2, 3, 7]
    storage.give_back(np.array([2, 7]))
    assert stored(pages) == [1, 3]
    assert pages.allocated_bytes() == 2 * BLOCK
    storage.close()


def test_recovery_punches_what_holds_no_page(pages: PageFile) -> None:
    storage = PlainStorage(pages, OFFSET, BLOCK)
    storage.take(np.arange(8))
    storage.recover(np.isin(np.arange(16), [0, 5]))
    assert stored(pages) == [0, 5]


def test_taking_more_than_there_is_takes_nothing(small_tmpfs: Path) -> None:
    for pages in _pages(small_tmpfs / "swap", 64 << 20):
        before = pages.allocated_bytes()
        with pytest.raises(NoSpaceError):
            PlainStorage(pages, OFFSET, BLOCK).take(np.array([0, *range(10, 900)]))
        assert pages.allocated_bytes() == before
