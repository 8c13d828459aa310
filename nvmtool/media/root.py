"""The root block's plain numbers: sealed words at a fixed place, block 2 of every format (docs/format.md, section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from . import word
from .store import PAGE

if TYPE_CHECKING:
    import numpy as np

    from .journal import Journal

ROOT_BLOCK = 2


class Root:
    """The numbers of an open journal's root block."""

    def __init__(self, journal: Journal, record: np.dtype[np.void], structure: int) -> None:
        """Stand on the root block of an open journal; `record` names its words, `structure` is their place."""
        self._journal = journal
        self._record = record
        self._structure = structure

    def get(self, name: str) -> int:
        """Return a number; raises DamagedError."""
        at, where = self._locate(name)
        return word.unseal(self._journal.words[at], where, f"root word {name}", at * 8)

    def find(self, name: str) -> int | None:
        """Return a number that may be absent, None where it is; raises DamagedError."""
        at, _ = self._locate(name)
        return self.get(name) if self._journal.words[at] else None

    def put(self, name: str, value: int) -> None:
        """Change a number in the open transaction."""
        self._journal.set_word(*self.sealed(name, value))

    def clear(self, name: str) -> None:
        """Make a number absent in the open transaction."""
        at, _ = self._locate(name)
        self._journal.set_word(at, 0)

    def sealed(self, name: str, value: int) -> tuple[int, int]:
        """Return (word index in the image, word) of a number with this value."""
        at, where = self._locate(name)
        return at, word.seal(value, where)

    def _locate(self, name: str) -> tuple[int, int]:
        """Return (word index in the image, place)."""
        index = _word_of(self._record, name)
        return ROOT_BLOCK * (PAGE // 8) + index, word.place(self._structure, 0, index)


def new_root_block(record: np.dtype[np.void], structure: int, numbers: Mapping[str, int]) -> bytes:
    """Return a root block that holds some numbers; its other words are absent."""
    block = bytearray(PAGE)
    for name, value in numbers.items():
        index = _word_of(record, name)
        block[index * 8 : index * 8 + 8] = word.seal(value, word.place(structure, 0, index)).to_bytes(8, "little")
    return bytes(block)


def _word_of(record: np.dtype[np.void], name: str) -> int:
    fields = record.fields
    assert fields is not None
    return int(fields[name][1]) // 8
