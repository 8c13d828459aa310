"""The operations of a swap file with a reservation; most are those of any swap file, which lend and return here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvmtool.swap.reservation import join, leave
from nvmtool.swap.reservation_resize import resize_reservation

from ..swap import operations as plain
from ..swap.operations import Operation, into_memory, out
from .ground import BLOCK, RESERVATION
from .workloads import NBLOCKS, PROMISED, SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from nvmtool.swap.swapfile import SwapFile

    from ..swap.model import Model

OTHER = "other.swap"
_OTHERS_UUID = bytes(range(16))
# Lending one and several blocks, giving one and several back, moving pages out of a block, and being interrupted in it.
_ALONE = (
    "out-into-new-block",
    "in-one",
    "in-whole-block",
    "forget-whole-block",
    "in-and-out-into-new-block",
    "empty-and-fill",
    "relocate",
    "relocate-in-batches",
    "relocate-one-returns",
    "relocate-target-empties",
)
_MORE = ("in-everything", "out-the-rest", "in-lazily", "in-whole-block-lazily", "in-several", "out-whole-block")
# What is in storage block 2, whose storage is the last reserved block, once 24 pages were swapped out.
_OF_LAST_BLOCK = [*range(16, 24), *range(32, 40)]


def _reservation(swap: SwapFile) -> Path:
    return swap.path.parent / RESERVATION


def _resize(name: str, nblocks: int) -> Operation:
    return Operation(name, lambda swap: resize_reservation(_reservation(swap), nblocks * BLOCK), lambda model: [{**model, SIZE: nblocks}])


def _everything_anew(swap: SwapFile, version: int = 8) -> None:
    """Give all blocks back, and borrow as many at once: the next ones of the reservation."""
    plain._everything_in(swap)
    out(swap, range(40), version)


def _anew(model: Model, version: int = 8) -> list[Model]:
    back: Model = {frame: plain._came_back(state) for frame, state in model.items()}
    return [back, plain._out(back, range(40), version)]


def _lend_shrink(swap: SwapFile) -> None:
    """Shrink a reservation whose last blocks were lent a moment ago, which is not said yet; then give a relabelled one back."""
    out(swap, plain._ROOM[:24], 1)
    resize_reservation(_reservation(swap), (NBLOCKS - 1) * BLOCK)
    into_memory(swap, _OF_LAST_BLOCK)
    swap.commit()
    assert swap.used[2] < 0


def _lent_and_shrunk(model: Model) -> list[Model]:
    more = plain._out(model, plain._ROOM[:24], 1)
    smaller = {**more, SIZE: NBLOCKS - 1}
    return [more, smaller, plain._in(smaller, _OF_LAST_BLOCK)]


def _join(swap: SwapFile) -> None:
    join(_reservation(swap), _OTHERS_UUID, swap.path.parent / OTHER, 1)


def _join_and_leave(swap: SwapFile) -> None:
    _join(swap)
    leave(_reservation(swap), _OTHERS_UUID, swap.path.parent / OTHER)


def _joined(model: Model) -> Model:
    return {**model, PROMISED: int(model[PROMISED]) + 1}


# Those of which pairs are tried too, and recoveries cut off; the others take long, or add little to these.
IN_PAIRS = ("out-into-new-block", "in-whole-block", "relocate-in-batches", "shrink", "lend-and-shrink")


def operations() -> list[Operation]:
    """Return all operations; those that the state of the files refuses are skipped there."""
    known = {each.name: each for each in plain.operations()}
    return [
        *(known[name] for name in _ALONE),
        Operation("everything-anew", _everything_anew, _anew),
        _resize("grow", NBLOCKS + 2),
        _resize("shrink", NBLOCKS - 1),
        Operation("lend-and-shrink", _lend_shrink, _lent_and_shrunk),
        Operation("join-other", _join, lambda model: [_joined(model)]),
        Operation("join-and-leave", _join_and_leave, lambda model: [_joined(model), model]),
    ]


def plain_steps() -> list[Operation]:
    """Return steps that make sense in longer workloads, or for one planted bug."""
    known = {each.name: each for each in [*plain.operations(), *plain.plain_steps()]}
    return [
        *(known[name] for name in _MORE),
        plain._swap_in("in-first-block", range(16)),
        Operation("everything-once-more", lambda swap: _everything_anew(swap, 9), lambda model: _anew(model, 9)),
    ]
