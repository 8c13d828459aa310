"""The counts of blocks, virtblock entries and mass slots against what a walk expects of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError
from ..media import word
from . import layout as lay

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .check import Walk
    from .region import Region

    Ints = NDArray[np.int64]

_AT_ONCE = 1 << 18
_MOST_FINDINGS = 100


def check_block_counts(walk: Walk) -> None:
    """Compare every count word and group word of the data area; too high is a leak, too low an error."""
    blocks = walk.device.blocks
    for start in range(blocks.start, blocks.end, _AT_ONCE):
        numbers = np.arange(start, min(start + _AT_ONCE, blocks.end), dtype=np.int64)
        try:
            kinds, counts = blocks.counts(numbers)
        except DamagedError as error:
            walk.damaged("count word", error)
            continue
        expected = walk.references[numbers - walk.start]
        expected_kinds = walk.kinds[numbers - walk.start]
        found = counts.astype(np.int64)
        for position in _first(found < expected):
            walk.find("error", "count word", f"block {start + position}", f"count is {found[position]}, named {expected[position]} times")
        for position in _first((expected > 0) & (found >= expected) & (kinds != expected_kinds)):
            walk.find(
                "error",
                "count word",
                f"block {start + position}",
                f"kind is {word.KIND_NAMES[int(kinds[position])]}, named as {word.KIND_NAMES[int(expected_kinds[position])]}",
            )
        high = np.flatnonzero(found > expected)
        walk.leaked_blocks += int((expected[high] == 0).sum())
        for position in high[:_MOST_FINDINGS].tolist():
            walk.find(
                "leak",
                "count word",
                f"block {start + position}",
                f"count is {found[position]}, named {expected[position]} times",
                fixable=True,
            )
        if len(high):
            walk.fixes.append(blocks.sealed_counts(numbers[high], expected[high].astype(np.uint64), expected_kinds[high]))
    for group, found_used, used in blocks.iter_wrong_groups():
        severity = "leak" if found_used > used else "error"
        walk.find(severity, "group word", f"group {group}", f"counts {found_used} used blocks, there are {used}", fixable=found_used > used)


def check_entry_counts(walk: Walk, region: Region) -> None:
    """Compare the home words of a region's virtblock entries; an entry that nothing names is a leak."""
    virtblocks = region.pages.virtblocks
    owned = np.array(list(walk.entries), np.int64)
    for start in range(0, len(owned), 256):
        part = owned[start : start + 256]
        addresses, indexes = virtblocks.present_entries(part)
        _, counts = virtblocks.homes(addresses)
        expected = np.array([walk.entries[block] for block in part.tolist()]).reshape(-1)
        lookup = {block: position for position, block in enumerate(part.tolist())}
        rows = np.array([lookup[block] for block in (addresses >> lay.ENTRY_BITS).tolist()], np.int64)
        wanted = expected[rows * lay.ENTRIES_PER_ARRAY_BLOCK + (addresses & lay.ENTRIES_PER_ARRAY_BLOCK - 1)]
        kept = _too_high(walk, "virtblock entry", [f"0x{address * 16:x}" for address in addresses.tolist()], counts, wanted)
        if len(kept):
            walk.fixes.append(virtblocks.sealed_homes(addresses[kept], indexes[kept], wanted[kept].astype(np.int64)))
    walk.entries.clear()


def check_slot_counts(walk: Walk) -> None:
    """Compare the slot words, the used counts of their tables, and the number of used slots."""
    slots = walk.device.slots
    total = 0
    for level, first, block, used in slots.iter_tables():
        walk.expect(np.array([block]), word.LEAF, "slot table")
        if level:
            continue
        numbers = np.arange(first << lay.TABLE_BITS, first + 1 << lay.TABLE_BITS, dtype=np.int64)
        base = block * lay.WORDS_PER_BLOCK
        present = walk.device.journal.array[base : base + lay.TABLE_ENTRIES] != 0
        total += int(present.sum())
        if int(present.sum()) != used:
            walk.find(
                "error", "slot table", f"slots from {first << lay.TABLE_BITS}", f"{int(present.sum())} are in use, the pointer says {used}"
            )
        inside = np.minimum(numbers, len(walk.slots) - 1)
        expected = np.where(numbers < len(walk.slots), walk.slots[inside], 0)
        for number in numbers[~present & (expected > 0)][:_MOST_FINDINGS].tolist():
            walk.find("error", "slot word", f"slot {number}", "is named but free")
        counts, crcs = slots.get(numbers[present])
        wanted = expected[present]
        found = counts.astype(np.int64)
        kept = _too_high(walk, "slot word", [f"slot {number}" for number in numbers[present].tolist()], found, wanted)
        if len(kept):
            at = base + (numbers[present][kept] & lay.TABLE_ENTRIES - 1)
            walk.fixes.append((at, slots.sealed(numbers[present][kept], wanted[kept].astype(np.uint64), crcs[kept])))
    if slots.used != total:
        walk.find("error", "root word", "used_slots", f"is {slots.used}, {total} slots are in use")


def _too_high(walk: Walk, structure: str, places: list[str], found: Ints, wanted: Ints) -> Ints:
    """Note counts that differ from what is expected; return the positions whose counts can be lowered."""
    for position in _first(found < wanted):
        walk.find("error", structure, places[position], f"count is {found[position]}, named {wanted[position]} times")
    high = np.flatnonzero(found > wanted)
    # What nothing names would have to leave its array or table: its data may be all that is left of something.
    walk.fixable &= not (wanted[high] == 0).any()
    for position in high[:_MOST_FINDINGS].tolist():
        walk.find("leak", structure, places[position], f"count is {found[position]}, named {wanted[position]} times", fixable=True)
    return high[wanted[high] > 0]


def _first(wrong: NDArray[np.bool_]) -> list[int]:
    return np.flatnonzero(wrong)[:_MOST_FINDINGS].tolist()  # type: ignore[no-any-return,unused-ignore]
