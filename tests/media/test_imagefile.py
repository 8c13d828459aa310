"""A file whose writers take turns: one at a time, each with what the others did in view."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvmtool.errors import BusyError
from nvmtool.media.imagefile import ImageFile, open_file, take_lock
from nvmtool.media.journal import Journal
from nvmtool.media.store import FileStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 128 * 4096
LOG = (3, 32)
WORD = 100 * 512


def _open(path: Path) -> ImageFile:
    fd = open_file(path, writable=True)
    take_lock(fd, path, writable=True)
    return ImageFile(FileStore(path, fd, SIZE, writable=True), *LOG, writable=True, fd=fd)


@pytest.fixture
def turns(tmp_path: Path) -> Iterator[tuple[ImageFile, ImageFile]]:
    """Two open files of one path, as two processes have them; nobody's turn."""
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    store = FileStore(path, open_file(path, writable=True), SIZE, writable=True)
    Journal.format(store, LOG[0])
    store.fence()
    one = _open(path)
    one.end_turn()
    other = _open(path)
    other.end_turn()
    yield one, other
    other.close()
    one.close()


def test_a_turn_sees_what_the_others_committed(turns: tuple[ImageFile, ImageFile]) -> None:
    one, other = turns
    for value in range(1, 20):
        writer, reader = (one, other) if value % 2 else (other, one)
        with writer.turn(0), writer.transaction():
            writer.journal.set_word(WORD, value)
        with reader.turn(0):
            assert reader.journal.words[WORD] == value


def test_nobody_else_writes_during_a_turn(turns: tuple[ImageFile, ImageFile]) -> None:
    one, other = turns
    with one.turn(0), pytest.raises(BusyError, match="in use by"), other.turn(0):
        pass
    with other.turn(0):
        pass


def test_a_turn_that_fails_ends(turns: tuple[ImageFile, ImageFile]) -> None:
    one, other = turns
    with pytest.raises(RuntimeError), one.turn(0):
        raise RuntimeError
    with other.turn(0):
        pass
