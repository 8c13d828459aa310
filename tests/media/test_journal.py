"""The redo log: whole transactions or none, at every cut."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nvmtool.errors import DamagedError, StorageError
from nvmtool.media.journal import Journal
from nvmtool.media.store import FileStore

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 128 * 4096
LOG = (3, 32)
WORD = 100 * 512


def _new(path: Path) -> None:
    path.write_bytes(bytes(SIZE))
    store = _store(path)
    Journal.format(store, LOG[0])
    store.fence()


def _store(path: Path, *, writable: bool = True) -> FileStore:
    return FileStore(path, os.open(path, os.O_RDWR if writable else os.O_RDONLY), SIZE, writable=writable)


def _open(path: Path, *, writable: bool = True) -> Journal:
    return Journal(_store(path, writable=writable), *LOG, writable=writable)


def _with_three_records(path: Path) -> list[int]:
    """Write an image whose log holds three records; return their offsets."""
    _new(path)
    journal = _open(path)
    for value in range(3):
        journal.set_word(WORD, value + 1)
        journal.commit()
    return [(LOG[0] + 1 + number) * 4096 for number in range(3)]


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("inside", [36, 40, 48])
def test_a_damaged_record_before_a_whole_one_is_an_error(tmp_path: Path, inside: int) -> None:
    path = tmp_path / "image"
    _flip(path, _with_three_records(path)[1] + inside)
    with pytest.raises(DamagedError, match="log record 1"):
        _open(path, writable=False)
    with pytest.raises(DamagedError, match="log record 1"):
        _open(path)


@pytest.mark.parametrize("inside", [0, 8, 16])
def test_a_record_whose_first_fields_are_damaged_is_found_by_who_looks(tmp_path: Path, inside: int) -> None:
    path = tmp_path / "image"
    _flip(path, _with_three_records(path)[1] + inside)
    journal = _open(path, writable=False)
    with pytest.raises(DamagedError, match="log record 1"):
        journal.require_no_later_record()


def test_a_torn_last_record_has_not_happened(tmp_path: Path) -> None:
    path = tmp_path / "image"
    _flip(path, _with_three_records(path)[2] + 40)
    journal = _open(path, writable=False)
    assert journal.words[WORD] == 2
    journal.require_no_later_record()


def test_committed_words_are_there_after_a_crash_and_uncommitted_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "image"
    _new(path)
    journal = _open(path)
    journal.set_word(WORD, 7)
    journal.set_words(np.array([WORD + 1, WORD + 9]), np.array([8, 9], np.uint64))
    journal.commit()
    journal.set_word(WORD, 99)
    # No close: what a killed process leaves.
    reader = _open(path, writable=False)
    assert [reader.words[WORD + i] for i in (0, 1, 9)] == [7, 8, 9]
    assert _open(path).words[WORD] == 7
    assert _open(path).sequence == 0


def test_a_record_torn_at_any_word_has_not_happened(tmp_path: Path) -> None:
    path = tmp_path / "image"
    _new(path)
    journal = _open(path)
    journal.set_word(WORD, 7)
    journal.commit()
    journal.set_words(np.arange(WORD, WORD + 20), np.arange(20, dtype=np.uint64) + 1000)
    journal.add_data(120, b"d" * 4096)
    journal.commit()
    whole = path.read_bytes()
    start = (LOG[0] + 2) * 4096
    length = 40 + 20 * 16 + 8 + 4096
    for at in range(start, start + length, 8):
        torn = bytearray(whole)
        if torn[at : at + 8] == bytes(8):
            continue
        torn[at : at + 8] = bytes(8)
        path.write_bytes(torn)
        reader = _open(path, writable=False)
        assert reader.words[WORD] == 7, at
        assert reader.sequence == 1


def test_replaying_twice_is_replaying_once(tmp_path: Path) -> None:
    path = tmp_path / "image"
    _new(path)
    journal = _open(path)
    for value in range(1, 10):
        journal.set_word(WORD + value, value)
        journal.set_word(WORD, value)
        journal.commit()
    cut_off = path.read_bytes()
    _open(path)
    home = path.read_bytes()
    # The checkpoint cut off before it voids the log: everything home, and the log still full.
    half = bytearray(home)
    half[LOG[0] * 4096 : (LOG[0] + 1) * 4096] = cut_off[LOG[0] * 4096 : (LOG[0] + 1) * 4096]
    path.write_bytes(half)
    _open(path)
    assert path.read_bytes() == home


def test_rollback_restores_every_word_in_whatever_order_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "image"
    _new(path)
    journal = _open(path)
    journal.set_word(WORD, 5)
    journal.commit()
    before = journal.array.copy()
    journal.set_word(WORD, 6)
    journal.set_words(np.array([WORD, WORD + 1]), np.array([7, 8], np.uint64))
    journal.set_word(WORD, 9)
    journal.add_fresh(110, b"x" * 4096)
    journal.rollback()
    assert (journal.array == before).all()


def test_after_a_failed_flush_the_handle_stays_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    _new(path)
    store = _store(path)
    store.store_word(WORD * 8, 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", lambda fd: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(StorageError, match="flush failed"):
            store.fence()
    with pytest.raises(StorageError, match="earlier flush failed"):
        store.fence()


def test_written_words_are_those_on_the_medium_and_in_the_log_each_once(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(SIZE)
        os.posix_fallocate(file.fileno(), 0, SIZE)  # storage that was never written holds no words
    store = _store(path)
    Journal.format(store, LOG[0])
    store.fence()
    journal = _open(path)
    home = [50 * 512 + 3, 51 * 512, 90 * 512 + 511]
    for index in home:
        journal.set_word(index, 1)
    journal.commit()
    journal.checkpoint()
    logged = [51 * 512 + 1, 70 * 512]
    for index in logged:
        journal.set_word(index, 2)
    journal.commit()
    reader = _open(path, writable=False)
    first, count = 40 * 512 + 7, 60 * 512
    stretches = list(reader.iter_written_words(first, count))
    found = [index for start, length in stretches for index in range(start, start + length)]
    assert len(found) == len(set(found))
    assert {*home, *logged} <= set(found)
    assert min(found) >= first
    assert max(found) < first + count
    assert all(reader.words[index] == 0 for index in set(range(first, first + count)) - set(found))


def test_written_words_of_a_whole_range_are_all_where_the_file_was_written(tmp_path: Path) -> None:
    path = tmp_path / "image"
    _new(path)
    assert sum(count for _, count in _open(path).iter_written_words(40 * 512, 512)) == 512
