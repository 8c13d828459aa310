"""Which slots of a swap file are free, in memory only: it follows from the frame words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .density import Density

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]


class Slots:
    """The slots that are taken: named by a frame, held for a page on its way, or freed by a change that is not durable yet."""

    def __init__(self, taken: NDArray[np.bool_], slots_per_block: int) -> None:
        """Start with the slots that frames name (bool per slot, a byte each); the array becomes this object's own."""
        self._taken = taken.reshape(-1, slots_per_block)
        self._flat = taken
        self._per_block = slots_per_block
        self.density = Density(self._taken.sum(axis=1).astype(np.int32), slots_per_block)
        # Slots that no frame names in the open transaction; free once it is durable.
        self.freed: list[int] = []

    def take(self, most: int) -> Ints:
        """Take up to `most` free slots in the fullest blocks that are neither full nor empty; block by block, ascending in each."""
        parts: list[Ints] = []
        while most > 0 and (block := self.density.fullest_with_room()) >= 0:
            parts.append(self._take_in_block(block, most))
            most -= len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def take_in(self, blocks: Ints, count: int) -> Ints:
        """Take `count` slots of empty blocks, in order."""
        slots: Ints = (blocks[:, None] * self._per_block + np.arange(self._per_block)).reshape(-1)[:count]
        self._flat[slots] = True
        for block in blocks.tolist():
            self.density.change(block, min(self._per_block, count))
            count -= min(self._per_block, count)
        return slots

    def put_back(self, slots: Ints) -> None:
        """Let slots be free again that nothing durable names."""
        self._flat[slots] = False
        self.density.change_many(slots // self._per_block, -1)

    def release(self) -> None:
        """Let the freed slots be free: what freed them is durable."""
        if self.freed:
            self.put_back(np.array(self.freed, np.int64))
            self.freed.clear()

    def _take_in_block(self, block: int, most: int) -> Ints:
        row = self._taken[block]
        slots: Ints = np.flatnonzero(~row)[:most]
        row[slots] = True
        self.density.change(block, len(slots))
        return slots + block * self._per_block
