"""T1, purge with virtblocks: walk the snapshots' arrays, change one word per block, touch no page table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import MassFullError
from ..media import word
from .copying import copy_to_mass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .blocks import BlockNumbers
    from .purge import Job
    from .records import Record
    from .region import Region

    Addresses = NDArray[np.int64]
    Indexes = NDArray[np.int64]

_ARRAY_BLOCKS = 128


def purge_virtblock(region: Region, snapshots: list[Record], job: Job) -> None:
    """Purge the non-active blocks that the snapshots' arrays own; commits batch by batch inside the caller's transaction."""
    for snapshot in snapshots:
        for array_blocks in _iter_array(region, snapshot):
            addresses, indexes, blocks = plan_batch(region, array_blocks)
            while len(addresses):
                room = job.room(region.device)
                if room == 0:
                    return
                try:
                    _apply(region, addresses[:room], indexes[:room], blocks[:room])
                except MassFullError:
                    if job.shrink(len(addresses[:room])):
                        continue
                    raise
                job.add(len(addresses[:room]), len(addresses[:room]))
                # Others may write through the running point now: what snapshots name, and what it does not, stays as it is.
                region.device.pause()
                addresses, indexes, blocks = addresses[room:], indexes[room:], blocks[room:]


def _iter_array(region: Region, snapshot: Record) -> Iterator[BlockNumbers]:
    """Yield a snapshot's array in batches of blocks; between two of them blocks may leave it."""
    virtblocks = region.pages.virtblocks
    last = 0
    while True:
        if last and virtblocks.is_in_array(last, snapshot.id):
            head = virtblocks.following(last)
        else:  # from the beginning, also when the last one has left: what is purged already is passed over
            head, last = snapshot.get_pointer("array", word.ARRAY), 0
        batch = next(virtblocks.iter_array(head, _ARRAY_BLOCKS, last), None)
        if batch is None:
            return
        last = int(batch[-1])
        yield batch


def plan_batch(region: Region, array_blocks: BlockNumbers) -> tuple[Addresses, Indexes, BlockNumbers]:
    """Return (entries, logical blocks, data blocks) of the non-active blocks in NVM that entries in array blocks name.

    Non-active: the running point's level-1 entry at the entry's logical block does not name the entry. In order of the data blocks, so
    that neighbours are copied together.
    """
    pages = region.pages
    addresses, indexes = pages.virtblocks.present_entries(array_blocks)
    kinds, values = pages.virtblocks.targets(addresses, indexes)
    in_nvm = kinds == word.BLOCK
    addresses, indexes, values = addresses[in_nvm], indexes[in_nvm], values[in_nvm]
    running = pages.tables.lookup(region.root_of(None), indexes)
    named_kinds, named = pages.tables.decode(running, indexes)
    non_active = (named_kinds != word.ENTRY) | (named != addresses)
    addresses, indexes, values = addresses[non_active], indexes[non_active], values[non_active]
    order = np.argsort(values, kind="stable")
    return addresses[order], indexes[order], values[order]


def _apply(region: Region, addresses: Addresses, indexes: Indexes, blocks: BlockNumbers) -> None:
    device = region.device
    slots = device.slots.take(len(blocks))
    crcs = copy_to_mass(device, blocks, slots)
    device.slots.name(slots, crcs, np.ones(len(slots), np.uint64))
    region.pages.virtblocks.point(addresses, indexes, word.SLOT, slots)
    device.blocks.drop_refs(blocks, word.BLOCK)
    region.pages.count(nvm_blocks=-len(blocks), slots=len(blocks))
    device.journal.commit()
