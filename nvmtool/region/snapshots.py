"""Snapshots: create in a constant number of words, list, delete, revert, and compare."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ExistsError
from ..media import word
from ..media.journal import runs
from ..media.record import check_name
from . import layout as lay
from .sweep import Change, find_deleted, mark_deleted, sweep_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .records import Record
    from .region import Region
    from .sweep import Progress

    Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SnapshotInfo:
    """One snapshot.

    Owned are the blocks born in it, exclusive those that deleting it would free, purged those that it reads from the mass store.
    """

    name: str
    created: str
    owned_bytes: int
    exclusive_bytes: int
    purged_bytes: int


def create_snapshot(region: Region, name: str, *, created: int | None = None, unmark: int = 0) -> None:
    """Keep the running point's present state under a name; durable on return, with the same few words at any size.

    The snapshot takes over the running point's array (T1). `created`, in microseconds, is its time where that is not now; flags of the
    region to take off in the same step are `unmark`. Raises UsageError, ExistsError or NoSpaceError.
    """
    device, record = region.device, region.record
    device.require(dry_run=False)
    check_name(name)
    if region.snapshots.find(name) is not None:
        raise ExistsError(f"{device.path}: region {region.name!r} has a snapshot {name!r} already")

    def keep() -> None:
        snapshot = _move_to_snapshot(region, name)
        if created is not None:
            snapshot.put("created", created)
        if unmark:
            record.put("flags", record.get("flags") & ~unmark)
        root = record.get_pointer("root", word.TABLE)
        if root:
            device.blocks.add_refs(np.array([root]), word.TABLE)

    region.flush(keep)  # in one step with the last of the writes
    region.forget_cached()


def _move_to_snapshot(region: Region, name: str) -> Record:
    """Make a snapshot record of the running point's state and give the running point a new id and an empty array."""
    record = region.record
    state = record.get("state")
    snapshot = add_snapshot(region, name, state, record.get("parent"), record)
    snapshot.put_pointer("array", word.ARRAY, record.get_pointer("array", word.ARRAY))
    record.put("state", take_state(region))
    record.put("parent", state)
    record.put_pointer("array", word.ARRAY, 0)
    return snapshot


def add_snapshot(region: Region, name: str, state: int, parent: int, like: Record) -> Record:
    """Make a snapshot record with the tree of another state and no array, in the open transaction; that root is not counted again."""
    snapshot = region.snapshots.create()
    snapshot.id = state
    snapshot.put("parent", parent)
    snapshot.put_pointer("root", word.TABLE, like.get_pointer("root", word.TABLE))
    snapshot.put("created", time.time_ns() // 1000)
    snapshot.put("mapped", like.get("mapped"))
    snapshot.name = name
    region.record.put("nsnapshots", region.record.get("nsnapshots") + 1)
    return snapshot


def take_state(region: Region) -> int:
    """Return the next unused state id and use it up, in the open transaction."""
    state = region.record.get("next_state")
    region.record.put("next_state", state + 1)
    return state


def delete_snapshot(region: Region, name: str, progress: Progress = None, *, dry_run: bool = False) -> Change:
    """Delete a snapshot: free what it alone names, on NVM and on the mass store, and hand its entries to their next owners.

    Killed in between, the snapshot is gone from the list's readers, and the same call (or any writable open) finishes. Raises
    NotFoundError.
    """
    device = region.device
    device.require(dry_run=dry_run)
    region.flush()
    record = find_deleted(region, name)
    if record is None:
        device.resumed.discard((region.name, name))
        return Change(0, 0, 0)
    before = device.blocks.free_blocks, device.slots.used
    with device.transaction():
        mark_deleted(region, record)
    pointers = sweep_snapshot(region, record, progress)
    return Change(device.blocks.free_blocks - before[0], before[1] - device.slots.used, pointers)


def revert_region(region: Region, name: str, progress: Progress = None, *, dry_run: bool = False) -> Change:
    """Make the running point's state that of a snapshot again, in one commit; then free what only the old state named.

    Purged blocks become active where they are: they are read from the mass store until they are written or recalled. Raises NotFoundError.
    """
    device = region.device
    device.require(dry_run=dry_run)
    region.flush()
    target = region.snapshot(name)
    before = device.blocks.free_blocks, device.slots.used
    with device.transaction():
        remains = run_on_from(region, target)
    pointers = sweep_snapshot(region, remains, progress)
    return Change(device.blocks.free_blocks - before[0], before[1] - device.slots.used, pointers)


def run_on_from(region: Region, target: Record) -> Record:
    """Let the running point have a snapshot's state, in the open transaction; return what it had, which is to be swept.

    The old state becomes a nameless snapshot that is being deleted, so that a kill cannot leave half of it.
    """
    record = region.record
    root = target.get_pointer("root", word.TABLE)
    mapped_purged = _mapped_purged(region, root)
    remains = _move_to_snapshot(region, "")
    mark_deleted(region, remains)
    record.put_pointer("root", word.TABLE, root)
    record.put("parent", target.id)
    record.put("mapped", target.get("mapped"))
    record.put("mapped_purged", mapped_purged)
    if root:
        region.device.blocks.add_refs(np.array([root]), word.TABLE)
    return remains


def _mapped_purged(region: Region, root: int) -> int:
    """Return how many blocks the running point would read from the mass store with this root; shared subtrees cost nothing."""
    total = region.record.get("mapped_purged")
    for table_index, old, new in region.pages.tables.iter_differing(region.root_of(None), root):
        total += _purged_in_leaf(region, table_index, new) - _purged_in_leaf(region, table_index, old)
    return total


def _purged_in_leaf(region: Region, table_index: int, leaf: int) -> int:
    return int(_purged_in_leaves(region, np.array([table_index]), np.array([leaf]))[0]) if leaf else 0


def _purged_in_leaves(region: Region, table_indexes: Ints, leaves: Ints) -> Ints:
    """Return how many blocks each level-1 table maps to the mass store."""
    indexes, words = region.pages.tables.words_of(table_indexes, leaves)
    kinds, values = region.pages.tables.decode(words, indexes)
    kinds, _ = region.pages.follow(kinds, values, indexes)
    purged: Ints = (kinds == word.SLOT).reshape(len(leaves), lay.TABLE_ENTRIES).sum(axis=1)
    return purged


def list_snapshots(region: Region) -> list[SnapshotInfo]:
    """Return the snapshots, oldest first; walks the tables that are private to one snapshot, and each shared table once."""
    purged_below: dict[int, int] = {}
    found = []
    for record in sorted(region.snapshots, key=lambda each: each.id):
        if record.get("parent") & lay.SNAPSHOT_DELETING:
            continue
        root = record.get_pointer("root", word.TABLE)
        created = datetime.datetime.fromtimestamp(record.get("created") / 1e6, datetime.UTC)
        found.append(
            SnapshotInfo(
                name=record.name,
                created=created.isoformat(timespec="milliseconds"),
                owned_bytes=_owned_blocks(region, record) * lay.BLOCK_SIZE,
                exclusive_bytes=_exclusive_blocks(region, root, region.pages.tables.levels, 0) * lay.BLOCK_SIZE,
                purged_bytes=_purged_below(region, root, region.pages.tables.levels, 0, purged_below) * lay.BLOCK_SIZE,
            )
        )
    return found


def _owned_blocks(region: Region, record: Record) -> int:
    """Return how many blocks were born in a state: its array's entries, or for direct mapping what its parent does not name."""
    owned = 0
    virtblocks = region.pages.virtblocks
    for blocks in virtblocks.iter_array(record.get_pointer("array", word.ARRAY), 1024):
        owned += int(virtblocks.lives(blocks).sum())
    if region.mapping == "virtblock":
        return owned
    parent = record.get("parent")
    parent_root = region.pages.owner_record(parent).get_pointer("root", word.TABLE) if parent else 0
    for _, old, new in region.pages.tables.iter_differing(parent_root, record.get_pointer("root", word.TABLE)):
        before, after = region.pages.tables.leaf_words(old), region.pages.tables.leaf_words(new)
        owned += int(((after != before) & (after != 0)).sum())
    return owned


def _exclusive_blocks(region: Region, table: int, level: int, prefix: int) -> int:
    """Return how many blocks, on NVM or mass store, only this private subtree names."""
    if not table or region.device.blocks.count(table, word.TABLE) > 1:
        return 0
    if level == 1:
        return _exclusive_in_leaves(region, np.array([prefix]), np.array([table]))
    below = np.array(list(region.pages.tables.iter_children(table, level, prefix)), np.int64).reshape(-1, 2)
    if level > 2:
        return sum(_exclusive_blocks(region, child, level - 1, index) for index, child in below.tolist())
    private = below[region.device.blocks.counts(below[:, 1])[1] == 1]
    return _exclusive_in_leaves(region, private[:, 0], private[:, 1])


def _exclusive_in_leaves(region: Region, table_indexes: Ints, leaves: Ints) -> int:
    indexes, words = region.pages.tables.words_of(table_indexes, leaves)
    kinds, values = region.pages.tables.decode(words, indexes)
    _, homes = region.pages.virtblocks.homes(values[kinds == word.ENTRY])
    _, blocks = region.device.blocks.counts(values[kinds == word.BLOCK])
    slots = region.device.slots.get(values[kinds == word.SLOT])[0] if (kinds == word.SLOT).any() else np.empty(0)
    return int((homes == 1).sum() + (blocks == 1).sum() + (slots == 1).sum())


def _purged_below(region: Region, table: int, level: int, prefix: int, known: dict[int, int]) -> int:
    """Return how many blocks a tree maps to the mass store; `known` remembers it of every table."""
    if not table or not region.device.slots.used:
        return 0
    if table not in known:
        if level == 1:
            known[table] = _purged_in_leaf(region, prefix, table)
        else:
            below = list(region.pages.tables.iter_children(table, level, prefix))
            if level == 2:
                unknown = np.array([pair for pair in below if pair[1] not in known], np.int64).reshape(-1, 2)
                known.update(zip(unknown[:, 1].tolist(), _purged_in_leaves(region, *unknown.T).tolist(), strict=True))
            known[table] = sum(_purged_below(region, child, level - 1, index, known) for index, child in below)
    return known[table]


def diff_states(region: Region, a: str | None, b: str | None) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the byte ranges in which two states may differ, in order; None is the running point.

    Compares tables, not data: a block written again with the same bytes counts as changed. Raises NotFoundError.
    """
    region.flush()
    changed = _iter_changed(region, region.root_of(a), region.root_of(b))
    start = end = -1
    for first, length in changed:
        if first == end:
            end += length
            continue
        if end > start:
            yield start * lay.BLOCK_SIZE, (end - start) * lay.BLOCK_SIZE
        start, end = first, first + length
    if end > start:
        yield start * lay.BLOCK_SIZE, (end - start) * lay.BLOCK_SIZE


def _iter_changed(region: Region, a: int, b: int) -> Iterator[tuple[int, int]]:
    for table_index, old, new in region.pages.tables.iter_differing(a, b):
        before, after = region.pages.tables.leaf_words(old), region.pages.tables.leaf_words(new)
        differing = np.flatnonzero(before != after)
        indexes = differing + (table_index << lay.TABLE_BITS)
        kinds = [region.pages.tables.decode(words[differing], indexes)[0] for words in (before, after)]
        # A block purged through one state's tables only is named in two ways: then its contents decide.
        doubtful = (kinds[0] != 0) & (kinds[1] != 0) & ((kinds[0] == word.SLOT) | (kinds[1] == word.SLOT))
        for position in np.flatnonzero(doubtful).tolist():
            offset = int(indexes[position])
            if region.read_block(a, offset) == region.read_block(b, offset):
                indexes[position] = -1
        yield from runs(indexes[indexes >= 0])


def count_snapshots(region: Region) -> int:
    """Return how many snapshots can be read; the number in the record counts those that come or go too."""
    if not region.record.get("flags") & lay.SWEEPING:
        return region.record.get("nsnapshots")
    return int((region.snapshots.column("parent")[1] & lay.SNAPSHOT_DELETING == 0).sum())


def require_snapshots(region: Region, names: tuple[str, ...]) -> list[Record]:
    """Return the records of named snapshots, or of all of them, oldest first; raises NotFoundError."""
    if names:
        return [region.snapshot(name) for name in names]
    living = [record for record in region.snapshots if not record.get("parent") & lay.SNAPSHOT_DELETING]
    return sorted(living, key=lambda record: record.id)
