"""Recall: bring purged blocks of a state back to NVM, each proven by its checksum on the way."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..media import word
from ..media.journal import run_arrays
from . import layout as lay
from .leafwords import LeafWords, batched, iter_leaf_words, slices
from .purge import Job
from .snapshots import require_snapshots

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .device import Device
    from .records import Record
    from .region import Region

    Ints = NDArray[np.int64]

_WORDS_PER_POINTER = 8


@dataclass(frozen=True)
class RecallResult:
    """What a recall did, or would do; sizes in bytes."""

    blocks_recalled: int
    bytes_recalled: int
    pointers_updated: int
    seconds: float
    free_bytes_before: int
    free_bytes_after: int


def recall(
    device: Device,
    *,
    region: str | None = None,
    snapshot: str | None = None,
    max_bytes: int | None = None,
    dry_run: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> RecallResult:
    """Recall what the running point (or a snapshot) reads from the mass store; the slots are freed.

    Other states that name the same blocks follow. Each batch is durable on its own. A dry run needs a device opened for reading. Raises
    NoSpaceError when the device is full (what was recalled stays), NotFoundError, DamagedError or StorageError.
    """
    device.require(dry_run=dry_run)
    regions = [device.region(region)] if region is not None or snapshot is not None else device.regions()
    started = time.monotonic()
    free_before = device.blocks.free_blocks
    max_blocks = None if max_bytes is None else max_bytes // lay.BLOCK_SIZE
    job = Job(max_blocks=max_blocks, progress=progress, total=sum(each.record.get("slots") for each in regions))
    for each in regions:
        each.flush()
        with device.transaction():
            _recall_region(each, each.record if snapshot is None else each.snapshot(snapshot), job)
    return RecallResult(
        blocks_recalled=job.blocks,
        bytes_recalled=job.blocks * lay.BLOCK_SIZE,
        pointers_updated=job.pointers,
        seconds=round(time.monotonic() - started, 6),
        free_bytes_before=free_before * lay.BLOCK_SIZE,
        free_bytes_after=device.blocks.free_blocks * lay.BLOCK_SIZE,
    )


def _recall_region(region: Region, state: Record, job: Job) -> None:
    first: int | None = 0
    while first is not None:
        first = _recall_from(region, state, first, job)


def _recall_from(region: Region, state: Record, first: int, job: Job) -> int | None:
    """Recall from a logical block on; return where to go on when others have changed the region meanwhile, None at the end."""
    region.forget_cached()
    snapshots = require_snapshots(region, ())
    wanted = state.get_pointer("root", word.TABLE)
    states = [*snapshots, region.record]
    roots = [each.get_pointer("root", word.TABLE) for each in states]
    most = region.device.journal.max_words // _WORDS_PER_POINTER
    for words in batched(iter_leaf_words(region, roots, first), min(most, job.batch_blocks, region.device.step_blocks)):
        purged = plan_batch(region, words, wanted)
        _, inverse, counts = purged.units()
        order = np.argsort(inverse, kind="stable")
        bounds = np.concatenate([[0], np.cumsum(counts)])
        for start, end in slices(counts, most):
            while start < end:
                room = job.room(region.device)
                if room == 0:
                    return None
                stop = min(end, start + room)
                _apply(region, purged.select(order[bounds[start] : bounds[stop]]), states, job)
                start = stop
        # Only here: what is planned names words of the running point's tables.
        if region.device.pause():
            return int(words.indexes.max()) + 1
    return None


def plan_batch(region: Region, words: LeafWords, root: int) -> LeafWords:
    """Return those of all states' words that name what this root's state reads from the mass store."""
    pages = region.pages
    targets, _ = pages.follow(words.kinds, words.values, words.indexes)
    words = words.select(targets == word.SLOT)
    kinds, values = pages.tables.decode(pages.tables.lookup(root, words.indexes), words.indexes)
    return words.select((kinds == words.kinds) & (values == words.values))


def _apply(region: Region, words: LeafWords, states: list[Record], job: Job) -> None:
    device, pages = region.device, region.pages
    first, inverse, counts = words.units()
    units = words.select(first)
    _, slots = pages.follow(units.kinds, units.values, units.indexes)
    running, named = pages.tables.decode(pages.tables.lookup(region.root_of(None), units.indexes), units.indexes)
    of_running_point = int(((running == units.kinds) & (named == units.values)).sum())
    blocks = device.blocks.take(len(units))
    try:
        _copy_from_mass(region, slots, blocks)
    except BaseException:  # an interrupt too must not keep blocks that nothing names
        device.blocks.give_back(blocks)
        raise
    device.blocks.name(blocks, word.BLOCK)
    entries = units.kinds == word.ENTRY
    pages.virtblocks.point(units.values[entries], units.indexes[entries], word.BLOCK, blocks[entries])
    device.slots.drop_refs(slots[entries])
    pointers = int(entries.sum())
    eliminated = np.flatnonzero(~entries)
    if len(eliminated):
        of_word = ~entries[inverse]
        pointers += int(of_word.sum())
        _restore_pointers(region, words, units, blocks, of_word, states)
        device.slots.drop_refs(np.repeat(slots[eliminated], counts[eliminated]))
    pages.count(nvm_blocks=len(units), slots=-len(units), mapped_purged=-of_running_point)
    device.journal.commit()
    job.add(len(units), pointers)


def _restore_pointers(
    region: Region, words: LeafWords, units: LeafWords, blocks: Ints, of_word: NDArray[np.bool_], states: list[Record]
) -> None:
    """Let the words whose pointers were eliminated name NVM again, in the form of the region's mapping."""
    pages = region.pages
    changed = words.select(of_word)
    _, inverse, counts = words.units()
    if region.mapping == "direct":
        named = pages.tables.seal(word.BLOCK, blocks[inverse[of_word]], changed.indexes)
        eliminated = units.kinds == word.SLOT
        region.device.blocks.add_refs(np.repeat(blocks[eliminated], counts[eliminated] - 1), word.BLOCK)
    else:
        addresses = np.zeros(len(units), np.int64)
        back = units.kinds == word.SLOT
        ranks = words.first_ranks(inverse, len(units))[back]
        addresses[back] = pages.create_entries(units.indexes[back], blocks[back], counts[back], ranks, states)
        named = pages.tables.seal(word.ENTRY, addresses[inverse[of_word]], changed.indexes)
    region.device.journal.set_words(changed.at, named)


def _copy_from_mass(region: Region, slots: Ints, blocks: Ints) -> None:
    device = region.device
    contents = device.slots.read(slots)
    if device.writable:
        starts, lengths = run_arrays(blocks)
        view = contents.reshape(-1).data
        done = 0
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            end = done + length * lay.BLOCK_SIZE
            device.journal.store_data(start, [view[done:end]])
            done = end
