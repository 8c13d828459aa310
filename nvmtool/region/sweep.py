"""Deleting: regions, snapshots, what a revert leaves, and discarded ranges, in many small commits.

A state that goes is first marked (one commit); from then on nobody can read it. Its tree is taken apart from below: each commit drops
references
and clears the pointers that held them, so that the image is whole after every one. Then its virtblock array is handed to the next owners,
and last its
record goes. Killed anywhere, `finish_deletions` goes on from what is left at the next writable open.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NotFoundError
from ..media import word
from . import layout as lay

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..media.word import Words
    from .blocks import BlockNumbers
    from .device import Device
    from .records import Record
    from .region import Region
    from .tables import Indexes

    Progress = Callable[[int, int, str], None] | None

_ARRAY_BATCH = 16
# One level-1 entry dropped changes at most these words: its own, home and pointer of its entry, count, group, slot, live.
_WORDS_PER_DROP = 8


@dataclass(frozen=True)
class Change:
    """What a deleting command did, or would do."""

    blocks_freed: int
    slots_freed: int
    pointers_updated: int


class Sweep:
    """One deletion job: takes a marked state of a region apart."""

    def __init__(self, region: Region, progress: Progress = None) -> None:
        """Prepare; on a device opened for reading the whole job is a rehearsal."""
        self._region = region
        self._device = region.device
        self._journal = region.device.journal
        self._pages = region.pages
        self._progress = progress
        self._entries_per_commit = max(64, min(self._device.step_blocks, self._journal.max_words // (2 * _WORDS_PER_DROP)))
        self._words_per_commit = min(self._journal.max_words // 4, self._device.step_blocks * _WORDS_PER_DROP)
        self._total = max(region.record.get("mapped"), 1)
        self.pointers = 0

    def commit(self) -> None:
        """End one step."""
        self._journal.commit()
        if self._progress is not None:
            self._progress(min(self.pointers, self._total), self._total, "pointers")
        # Others may write through the running point now: that does not touch what this state alone names.
        self._device.pause()

    def release_tree(self, record: Record) -> None:
        """Drop the tree that a record's root names, and clear the root."""
        root = record.get_pointer("root", word.TABLE)
        if root:
            if self._device.blocks.count(root, word.TABLE) == 1:
                self._empty(root, self._pages.tables.levels, 0)
            record.put_pointer("root", word.TABLE, 0)
            self._device.blocks.drop_refs(np.array([root]), word.TABLE)
            self.commit()

    def _empty(self, table: int, level: int, prefix: int) -> None:
        """Clear a private table's entries and drop what they name."""
        at = table * lay.WORDS_PER_BLOCK + np.arange(lay.TABLE_ENTRIES, dtype=np.int64)
        indexes = np.arange(lay.TABLE_ENTRIES, dtype=np.int64) + (prefix << lay.TABLE_BITS)
        words = self._journal.array[at]
        if level == 1:
            self._drop_leaf(words, indexes, at)
            return
        children = self._pages.tables.children(words, level, indexes, at)
        present = np.flatnonzero(children)
        if not len(present):
            return
        _, counts = self._device.blocks.counts(children[present])
        shared = present[counts > 1]
        self._detach(at[shared], children[shared])
        for position in present[counts == 1].tolist():
            child = int(children[position])
            self._empty(child, level - 1, int(indexes[position]))
            self._detach(at[[position]], np.array([child]))

    def _drop_leaf(self, words: Words, indexes: Indexes, at: Indexes) -> None:
        present = np.flatnonzero(words)
        for start in range(0, len(present), self._entries_per_commit):
            part = present[start : start + self._entries_per_commit]
            kinds, values = self._pages.tables.decode(words[part], indexes[part])
            self._journal.set_words(at[part], np.zeros(len(part), np.uint64))
            self._pages.drop_refs(kinds, values)
            self.pointers += len(part)
            if self._journal.pending_words > self._words_per_commit:
                self.commit()

    def _detach(self, at: Indexes, tables: BlockNumbers) -> None:
        self._journal.set_words(at, np.zeros(len(at), np.uint64))
        self._device.blocks.drop_refs(tables, word.TABLE)
        if self._journal.pending_words > self._words_per_commit:
            self.commit()

    def hand_over_array(self, record: Record) -> None:
        """Give a deleted state's array blocks to the states that still name entries in them."""
        virtblocks = self._pages.virtblocks
        state = record.id
        heirs = _Heirs(self._region, state)
        while record.get_pointer("array", word.ARRAY):
            batch = next(virtblocks.iter_array(record.get_pointer("array", word.ARRAY), _ARRAY_BATCH))
            for block in batch.tolist():
                heir, heir_state = heirs.next_owner(block)
                virtblocks.unlink(block, record)
                virtblocks.link(block, heir, heir_state)
            self.commit()


class _Heirs:
    """Finds the next owners of a deleted state's array blocks: a state that names entries in them."""

    def __init__(self, region: Region, state: int) -> None:
        self._region = region
        self._pages = region.pages
        numbers, parents = region.snapshots.column("parent")
        living = parents & lay.SNAPSHOT_DELETING == 0
        is_child = parents == state
        self._children = [region.snapshots.get(number) for number in numbers[living & is_child].tolist()]
        # The younger states first, the nearest of them first: they have most of what this one had.
        ids = region.snapshots.column("id")[1] & word.VALUE_MASK
        others = np.flatnonzero(living & ~is_child)
        self._others = numbers[others[np.lexsort((ids[others], ids[others] < state))]].tolist()

    def next_owner(self, block: int) -> tuple[Record, int]:
        """Return a snapshot that names an entry of the block, or the running point when it alone names them all."""
        addresses, indexes = self._pages.virtblocks.present_entries(np.array([block]))
        for child in self._children:
            if self._names_any(child, addresses, indexes):
                return child, child.id
        running = self._region.record
        if not self._is_running_points(addresses, indexes):
            # After reverts a snapshot of another branch; after pointer elimination in the children a grandchild.
            for number in self._others:
                other = self._region.snapshots.get(number)
                if self._names_any(other, addresses, indexes):
                    return other, other.id
        return running, running.get("state")

    def _names_any(self, record: Record, addresses: Indexes, indexes: Indexes) -> bool:
        words = self._pages.tables.lookup(record.get_pointer("root", word.TABLE), indexes)
        kinds, values = self._pages.tables.decode(words, indexes)
        return bool(((kinds == word.ENTRY) & (values == addresses)).any())

    def _is_running_points(self, addresses: Indexes, indexes: Indexes) -> bool:
        leaves = self._pages.private_leaves(indexes >> lay.TABLE_BITS)
        if not leaves.all() or (self._pages.virtblocks.homes(addresses)[1] > 1).any():
            return False
        at = leaves * lay.WORDS_PER_BLOCK + (indexes & lay.TABLE_ENTRIES - 1)
        kinds, values = self._pages.tables.decode(self._region.device.journal.array[at], indexes)
        return bool(((kinds == word.ENTRY) & (values == addresses)).all())


def mark_deleted(region: Region, record: Record) -> None:
    """Mark a snapshot as being deleted, in the open transaction."""
    record.put("parent", record.get("parent") | lay.SNAPSHOT_DELETING)
    region.record.put("flags", region.record.get("flags") | lay.SWEEPING)


def sweep_snapshot(region: Region, record: Record, progress: Progress = None) -> int:
    """Take a marked snapshot apart and free its record; return the level-1 entries dropped. Each step commits."""
    region.forget_cached()
    sweep = Sweep(region, progress)
    with region.device.transaction():
        sweep.release_tree(record)
        sweep.hand_over_array(record)
        parent = record.get("parent") & ~lay.SNAPSHOT_DELETING
        state = record.id
        numbers, parents = region.snapshots.column("parent")
        for number in numbers[parents & ~lay.SNAPSHOT_DELETING == state].tolist():
            child = region.snapshots.get(number)
            child.put("parent", child.get("parent") & lay.SNAPSHOT_DELETING | parent)
        if region.record.get("parent") == state:
            region.record.put("parent", parent)
        record.clear()
        region.record.put("nsnapshots", region.record.get("nsnapshots") - 1)
        if not (parents & lay.SNAPSHOT_DELETING)[numbers != record.number].any():
            region.record.put("flags", region.record.get("flags") & ~lay.SWEEPING)
    return sweep.pointers


def delete_region(device: Device, name: str, *, dry_run: bool = False, progress: Progress = None) -> Change:
    """Delete a region with all its snapshots; its space is free on return. Raises NotFoundError."""
    device.require(dry_run=dry_run)
    if device.records.find(name) is None and (name, None) in device.resumed:
        device.resumed.discard((name, None))
        return Change(0, 0, 0)
    region = device.region(name)
    region.flush()
    before = device.blocks.free_blocks, device.slots.used
    with device.transaction():
        region.record.put("flags", region.record.get("flags") | lay.DELETING)
    pointers = sweep_region(region, progress)
    return Change(device.blocks.free_blocks - before[0], before[1] - device.slots.used, pointers)


def sweep_region(region: Region, progress: Progress = None) -> int:
    """Take a marked region apart with all its snapshots and free its record; return the level-1 entries dropped. Each step commits."""
    device = region.device
    sweep = Sweep(region, progress)
    with device.transaction():
        # The running point first: its array's entries are named by nobody else.
        sweep.release_tree(region.record)
    pointers = sweep.pointers
    for snapshot in list(region.snapshots):
        with device.transaction():
            mark_deleted(region, snapshot)
        pointers += sweep_snapshot(region, snapshot, progress)
    with device.transaction():
        tables = [block for _, block in region.snapshots.iter_leaves()] + [region.snapshots.top_block()]
        device.blocks.free(np.array([block for block in tables if block], np.int64))
        region.record.clear()
        device.root.put("nregions", device.root.get("nregions") - 1)
    device.forget_region(region.record.number)
    return pointers


def finish_deletions(device: Device) -> None:
    """Complete the deletions that a killed process began; remember their names in `device.resumed`."""
    for record in list(device.records):
        flags = record.get("flags")
        if not flags & (lay.DELETING | lay.SWEEPING):
            continue
        region = device.any_region(record)
        if flags & lay.DELETING:
            sweep_region(region)
            device.resumed.add((region.name, None))
            continue
        for snapshot in list(region.snapshots):
            if snapshot.get("parent") & lay.SNAPSHOT_DELETING:
                device.resumed.add((region.name, snapshot.name))
                sweep_snapshot(region, snapshot)


def discard(region: Region, offset: int, length: int, *, dry_run: bool = False, progress: Progress = None) -> Change:
    """Make a byte range of the running point read as zeros; whole blocks become holes, parts of blocks are written with zeros.

    Durable on return, in steps from the front; tables that snapshots share are left to them without being copied.
    """
    device = region.device
    device.require(dry_run=dry_run)
    region.flush()
    before = device.blocks.free_blocks, device.slots.used, region.record.get("mapped")
    first, end = -(-offset // lay.BLOCK_SIZE), (offset + length) // lay.BLOCK_SIZE
    _zero_edges(region, offset, length, dry_run=dry_run)
    with device.transaction():
        root = region.root_of(None)
        groups = region.pages.tables.iter_leaf_groups([root], first >> lay.TABLE_BITS)
        # Listed first, because taking tables out changes what is being walked.
        for table_index, _, _ in list(takewhile(lambda group: group[0] << lay.TABLE_BITS < end, groups)):
            start, stop = table_index << lay.TABLE_BITS, table_index + 1 << lay.TABLE_BITS
            _discard_leaf(region, table_index, max(start, first), min(stop, end))
            if device.journal.pending_words > device.journal.max_words // 4:
                device.journal.commit()
            if progress is not None:
                progress(min(stop, end) - first, end - first, "blocks")
    return Change(device.blocks.free_blocks - before[0], before[1] - device.slots.used, before[2] - region.record.get("mapped"))


def _discard_leaf(region: Region, table_index: int, first: int, end: int) -> None:
    if end - first == lay.TABLE_ENTRIES:
        region.pages.unmap_leaf(table_index)
        return
    indexes = np.arange(first, end, dtype=np.int64)
    words = region.pages.tables.lookup(region.root_of(None), indexes)
    indexes = indexes[words != 0]
    if len(indexes):
        region.pages.unmap(indexes)


def _zero_edges(region: Region, offset: int, length: int, *, dry_run: bool) -> None:
    end = offset + length
    inner_start, inner_end = -(-offset // lay.BLOCK_SIZE) * lay.BLOCK_SIZE, end // lay.BLOCK_SIZE * lay.BLOCK_SIZE
    edges = [(offset, min(inner_start, end))] if inner_start > offset else []
    if inner_end < end and inner_end >= inner_start:
        edges.append((inner_end, end))
    for start, stop in edges:
        index = np.array([start // lay.BLOCK_SIZE], np.int64)
        if region.pages.tables.lookup(region.root_of(None), index)[0]:
            if dry_run:
                with region.device.transaction():
                    region.pages.map(index, np.array([region.device.blocks.take_one()], np.int64))
            else:
                region.write(start, bytes(stop - start))
                region.flush()


def find_deleted(region: Region, name: str) -> Record | None:
    """Return the record of a snapshot that may be deleted; None when a writable open just completed its deletion."""
    record = region.snapshots.find(name)
    if record is None and (region.name, name) not in region.device.resumed:
        raise NotFoundError(f"{region.device.path}: region {region.name!r} has no snapshot {name!r}")
    return record
