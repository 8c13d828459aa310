"""The root block's plain numbers: sealed words at a fixed place (docs/format.md, section 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..media import word
from . import layout as lay

if TYPE_CHECKING:
    from ..media.journal import Journal

NUMBERS = ("used_slots", "lent_blocks", "nregions", "mass_tag", "mass_tag_before")


class Root:
    """The numbers of an open journal's root block."""

    def __init__(self, journal: Journal) -> None:
        """Stand on the root block of an open journal."""
        self._journal = journal

    def get(self, name: str) -> int:
        """Return a number; raises DamagedError."""
        at, where = _locate(name)
        return word.unseal(self._journal.words[at], where, f"root word {name}", at * 8)

    def put(self, name: str, value: int) -> None:
        """Change a number in the open transaction."""
        at, where = _locate(name)
        self._journal.set_word(at, word.seal(value, where))


def new_root_block(mass_tag: int) -> bytes:
    """Return the root block of an empty device whose mass store shows a tag."""
    block = bytearray(lay.BLOCK_SIZE)
    for name in NUMBERS:
        index = lay.field_index(lay.ROOT, name)
        value = mass_tag if name.startswith("mass_tag") else 0
        block[index * 8 : index * 8 + 8] = word.seal(value, word.place(lay.ROOT_PLACE, 0, index)).to_bytes(8, "little")
    return bytes(block)


def _locate(name: str) -> tuple[int, int]:
    """Return (word index in the image, place)."""
    index = lay.field_index(lay.ROOT, name)
    return lay.ROOT_BLOCK * lay.WORDS_PER_BLOCK + index, word.place(lay.ROOT_PLACE, 0, index)
