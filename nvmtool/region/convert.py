"""Convert a region between virtblock and direct mapping, in place, batch by batch.

The region stays readable and writable at every commit: both kinds of words may stand in one table while the conversion is under way. A
kill leaves
it flagged; the same call goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from ..media import word
from . import layout as lay
from .device import MAPPINGS
from .leafwords import LeafWords, batched, iter_leaf_words, slices
from .snapshots import require_snapshots
from .sweep import Change

if TYPE_CHECKING:
    from collections.abc import Callable

    from .records import Record
    from .region import Region
    from .sweep import Progress

_WORDS_PER_POINTER = 8
_BATCH_WORDS = 16384


def convert_region(region: Region, mapping: str, progress: Progress = None, *, dry_run: bool = False) -> Change:
    """Give every level-1 entry of every state the other form; `pointers_updated` counts them. Data do not move.

    Pointers that were eliminated (T2) stay as they are. Durable on return. Raises UsageError for an unknown mapping, or NoSpaceError.
    """
    device = region.device
    device.require(dry_run=dry_run)
    if mapping not in MAPPINGS:
        raise UsageError(f"mapping {mapping!r}: must be one of {', '.join(MAPPINGS)}")
    region.flush()
    flags = region.record.get("flags")
    wanted = lay.VIRTBLOCK_MAPPING if mapping == "virtblock" else 0
    before = device.blocks.free_blocks, device.slots.used
    pointers = 0
    if flags & lay.VIRTBLOCK_MAPPING != wanted or flags & lay.CONVERTING:
        with device.transaction():
            region.record.put("flags", flags & ~lay.VIRTBLOCK_MAPPING | wanted | lay.CONVERTING)
            device.journal.commit()
            pointers = _convert_all(region, _to_virtblock if wanted else _to_direct, progress)
            region.record.put("flags", region.record.get("flags") & ~lay.CONVERTING)
    return Change(device.blocks.free_blocks - before[0], before[1] - device.slots.used, pointers)


def _convert_all(region: Region, convert: Callable[[Region, LeafWords, list[Record]], None], progress: Progress) -> int:
    region.forget_cached()
    states = [*require_snapshots(region, ()), region.record]
    roots = [state.get_pointer("root", word.TABLE) for state in states]
    old_kind = word.BLOCK if convert is _to_virtblock else word.ENTRY
    most = region.device.journal.max_words // _WORDS_PER_POINTER
    done = 0
    for every in batched(iter_leaf_words(region, roots), min(most, _BATCH_WORDS)):
        words = every.select(every.kinds == old_kind)
        _, inverse, counts = words.units()
        order = np.argsort(inverse, kind="stable")
        bounds = np.concatenate([[0], np.cumsum(counts)])
        for start, end in slices(counts, most):
            convert(region, words.select(order[bounds[start] : bounds[end]]), states)
            region.device.journal.commit()
        done += len(words)
        if progress is not None:
            progress(done, max(done, region.record.get("mapped")), "pointers")
    return done


def _to_virtblock(region: Region, words: LeafWords, states: list[Record]) -> None:
    """Put an entry between the words and each block; it belongs to the oldest snapshot that names the block."""
    device, pages = region.device, region.pages
    first, inverse, counts = words.units()
    units = words.select(first)
    ranks = words.first_ranks(inverse, len(units))
    addresses = pages.create_entries(units.indexes, units.values, counts, ranks, states)
    device.journal.set_words(words.at, pages.tables.seal(word.ENTRY, addresses[inverse], words.indexes))
    device.blocks.drop_refs(np.repeat(units.values, counts - 1), word.BLOCK)


def _to_direct(region: Region, words: LeafWords, states: list[Record]) -> None:
    """Let the words name what their entries name, and free the entries."""
    device, pages = region.device, region.pages
    first, inverse, counts = words.units()
    units = words.select(first)
    kinds, values = pages.follow(units.kinds, units.values, units.indexes)
    for kind in (word.BLOCK, word.SLOT):
        mine = kinds[inverse] == kind
        named = pages.tables.seal(kind, values[inverse[mine]], words.indexes[mine])
        device.journal.set_words(words.at[mine], named)
    more = np.repeat(values, counts - 1)
    more_kinds = np.repeat(kinds, counts - 1)
    device.blocks.add_refs(more[more_kinds == word.BLOCK], word.BLOCK)
    if (more_kinds == word.SLOT).any():
        device.slots.add_refs(more[more_kinds == word.SLOT])
    pages.virtblocks.free(units.values, pages.owner_record)
