"""Records of sealed words, with a name of up to 63 bytes: what tables of regions, snapshots, pools and VMs are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import DamagedError, UsageError
from . import word

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .journal import Journal

_NAME_PAYLOAD = 7
NAME_WORDS = 9
NAME_BYTES = NAME_WORDS * _NAME_PAYLOAD


class Table(Protocol):
    """What a record needs of its table: which word each field is, and the place of each word."""

    journal: Journal
    label: str
    words_per_record: int

    @property
    def fields(self) -> Mapping[str, int]:
        """Which word of a record each field is (its first, for an array of words)."""

    def place(self, number: int, index: int) -> int:
        """Return the place of a word of a record."""


class Record:
    """One record. Fields are read and changed by their names in the layout; changes join the open transaction."""

    def __init__(self, table: Table, number: int, base: int) -> None:
        """Stand on record `number` of a table, whose first word has the index `base`."""
        self._journal = table.journal
        self._table = table
        self.number = number
        self.base = base

    def get(self, field: str) -> int:
        """Return a field's payload; raises DamagedError."""
        index = self._table.fields[field]
        stored = self._journal.words[self.base + index]
        return word.unseal(stored, self._place(index), f"{self._table.label} {self.number} field {field}", (self.base + index) * 8)

    def put(self, field: str, payload: int) -> None:
        """Change a field."""
        index = self._table.fields[field]
        self._journal.set_word(self.base + index, word.seal(payload, self._place(index)))

    def sealed(self, field: str, payload: int) -> tuple[int, int]:
        """Return (word index, word) that a field must have to hold a payload."""
        index = self._table.fields[field]
        return self.base + index, word.seal(payload, self._place(index))

    def check_spare(self) -> None:
        """Raise DamagedError unless the spare words are 0."""
        for index in range(self._table.fields["spare"], self._table.words_per_record):
            stored = self._journal.words[self.base + index]
            if stored:
                word.damaged(f"{self._table.label} {self.number} field spare", (self.base + index) * 8, stored, "is not 0")

    @property
    def id(self) -> int:
        """The record's id; raises DamagedError for a free record."""
        payload = self.get("id")
        if payload >> word.VALUE_BITS != word.RECORD:
            raise DamagedError(f"{self._table.label} {self.number} at 0x{self.base * 8:x}: id is of another kind")
        return payload & word.VALUE_MASK

    @id.setter
    def id(self, value: int) -> None:
        self.put("id", word.RECORD << word.VALUE_BITS | value)

    @property
    def name(self) -> str:
        """The record's name; raises DamagedError when it is not UTF-8."""
        first = self._table.fields["name"]
        raw = bytearray()
        for index in range(first, first + NAME_WORDS):
            stored = self._journal.words[self.base + index]
            label = f"{self._table.label} {self.number} field name"
            raw += word.unseal(stored, self._place(index), label, (self.base + index) * 8).to_bytes(_NAME_PAYLOAD, "little")
        try:
            return raw.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise DamagedError(f"{self._table.label} {self.number} at 0x{self.base * 8:x}: name is not UTF-8") from None

    @name.setter
    def name(self, name: str) -> None:
        first = self._table.fields["name"]
        for position, raw in enumerate(encode_name(name)):
            index = first + position
            self._journal.set_word(self.base + index, word.seal(raw, self._place(index)))

    def clear(self) -> None:
        """Make the record free."""
        nwords = self._table.words_per_record
        indexes = np.arange(self.base, self.base + nwords, dtype=np.int64)
        self._journal.set_words(indexes, np.zeros(nwords, np.uint64))

    def _place(self, index: int) -> int:
        return self._table.place(self.number, index)


def check_name(name: str) -> None:
    """Raise UsageError for a name that no region or snapshot may have."""
    nbytes = len(name.encode(errors="surrogatepass"))
    if not 0 < nbytes <= NAME_BYTES or any(c in "/@\0\n" or "\ud800" <= c <= "\udfff" for c in name) or name in (".", ".."):
        raise UsageError(f"name {name!r}: 1 to {NAME_BYTES} bytes of UTF-8, without '/', '@', newline or NUL, and not '.' or '..'")


def encode_name(name: str) -> list[int]:
    """Return a name as payloads of 7 bytes."""
    padded = name.encode(errors="surrogatepass")[:NAME_BYTES].ljust(NAME_BYTES, b"\0")
    return [int.from_bytes(padded[start : start + _NAME_PAYLOAD], "little") for start in range(0, NAME_BYTES, _NAME_PAYLOAD)]
