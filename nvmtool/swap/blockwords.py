"""The words of a reservation's blocks: which are held, which are lent to which storage block of whom, which are on their way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError
from ..media import word
from . import layout as lay

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from ..media.journal import Journal

    Ints = NDArray[np.int64]

_LENDER_SHIFT = 40
_STORAGE_MASK = (1 << _LENDER_SHIFT) - 1
_HELD_VALUE = 1
_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Fates:
    """What the words of some blocks say: kind (u1), number of the lender and its storage block (i8; both 0 where held)."""

    kinds: NDArray[np.uint8]
    lenders: Ints
    storage: Ints

    def of(self, number: int) -> NDArray[np.bool_]:
        """Tell of each block whether this lender has it, or had it and it is on its way."""
        found: NDArray[np.bool_] = (self.kinds != word.HELD) & (self.lenders == number)
        return found


class BlockWords:
    """The words of an open reservation. Changes belong to the open transaction."""

    def __init__(self, journal: Journal, path: Path, block_start: int) -> None:
        """Stand on the words that begin at block `block_start` of the file."""
        self._journal = journal
        self._path = path
        self._start = block_start * lay.WORDS_PER_PAGE

    def get(self, blocks: Ints) -> Fates:
        """Return what the words of some blocks say; raises DamagedError."""
        at = self._start + blocks
        words = self._journal.array[at]
        label = f"{self._path}: word of a reserved block"
        offsets = (at * 8).astype(np.uint64)
        payloads = word.unseal_array(words, word.places_array(lay.RESERVED_PLACE, 0, blocks), label, offsets)
        kinds = (payloads >> np.uint64(word.VALUE_BITS)).astype(np.uint8)
        values = (payloads & np.uint64(word.VALUE_MASK)).astype(np.int64)
        held = kinds == word.HELD
        lenders, storage = values >> _LENDER_SHIFT, (values & _STORAGE_MASK) - 1
        sound = (kinds == word.LENT) | (kinds == word.MOVING)
        sound &= (lenders > 0) & (lenders <= lay.MAX_LENDERS) & (storage >= 0)
        sound |= held & (values == _HELD_VALUE)
        if not sound.all():
            first = int(np.flatnonzero(~sound)[0])
            word.damaged(label, int(at[first]) * 8, int(words[first]), "is of no kind that a block can have, or out of range")
        lenders[held] = storage[held] = 0
        return Fates(kinds, lenders, storage)

    def get_all(self, nblocks: int) -> Fates:
        """Return what all words say; raises DamagedError."""
        parts = [self.get(np.arange(start, min(start + _AT_ONCE, nblocks))) for start in range(0, nblocks, _AT_ONCE)]
        return Fates(
            np.concatenate([part.kinds for part in parts]),
            np.concatenate([part.lenders for part in parts]),
            np.concatenate([part.storage for part in parts]),
        )

    def find_held(self, count: int, nblocks: int, start: int) -> Ints:
        """Return the numbers of held blocks, ascending from `start` on and then from 0; raises DamagedError for fewer than `count`."""
        found: list[Ints] = [np.empty(0, np.int64)]
        missing = count
        for first, end in ((start, nblocks), (0, start)):
            while missing and first < end:
                stop = min(first + _AT_ONCE, end)
                kinds = self._journal.array[self._start + first : self._start + stop] >> np.uint64(word.VALUE_BITS + 8)
                held = np.flatnonzero(kinds == word.HELD)[:missing] + first
                found.append(held)
                missing -= len(held)
                first = stop
        if missing:
            raise DamagedError(f"{self._path}: {missing} blocks fewer are held than the promises need; see what check finds")
        blocks = np.concatenate(found)
        if (self.get(blocks).kinds != word.HELD).any():
            raise DamagedError(f"{self._path}: words of reserved blocks are damaged; see what check finds")
        return blocks

    def put_held(self, blocks: Ints) -> None:
        """Say that blocks are the reservation's own."""
        self._put(blocks, np.full(len(blocks), word.HELD << word.VALUE_BITS | _HELD_VALUE, np.uint64))

    def put(self, blocks: Ints, kind: int, lenders: Ints | int, storage: Ints) -> None:
        """Say that blocks are lent, or moving, to or from storage blocks."""
        values = (np.broadcast_to(lenders, storage.shape).astype(np.uint64) << np.uint64(_LENDER_SHIFT)) | (storage + 1).astype(np.uint64)
        self._put(blocks, values | np.uint64(kind << word.VALUE_BITS))

    def _put(self, blocks: Ints, payloads: word.Words) -> None:
        self._journal.set_words(self._start + blocks, word.seal_array(payloads, word.places_array(lay.RESERVED_PLACE, 0, blocks)))


def held_words(first: int, count: int) -> word.Words:
    """Return the words of a run of blocks that were never lent, for words that no transaction names yet."""
    blocks = np.arange(first, first + count)
    payloads = np.full(count, word.HELD << word.VALUE_BITS | _HELD_VALUE, np.uint64)
    return word.seal_array(payloads, word.places_array(lay.RESERVED_PLACE, 0, blocks))
