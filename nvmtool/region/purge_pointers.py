"""T2, purge with pointer elimination: for each level-1 entry of each distinct table, put the mass slot in place of the NVM pointer.

All words that name a block change in one commit, so that it is copied once however many snapshots name it, and a kill never leaves two
copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import MassFullError
from ..media import word
from . import layout as lay
from .copying import block_crcs, copy_to_mass
from .leafwords import LeafWords, batched, iter_leaf_words, slices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .purge import Job
    from .records import Record
    from .region import Region

    Ints = NDArray[np.int64]

_WORDS_PER_POINTER = 6


def purge_pointers(region: Region, snapshots: list[Record], job: Job) -> None:
    """Eliminate the pointers to non-active blocks from the snapshots' tables; commits batch by batch inside the caller's transaction."""
    chosen = [snapshot.get_pointer("root", word.TABLE) for snapshot in snapshots]
    others = [record.get_pointer("root", word.TABLE) for record in region.snapshots]
    most = region.device.journal.max_words // _WORDS_PER_POINTER
    for words in batched(iter_leaf_words(region, chosen + others), min(most, job.batch_blocks, region.device.step_blocks)):
        # A block that was purged through some of its tables only has a slot already, which these words tell.
        slots = words.select(words.kinds == word.SLOT)
        non_active = plan_batch(region, words.select(words.ranks < len(chosen)))
        if len(non_active) and not _purge_batch(region, non_active, slots, job, most):
            return


def plan_batch(region: Region, words: LeafWords) -> LeafWords:
    """Return those of the words that name a non-active block in NVM, directly or through a virtblock entry."""
    pages = region.pages
    words = words.select(words.kinds != word.SLOT)
    running = pages.tables.lookup(region.root_of(None), words.indexes)
    kinds, values = pages.tables.decode(running, words.indexes)
    words = words.select((kinds != words.kinds) | (values != words.values))
    targets, _ = pages.follow(words.kinds, words.values, words.indexes)
    return words.select(targets == word.BLOCK)


def _purge_batch(region: Region, words: LeafWords, slots: LeafWords, job: Job, most: int) -> bool:
    """Purge a batch of words in commits that fit the log; False when the budget is used up."""
    first, inverse, counts = words.units()
    order = np.argsort(inverse, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(counts)])
    leaving = _leaves_nvm(region, words.select(first), counts)
    for start, end in slices(counts, most):
        while start < end:
            room = job.room(region.device)
            if room == 0:
                return False
            stop = min(end, start + int(np.searchsorted(np.cumsum(leaving[start:end]), room, side="right")))
            stop = max(stop, start + 1)
            part = words.select(order[bounds[start] : bounds[stop]])
            try:
                _apply(region, part, slots, job)
            except MassFullError:
                if job.shrink(min(room, stop - start)):
                    continue
                raise
            start = stop
            # Others may write through the running point now: no snapshot's table changes by that, nor what the running point does not name.
            region.device.pause()
    return True


def _leaves_nvm(region: Region, units: LeafWords, counts: Ints) -> NDArray[np.bool_]:
    """Return which units lose their last reference with these words."""
    references = np.empty(len(units), np.int64)
    entries = units.kinds == word.ENTRY
    references[entries] = region.pages.virtblocks.homes(units.values[entries])[1]
    references[~entries] = region.device.blocks.counts(units.values[~entries])[1].astype(np.int64)
    leaving: NDArray[np.bool_] = references == counts
    return leaving


def _apply(region: Region, words: LeafWords, slots: LeafWords, job: Job) -> None:
    device, pages = region.device, region.pages
    first, inverse, counts = words.units()
    units = words.select(first)
    _, blocks = pages.follow(units.kinds, units.values, units.indexes)
    chosen = _known_slots(region, units, blocks, slots)
    known = chosen != 0
    fresh = np.flatnonzero(~known)
    fresh = fresh[np.argsort(blocks[fresh], kind="stable")]
    chosen[fresh] = device.slots.take(len(fresh))
    crcs = copy_to_mass(device, blocks[fresh], chosen[fresh])
    device.slots.name(chosen[fresh], crcs, counts[fresh].astype(np.uint64))
    if known.any():
        device.slots.add_refs(np.repeat(chosen[known], counts[known]))
    device.journal.set_words(words.at, pages.tables.seal(word.SLOT, chosen[inverse], words.indexes))
    freed = pages.drop_refs(words.kinds, words.values)
    pages.count(slots=len(fresh))
    device.journal.commit()
    job.add(freed.nvm_blocks, len(words))


def _known_slots(region: Region, units: LeafWords, blocks: Ints, slots: LeafWords) -> Ints:
    """Return, per unit, the slot that already holds the same bytes for the same logical block, 0 where there is none."""
    known = np.zeros(len(units), np.int64)
    view = region.device.store.view.data
    for position in np.flatnonzero(np.isin(units.indexes, slots.indexes)).tolist():
        block = blocks[position : position + 1]
        content = view[int(block[0]) * lay.BLOCK_SIZE : (int(block[0]) + 1) * lay.BLOCK_SIZE]
        candidates = np.unique(slots.values[slots.indexes == units.indexes[position]])
        crcs = region.device.slots.get(candidates)[1]
        for slot in candidates[crcs == block_crcs(view, block)[0]].tolist():
            if region.device.slots.read(np.array([slot]))[0].tobytes() == content:
                known[position] = slot
    return known
