"""The density structure: how many slots of each storage block are taken, with the blocks grouped by that number (T4).

One doubly linked list per density, and a bit per list that is not empty: a block moves to another list in constant time, and the fullest
block with room is found without looking at any other. What to empty follows from the counts alone: with U slots taken, the
densest ceil(U / slots per block) blocks stay; their room is enough for the pages of all others, and no other choice moves fewer pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NONE = -1
# So many blocks are looked at in a step of the search for empty ones.
_BLOCKS_AT_ONCE = 1 << 14


@dataclass(frozen=True, slots=True)
class Choice:
    """Which storage blocks are to be emptied: `blocks` (int64, ascending), and how many pages that moves at least."""

    blocks: NDArray[np.int64]
    npages: int
    noptimal: int


class Density:
    """The taken slots of every storage block, 0 to `slots_per_block`."""

    def __init__(self, taken: NDArray[np.int32], slots_per_block: int) -> None:
        """Group blocks by their taken slots; the array becomes this object's own."""
        self.taken = taken
        self.slots_per_block = slots_per_block
        self.total = int(taken.sum())
        self._taken = taken.data
        # Neither empty nor full: bits 1 to slots_per_block - 1.
        self._with_room = (1 << slots_per_block) - 2
        # All blocks below this one have a taken slot.
        self._first_empty = 0
        # Blocks that are not offered for filling: they are being emptied.
        self.withdrawn = np.zeros(len(taken), bool)
        self._group()

    def change(self, block: int, difference: int) -> None:
        """Count slots of a block that were taken, or that became free."""
        taken = self._taken[block]
        self._taken[block] = taken + difference
        self.total += difference
        if taken + difference == 0 and block < self._first_empty:
            self._first_empty = block
        if not self.withdrawn[block]:
            self._unlink(block, taken)
            self._link(block, taken + difference)

    def change_many(self, blocks: NDArray[np.int64], difference: int) -> None:
        """Count `difference` (1 or -1) once for each element; repeats count."""
        for block, times in zip(*(each.tolist() for each in np.unique(blocks, return_counts=True)), strict=True):
            self.change(block, times * difference)

    def fullest_with_room(self) -> int:
        """Return the block with the most taken slots that is neither full nor empty nor withdrawn; -1 when there is none."""
        filled = self._filled & self._with_room
        return self._heads[filled.bit_length() - 1] if filled else _NONE

    def empty_blocks(self, most: int) -> NDArray[np.int64]:
        """Return up to `most` blocks without a taken slot, ascending: the lowest that are not withdrawn, others where those are too few.

        Begins at the lowest empty block, so that taking one block after the other does not look at all of them each time.
        """
        parts, found, behind = [np.empty(0, np.int64)], 0, self._first_empty
        while found < most and behind < len(self.taken):
            first, behind = behind, min(behind + _BLOCKS_AT_ONCE, len(self.taken))
            empty = np.flatnonzero(self.taken[first:behind] == 0) + first
            if first == self._first_empty:
                self._first_empty = int(empty[0]) if len(empty) else behind
            parts.append(empty[~self.withdrawn[empty]][: most - found])
            found += len(parts[-1])
        if found < most:
            parts.append(np.flatnonzero((self.taken == 0) & self.withdrawn)[: most - found])
        return np.sort(np.concatenate(parts))

    def choose_to_empty(self) -> Choice:
        """Choose the blocks to empty."""
        return choose_to_empty(self.taken, self.slots_per_block)

    def withdraw(self, blocks: NDArray[np.int64]) -> None:
        """Offer blocks for filling no more, until `restore`."""
        self.withdrawn[blocks] = True
        self._group()

    def restore(self) -> None:
        """Offer all withdrawn blocks again."""
        self.withdrawn[:] = False
        self._group()

    def _group(self) -> None:
        """Build the lists of all blocks that are not withdrawn, in linear time."""
        nblocks = len(self.taken)
        following, before = np.full(nblocks, _NONE, np.int32), np.full(nblocks, _NONE, np.int32)
        # 16-bit keys are sorted in linear time; of equals the lower block comes first, so that the file's end empties.
        order = np.argsort(self.taken.astype(np.uint16), kind="stable").astype(np.int32)
        order = order[~self.withdrawn[order]]
        ordered = self.taken[order]
        same = ordered[1:] == ordered[:-1]
        following[order[:-1][same]] = order[1:][same]
        before[order[1:][same]] = order[:-1][same]
        starts = np.flatnonzero(np.concatenate([[True], ~same])) if len(order) else np.empty(0, np.int64)
        self._heads = [_NONE] * (self.slots_per_block + 1)
        for density, block in zip(ordered[starts].tolist(), order[starts].tolist(), strict=True):
            self._heads[density] = block
        self._filled = sum(1 << density for density, block in enumerate(self._heads) if block != _NONE)
        self._next, self._before = following.data, before.data

    def _link(self, block: int, density: int) -> None:
        head = self._heads[density]
        self._next[block], self._before[block] = head, _NONE
        if head != _NONE:
            self._before[head] = block
        self._heads[density] = block
        self._filled |= 1 << density

    def _unlink(self, block: int, density: int) -> None:
        following, before = self._next[block], self._before[block]
        if following != _NONE:
            self._before[following] = before
        if before != _NONE:
            self._next[before] = following
        else:
            self._heads[density] = following
            if following == _NONE:
                self._filled &= ~(1 << density)


def choose_to_empty(taken: NDArray[np.int32], slots_per_block: int) -> Choice:
    """Choose the blocks to empty by the taken slots of each; O(blocks), whatever the frame table's size."""
    counts = np.bincount(taken, minlength=slots_per_block + 1)
    total = int((counts * np.arange(slots_per_block + 1)).sum())
    noptimal = -(-total // slots_per_block)
    if not noptimal:
        return Choice(np.empty(0, np.int64), 0, 0)
    # From the fullest down: the first density of whose blocks not all are needed.
    kept_down_to = np.cumsum(counts[::-1])[::-1]
    threshold = int(np.flatnonzero(kept_down_to >= noptimal)[-1])
    stay = noptimal - int(kept_down_to[threshold + 1] if threshold < slots_per_block else 0)
    emptying = (taken > 0) & (taken < threshold)
    emptying[np.flatnonzero(taken == threshold)[stay:]] = True
    blocks = np.flatnonzero(emptying)
    return Choice(blocks, int(taken[blocks].sum()), noptimal)
