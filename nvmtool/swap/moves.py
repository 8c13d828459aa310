"""Moving pages together, on the side of the process that has the swap file open for writing (T4).

The copy is somebody else's: this plans batches of moves, and commits those whose frames did not change meanwhile. A frame that was
swapped in between plan and commit is not moved, even where its page has come back to the very same slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .density import Choice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .swapfile import SwapFile

    Ints = NDArray[np.int64]

_FRAMES_AT_ONCE = 1 << 16
# So many frames are looked at for one plan: a fault that waits for it waits for milliseconds at most.
_FRAMES_PER_PLAN = 1 << 19


@dataclass(frozen=True, slots=True)
class Status:
    """Where a swap file stands: storage blocks that have storage, how few would do, and the pages to move until then."""

    blocks_allocated: int
    blocks_optimal: int
    pages_to_move: int


@dataclass(frozen=True, slots=True)
class Moves:
    """Pages to copy: from slot `sources[i]` to slot `targets[i]`, int64 arrays of equal length. `last`: the pass is over with these."""

    sources: Ints
    targets: Ints
    last: bool


_NO_MOVES = Moves(np.empty(0, np.int64), np.empty(0, np.int64), True)


class Mover:
    """One defragmentation of an open swap file, from `begin` to `end`; at most one at a time."""

    def __init__(self, swap: SwapFile) -> None:
        """Stand on a swap file that is open for writing."""
        self._swap = swap
        self._cursor = 0
        self._emptying = np.zeros(swap.nblocks, bool)
        self._frames = np.empty(0, np.int64)
        self._moves = _NO_MOVES
        self._positions: dict[int, int] = {}
        self._stayed = np.empty(0, bool)

    def begin(self) -> Status:
        """Choose which blocks to empty, and begin a pass over the page-frame space."""
        self._swap.commit()
        choice = self._swap.density.choose_to_empty()
        self._emptying[:] = False
        self._emptying[choice.blocks] = True
        self._swap.density.restore()
        self._swap.density.withdraw(choice.blocks)
        self._swap.on_leave = self._on_leave
        self._cursor = 0
        return _status(self._swap, choice)

    def plan(self, most: int) -> Moves:
        """Plan up to `most` moves in the order of the frames; the last ones when the pass is over or denser blocks have no room.

        Drops an earlier plan that was not committed.
        """
        self.abort()
        swap, end = self._swap, min(self._cursor + _FRAMES_PER_PLAN, self._swap.nframes)
        parts, found = [np.empty(0, np.int64)], 0
        while found < most and self._cursor < end:
            behind = min(self._cursor + _FRAMES_AT_ONCE, end)
            parts.append(swap.frames_in_blocks(self._cursor, behind, self._emptying)[: most - found])
            found += len(parts[-1])
            # What did not fit is looked at again by the next plan.
            self._cursor = behind if found < most else int(parts[-1][-1]) + 1
        frames = np.concatenate(parts)
        targets = swap.slots.take(found)
        if no_room := len(targets) < found:
            self._cursor = int(frames[len(targets)])
        self._frames = frames[: len(targets)]
        self._moves = Moves(swap.states(self._frames), targets, no_room or self._cursor >= swap.nframes)
        self._positions = {frame: position for position, frame in enumerate(self._frames.tolist())}
        self._stayed = np.ones(len(targets), bool)
        return self._moves

    @property
    def holds(self) -> bool:
        """Whether slots are held for copies that are on their way."""
        return len(self._moves.targets) > 0

    def commit(self) -> int:
        """Let the frames of the last plan that did not change name their copies, which are durable; return how many.

        Storage blocks that are empty then go back. Raises as `SwapFile.commit` does.
        """
        frames, moves, stayed = self._frames, self._moves, self._stayed
        self._forget_plan()
        self._swap.move(frames[stayed], moves.sources[stayed], moves.targets[stayed])
        self._swap.slots.put_back(moves.targets[~stayed])
        self._swap.commit()
        return int(stayed.sum())

    def abort(self) -> None:
        """Drop the last plan; nobody copies for it any more."""
        targets = self._moves.targets
        self._forget_plan()
        self._swap.slots.put_back(targets)

    def end(self) -> Status:
        """End the defragmentation; its blocks may be filled again."""
        self.abort()
        self._swap.on_leave = None
        self._swap.density.restore()
        self._swap.commit()
        return _status(self._swap, self._swap.density.choose_to_empty())

    def _on_leave(self, frame: int) -> None:
        position = self._positions.pop(frame, None)
        if position is not None:
            self._stayed[position] = False

    def _forget_plan(self) -> None:
        self._frames, self._moves, self._stayed = _NO_MOVES.sources, _NO_MOVES, np.empty(0, bool)
        self._positions = {}


def _status(swap: SwapFile, choice: Choice) -> Status:
    return Status(swap.blocks_allocated, choice.noptimal, choice.npages)
