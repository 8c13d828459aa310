"""Where a state's data are: extents of active, non-active and purged blocks, and holes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..media import word
from . import layout as lay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ..media.word import Words
    from .region import Region

    Ints = NDArray[np.int64]

KINDS = ("hole", "active", "non-active", "purged")
HOLE, ACTIVE, NON_ACTIVE, PURGED = range(4)
_LEAVES = 256


def map_arrays(region: Region, snapshot: str | None = None) -> tuple[Ints, Ints, NDArray[np.uint8]]:
    """Return (offsets, lengths, kind codes) of a state's extents in order, adjacent ones of a kind merged, without gaps.

    In bytes; the codes index KINDS. Raises NotFoundError or DamagedError.
    """
    parts = list(_iter_leaf_runs(region, snapshot))
    starts = np.concatenate([np.zeros(1, np.int64), *(part[0] for part in parts)])
    kinds = np.concatenate([np.zeros(1, np.uint8), *(part[1] for part in parts)])
    # The first element is the hole that the region starts with, empty when block 0 is mapped.
    keep = np.concatenate([np.diff(starts) > 0, [True]])
    starts, kinds = starts[keep], kinds[keep]
    change = np.concatenate([[True], kinds[1:] != kinds[:-1]])
    starts, kinds = starts[change], kinds[change]
    inside = starts < region.nblocks
    starts, kinds = starts[inside], kinds[inside]
    lengths = np.diff(np.concatenate([starts, [region.nblocks]]))
    return starts * lay.BLOCK_SIZE, lengths * lay.BLOCK_SIZE, kinds


def iter_extents(region: Region, snapshot: str | None = None) -> Iterator[tuple[int, int, str]]:
    """Yield (offset, length, kind) of a state's extents in order; see `map_arrays`."""
    offsets, lengths, kinds = map_arrays(region, snapshot)
    for offset, length, kind in zip(offsets.tolist(), lengths.tolist(), kinds.tolist(), strict=True):
        yield offset, length, KINDS[kind]


def _iter_leaf_runs(region: Region, snapshot: str | None) -> Iterator[tuple[Ints, NDArray[np.uint8]]]:
    """Yield (first logical blocks, kinds) of runs, hundreds of level-1 tables at a time; what lies between is a hole."""
    for indexes, words in region.pages.tables.iter_words(region.root_of(snapshot), _LEAVES):
        yield _leaf_runs(region, indexes, words, running=snapshot is None)


def _leaf_runs(region: Region, indexes: Ints, words: Words, *, running: bool) -> tuple[Ints, NDArray[np.uint8]]:
    pages = region.pages
    kinds, values = pages.tables.decode(words, indexes)
    targets, _ = pages.follow(kinds, values, indexes)
    codes = np.full(len(indexes), HOLE, np.uint8)
    codes[targets == word.SLOT] = PURGED
    in_nvm = np.flatnonzero(targets == word.BLOCK)
    codes[in_nvm] = ACTIVE
    if not running:
        theirs = pages.tables.lookup(region.root_of(None), indexes[in_nvm])
        codes[in_nvm[theirs != words[in_nvm]]] = NON_ACTIVE
    # Runs end where the kind changes or the next table is not the next in the region; a hole follows the last block of a table.
    jumps = np.diff(indexes) != 1
    change = np.concatenate([[True], (codes[1:] != codes[:-1]) | jumps])
    after = np.concatenate([indexes[:-1][jumps] + 1, indexes[-1:] + 1])
    starts = np.concatenate([indexes[change], after])
    run_kinds = np.concatenate([codes[change], np.full(len(after), HOLE, np.uint8)])
    order = np.argsort(starts, kind="stable")
    return starts[order], run_kinds[order]
