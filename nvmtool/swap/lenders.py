"""A reservation's table of lenders: the swap files that may hold its blocks, each with its promise and where it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, NoSpaceError, UsageError
from ..media import word
from . import layout as lay

if TYPE_CHECKING:
    from ..media.journal import Journal

_RECORD_WORDS = lay.LENDER_RECORD.itemsize // 8
_BYTES_PER_WORD = 7
_UUID_WORDS = 3
_PATH_BYTES = lay.PATH_WORDS * _BYTES_PER_WORD


@dataclass(frozen=True, slots=True)
class Lender:
    """A swap file that may hold blocks: its number (from 1), its promise in blocks, its UUID, and its path as it is stored."""

    number: int
    promise: int
    uuid: bytes
    stored_path: str


class LenderTable:
    """The records of an open reservation. Changes belong to the open transaction."""

    def __init__(self, journal: Journal, path: Path, lender_start: int) -> None:
        """Stand on the table that begins at block `lender_start` of the reservation at `path`."""
        self._journal = journal
        self._path = path
        self._start = lender_start * lay.WORDS_PER_PAGE

    def __iter__(self) -> Iterator[Lender]:
        """Yield the lenders in the order of their numbers; raises DamagedError."""
        for number in self.numbers():
            yield self.get(number)

    def numbers(self) -> list[int]:
        """Return the numbers in use."""
        return (np.flatnonzero(self._first_words()) + 1).tolist()

    def get(self, number: int) -> Lender:
        """Return a lender by its number, which must be in use; raises DamagedError."""
        start = self._start + (number - 1) * _RECORD_WORDS
        where = self._places(number)
        promise = word.open_pointer(
            self._journal.words[start],
            word.RECORD,
            where[0],
            lay.MAX_RESERVED_BLOCKS + 2,
            f"{self._path}: promise of lender {number}",
            start * 8,
        )
        payloads = [
            word.unseal(
                self._journal.words[start + index], where[index], f"{self._path}: word {index} of lender {number}", (start + index) * 8
            )
            for index in range(1, _RECORD_WORDS)
        ]
        uuid = _unpack(payloads[:_UUID_WORDS])[:16]
        length, path = payloads[_UUID_WORDS], _unpack(payloads[_UUID_WORDS + 1 :])
        if promise == 0 or length > _PATH_BYTES or any(path[length:]) or 0 in path[:length]:
            raise DamagedError(f"{self._path}: lender {number} at 0x{start * 8:x}: promise or path is out of range")
        try:
            return Lender(number, promise - 1, uuid, path[:length].decode())
        except UnicodeDecodeError:
            raise DamagedError(f"{self._path}: lender {number} at 0x{start * 8:x}: path is not UTF-8") from None

    def find(self, uuid: bytes) -> Lender | None:
        """Return the lender with this UUID, or None."""
        return next((lender for lender in self if lender.uuid == uuid), None)

    def location(self, lender: Lender) -> Path:
        """Return where the lender's swap file was when it was last opened."""
        return self._path.resolve().parent / lender.stored_path

    def stored_path(self, swap_path: Path) -> str:
        """Return a path as a record keeps it: relative when it is in the reservation's tree, so that they can move together.

        Raises UsageError for one that does not fit or is not UTF-8.
        """
        folder, target = self._path.resolve().parent, swap_path.resolve()
        stored = str(target.relative_to(folder)) if target.is_relative_to(folder) else str(target)
        try:
            if len(stored.encode()) > _PATH_BYTES:
                raise UsageError(f"{swap_path}: path is longer than the {_PATH_BYTES} bytes that {self._path} has for it")
        except UnicodeEncodeError:
            raise UsageError(f"{os.fsencode(swap_path)!r}: path is not UTF-8") from None
        return stored

    def promised(self) -> int:
        """Return the sum of all promises, in blocks; raises DamagedError."""
        return sum(lender.promise for lender in self)

    def add(self, promise: int, uuid: bytes, stored_path: str) -> Lender:
        """Enter a swap file; raises NoSpaceError when the table is full."""
        free = np.flatnonzero(self._first_words() == 0)
        if not len(free):
            raise NoSpaceError(f"{self._path}: has {lay.MAX_LENDERS} swap files already, no more fit its table")
        lender = Lender(int(free[0]) + 1, promise, uuid, stored_path)
        self.store(lender)
        return lender

    def store(self, lender: Lender) -> None:
        """Change the record of a lender."""
        path = lender.stored_path.encode()
        payloads = [
            word.RECORD << word.VALUE_BITS | lender.promise + 1,
            *_pack(lender.uuid, _UUID_WORDS),
            len(path),
            *_pack(path, lay.PATH_WORDS),
        ]
        start = self._start + (lender.number - 1) * _RECORD_WORDS
        for index, (payload, where) in enumerate(zip(payloads, self._places(lender.number), strict=True)):
            self._journal.set_word(start + index, word.seal(payload, where))

    def remove(self, number: int) -> None:
        """Clear the record of a lender."""
        start = self._start + (number - 1) * _RECORD_WORDS
        self._journal.set_words(np.arange(start, start + _RECORD_WORDS), np.zeros(_RECORD_WORDS, np.uint64))

    def _first_words(self) -> word.Words:
        return self._journal.array[self._start : self._start + lay.MAX_LENDERS * _RECORD_WORDS : _RECORD_WORDS]

    def _places(self, number: int) -> list[int]:
        first = (number - 1) * _RECORD_WORDS
        return [word.place(lay.LENDER_PLACE, 0, first + index) for index in range(_RECORD_WORDS)]


def _pack(data: bytes, nwords: int) -> list[int]:
    padded = data.ljust(nwords * _BYTES_PER_WORD, b"\0")
    return [int.from_bytes(padded[start : start + _BYTES_PER_WORD], "little") for start in range(0, len(padded), _BYTES_PER_WORD)]


def _unpack(payloads: list[int]) -> bytes:
    return b"".join(payload.to_bytes(_BYTES_PER_WORD, "little") for payload in payloads)
