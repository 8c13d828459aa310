"""The operations of a swap file that are cut off, each beside what the model says of it.

`run` ends with a commit, but for lazy ones. Frames of the base: 0 to 39 were swapped out, of which 2, 3, 5 and 16 to 25 came back;
40 to 43 were touched; the others never were. Storage blocks 0 (13 pages), 1 (6 pages) and 2 (8 pages) have storage; a
defragmentation empties block 1.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.errors import NoSpaceError
from nvmtool.swap.defrag import copy_pages
from nvmtool.swap.moves import Mover
from nvmtool.swap.swapfile import IN_MEMORY

from .model import PAGE, Model, page_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nvmtool.swap.moves import Moves
    from nvmtool.swap.swapfile import SwapFile

    from .media import MemoryPages

    Steps = Callable[[Model], list[Model]]

_ROOM = [2, 3, 5, *range(16, 26), *range(40, 64)]
_OF_SPARSE_BLOCK = range(26, 32)


@dataclass(frozen=True)
class Operation:
    """One step of a workload; `steps` gives the models that may be seen while it runs, the last one when it has returned."""

    name: str
    run: Callable[[SwapFile], object]
    steps: Steps
    # Ends without a commit: what it did is durable with the next one.
    lazy: bool = False


def frames_of(frames: Iterable[int]) -> np.ndarray:
    """Return frames as the library takes them."""
    return np.array(list(frames), np.int64)


def out(swap: SwapFile, frames: Iterable[int], version: int = 0) -> None:
    """Swap frames out."""
    swap.swap_out(frames_of(frames), [memoryview(page_of(frame, version)) for frame in frames])


def into_memory(swap: SwapFile, frames: Iterable[int]) -> None:
    """Swap frames in."""
    for frame in frames:
        swap.swap_in(frame, memoryview(bytearray(PAGE)))


def _out(model: Model, frames: Iterable[int], version: int = 0) -> Model:
    return {**model, **{frame: page_of(frame, version) for frame in frames}}


def _in(model: Model, frames: Iterable[int]) -> Model:
    return {**model, **dict.fromkeys(frames, IN_MEMORY)}


def _swap_out(name: str, frames: Iterable[int], version: int = 1) -> Operation:
    return Operation(name, lambda swap: out(swap, frames, version), lambda model: [_out(model, frames, version)])


def _swap_in(name: str, frames: Iterable[int]) -> Operation:
    def run(swap: SwapFile) -> None:
        into_memory(swap, frames)
        swap.commit()

    return Operation(name, run, lambda model: [_in(model, frames)])


def _forget(name: str, frames: Iterable[int]) -> Operation:
    def run(swap: SwapFile) -> None:
        swap.forget(frames_of(frames))
        swap.commit()

    return Operation(name, run, lambda model: [_in(model, frames)])


def _touch(swap: SwapFile) -> None:
    swap.touch(50)
    swap.touch(51)
    swap.commit()


def _again(swap: SwapFile) -> None:
    """Swap a page in and another version of it out, without a commit between: its old slot must not be written yet."""
    into_memory(swap, [0])
    out(swap, [0], 2)


def _again_into_new_block(swap: SwapFile) -> None:
    """Swap a page in, and so many out that they need a new storage block, without a commit between."""
    into_memory(swap, [0])
    out(swap, _ROOM[:24], 2)


def _forget_and_out(swap: SwapFile) -> None:
    swap.forget(frames_of([0]))
    out(swap, [0], 2)


def _in_and_out(swap: SwapFile) -> None:
    """Empty a block and fill it again in one session: what was given back meanwhile must not take the new pages with it."""
    into_memory(swap, _OF_SPARSE_BLOCK)
    swap.commit()
    out(swap, _ROOM, 3)


def _interrupted(swap: SwapFile) -> None:
    """Interrupt a swap-out whose record is durable already, and swap another page out."""

    def interrupt() -> None:
        swap.journal.on_commit.remove(interrupt)
        raise KeyboardInterrupt

    swap.journal.on_commit.append(interrupt)
    with suppress(KeyboardInterrupt):
        out(swap, [2], 4)
    out(swap, [40], 4)


def _no_space(swap: SwapFile, allocations: int = 0) -> None:
    """Swap out more than there is room for on a file system that is full after some allocations: nothing changes."""
    pages: MemoryPages = swap.pages  # type: ignore[assignment]
    pages.allocations_left = allocations
    with suppress(NoSpaceError):
        out(swap, _ROOM if not allocations else [*_ROOM, *_OF_SPARSE_BLOCK], 5)
    pages.allocations_left = -1
    swap.commit()


def copy(swap: SwapFile, moves: Moves) -> None:
    """Copy pages as a defragmentation does."""
    with ThreadPoolExecutor(1) as workers:
        copy_pages(swap.pages, moves, swap.data_offset, workers)
    swap.pages.fence()


def defrag(swap: SwapFile, *, batch: int = 99, between: Callable[[SwapFile], object] = lambda swap: None) -> None:
    """Defragment in batches; `between` happens once, between a plan and its copies."""
    mover = Mover(swap)
    mover.begin()
    first = True
    while len((moves := mover.plan(batch)).sources):
        if first:
            between(swap)
        first = False
        copy(swap, moves)
        mover.commit()
    mover.end()


def _drop(swap: SwapFile, *, copied: bool) -> None:
    mover = Mover(swap)
    mover.begin()
    moves = mover.plan(4)
    if copied:
        copy(swap, moves)
    mover.end()
    swap.commit()


def _empty_target(swap: SwapFile) -> None:
    """Let all pages leave the block to which others are being copied: it must keep its storage."""
    into_memory(swap, range(32, 40))
    swap.commit()


def _return(swap: SwapFile) -> None:
    into_memory(swap, [26])
    out(swap, [26], 6)


def _everything_in(swap: SwapFile) -> None:
    into_memory(swap, np.flatnonzero(swap.states_of_range(0, swap.nframes) >= 0).tolist())
    swap.commit()


def _came_back(state: bytes | int) -> bytes | int:
    return IN_MEMORY if isinstance(state, bytes) else state


def _same(model: Model) -> list[Model]:
    return [model]


def operations() -> list[Operation]:
    """Return all operations; those that the state of a file refuses are skipped there."""
    return [
        _swap_out("out-one", [2]),
        _swap_out("out-several", [2, 3, 5, 16]),
        _swap_out("out-into-new-block", _ROOM[:24]),
        _swap_out("out-whole-block", _ROOM),
        _swap_in("in-one", [0]),
        _swap_in("in-several", [26, 27, 32, 1]),
        _swap_in("in-whole-block", _OF_SPARSE_BLOCK),
        _forget("forget", [26, 33]),
        _forget("forget-whole-block", _OF_SPARSE_BLOCK),
        Operation("touch", _touch, lambda model: [_in(model, [50, 51])]),
        Operation("in-and-out-again", _again, lambda model: [_in(model, [0]), _out(model, [0], 2)]),
        Operation(
            "in-and-out-into-new-block",
            _again_into_new_block,
            lambda model: [_in(model, [0]), _out(_in(model, [0]), _ROOM[:24], 2)],
        ),
        Operation(
            "empty-and-fill",
            _in_and_out,
            lambda model: [_in(model, _OF_SPARSE_BLOCK), _out(_in(model, _OF_SPARSE_BLOCK), _ROOM, 3)],
        ),
        Operation("out-interrupted", _interrupted, lambda model: [_out(model, [2], 4), _out(_in(model, [2]), [40], 4)]),
        Operation("out-without-space", _no_space, _same),
        Operation("relocate", defrag, _same),
        Operation("relocate-in-batches", lambda swap: defrag(swap, batch=2), _same),
        Operation("relocate-dropped", lambda swap: _drop(swap, copied=True), _same),
        Operation(
            "relocate-one-leaves",
            lambda swap: defrag(swap, between=lambda swap: into_memory(swap, [27, 29])),
            lambda model: [_in(model, [27, 29])],
        ),
        Operation(
            "relocate-one-returns",
            lambda swap: defrag(swap, between=_return),
            lambda model: [_in(model, [26]), _out(model, [26], 6)],
        ),
        Operation(
            "relocate-target-empties",
            lambda swap: defrag(swap, between=_empty_target),
            lambda model: [_in(model, range(32, 40))],
        ),
    ]


def plain_steps() -> list[Operation]:
    """Return steps that make sense in longer workloads, or for one planted bug."""
    return [
        _swap_out("out-the-rest", _ROOM[24:], 7),
        Operation("forget-and-out-again", _forget_and_out, lambda model: [_in(model, [0]), _out(model, [0], 2)]),
        Operation("relocate-never-copied", lambda swap: _drop(swap, copied=False), _same),
        Operation("out-with-half-the-space", lambda swap: _no_space(swap, 1), _same),
        Operation("in-everything", _everything_in, lambda model: [{frame: _came_back(state) for frame, state in model.items()}]),
        Operation("in-lazily", lambda swap: into_memory(swap, [0]), lambda model: [_in(model, [0])], lazy=True),
        Operation(
            "in-whole-block-lazily",
            lambda swap: into_memory(swap, _OF_SPARSE_BLOCK),
            lambda model: [_in(model, _OF_SPARSE_BLOCK)],
            lazy=True,
        ),
    ]
