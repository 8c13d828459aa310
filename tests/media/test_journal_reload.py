"""Several processes write one file in turns: each sees what the others committed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nvmtool.errors import DamagedError
from nvmtool.media.journal import Journal
from nvmtool.media.store import FileStore

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 128 * 4096
LOG = (3, 32)
WORD = 100 * 512


def _store(path: Path) -> FileStore:
    return FileStore(path, os.open(path, os.O_RDWR), SIZE, writable=True)


@pytest.fixture
def turns(tmp_path: Path) -> tuple[Journal, Journal]:
    """Two journals over one file, as two processes have them."""
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    store = _store(path)
    Journal.format(store, LOG[0])
    store.fence()
    return Journal(store, *LOG, writable=True), Journal(_store(path), *LOG, writable=True)


def _put(journal: Journal, at: int, value: int) -> None:
    journal.reload()
    journal.set_word(at, value)
    journal.commit()


def test_each_sees_what_the_other_committed(turns: tuple[Journal, Journal]) -> None:
    one, other = turns
    for value in range(1, 200):
        writer, reader = (one, other) if value % 3 else (other, one)
        _put(writer, WORD + value, value)
        reader.reload()
        assert reader.words[WORD + value] == value
        assert reader.words[WORD + value - 1] == value - 1
    assert one.generation == other.generation > 1


def test_a_checkpoint_of_the_other_is_seen(turns: tuple[Journal, Journal]) -> None:
    one, other = turns
    _put(one, WORD, 1)
    _put(other, WORD, 2)
    _put(other, WORD + 600, 3)
    other.checkpoint()
    one.reload()
    assert (one.words[WORD], one.words[WORD + 600]) == (2, 3)
    assert (one.generation, one.sequence) == (other.generation, 0)
    _put(one, WORD, 4)
    other.reload()
    assert other.words[WORD] == 4


def test_what_was_rolled_back_does_not_hide_what_the_other_brings_home(turns: tuple[Journal, Journal]) -> None:
    one, other = turns
    one.set_word(WORD, 7)
    one.rollback()
    _put(other, WORD + 1, 8)
    other.checkpoint()
    one.reload()
    assert one.words[WORD + 1] == 8


def test_a_rollback_keeps_what_was_committed_in_the_same_page(turns: tuple[Journal, Journal]) -> None:
    one, other = turns
    _put(one, WORD, 5)
    one.set_word(WORD + 1, 6)
    one.rollback()
    assert (one.words[WORD], one.words[WORD + 1]) == (5, 0)
    other.reload()
    assert other.words[WORD] == 5


def test_a_record_that_another_left_torn_has_not_happened(turns: tuple[Journal, Journal]) -> None:
    one, other = turns
    _put(one, WORD, 5)
    _put(one, WORD, 6)
    second = (LOG[0] + 2) * 4096
    one.store.store_bytes(second + 48, [b"torn"])
    other.reload()
    assert other.words[WORD] == 5
    _put(other, WORD + 1, 9)
    fresh = Journal(_store(other.store.path), *LOG, writable=False)
    assert (fresh.words[WORD], fresh.words[WORD + 1]) == (5, 9)


def test_a_record_that_another_may_not_have_flushed_is_flushed_before_the_next(
    turns: tuple[Journal, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = turns
    _put(one, WORD, 5)
    flushed = []
    original = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (flushed.append(fd), original(fd)))
    other.reload()
    other.set_word(WORD, 6)
    other.commit()
    assert flushed
    flushed.clear()
    other.reload()
    other.set_word(WORD, 7)
    other.commit()
    assert not flushed


def test_damage_is_named(turns: tuple[Journal, Journal]) -> None:
    one, other = turns
    for value in range(3):
        _put(one, WORD, value + 1)
    one.store.store_bytes((LOG[0] + 1) * 4096 + 48, [b"x"])
    with pytest.raises(DamagedError, match="log record 0"):
        other.reload()
