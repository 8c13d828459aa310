"""The counts of blocks and mass slots against what a walk expects of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError
from ..media import word
from . import layout as lay

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .check import Walk

    Ints = NDArray[np.int64]

_AT_ONCE = 1 << 18
_MOST_FINDINGS = 100


def check_block_counts(walk: Walk) -> None:
    """Compare every count word and group word of the data area; too high is a leak, too low an error.

    That a block is lent its count word alone says: nothing names it.
    """
    blocks = walk.device.blocks
    lent, whole = 0, True
    for start in range(blocks.start, blocks.end, _AT_ONCE):
        numbers = np.arange(start, min(start + _AT_ONCE, blocks.end), dtype=np.int64)
        try:
            kinds, counts = blocks.counts(numbers)
        except DamagedError as error:
            walk.damaged("count word", error)
            whole = False
            continue
        lent_here = kinds == word.LENT
        lent += int(lent_here.sum())
        unnamed = walk.references[numbers - walk.start] == 0
        expected = np.where(lent_here & unnamed, 1, walk.references[numbers - walk.start])
        expected_kinds = np.where(lent_here & unnamed, np.uint8(word.LENT), walk.kinds[numbers - walk.start])
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
        whole = False
        severity = "leak" if found_used > used else "error"
        walk.find(severity, "group word", f"group {group}", f"counts {found_used} used blocks, there are {used}", fixable=found_used > used)
    _check_lent(walk, lent, whole=whole)


def _check_lent(walk: Walk, lent: int, *, whole: bool) -> None:
    """Compare the root words of lending with the count words; where those are not `whole`, one of a lent block may be lost."""
    root = walk.device.root
    if root.get("lent_blocks") != lent:
        # A block that looks leaked may be one that a host uses: freed, it could become data.
        whole &= root.get("lent_blocks") < lent or walk.leaked_blocks == 0
        walk.find("error", "root word", "lent_blocks", f"is {root.get('lent_blocks')}, {lent} blocks are lent", fixable=whole)
        walk.fix(*root.sealed("lent_blocks", lent))
    tag = root.find("lender_tag")
    if lent and (tag is None or not 0 < tag < lay.LENDER_TAGS):
        walk.find("error", "root word", "lender_tag", f"{'is absent' if tag is None else f'{tag} is out of range'}, {lent} blocks are lent")
    elif not lent and tag is not None:
        walk.find("error", "root word", "lender_tag", f"is {tag}, nothing is lent", fixable=whole)
        walk.fix(root.sealed("lender_tag", 0)[0], 0)


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
        kept = walk.compare("slot word", partial(_slot_name, numbers[present]), found, wanted)
        if len(kept):
            at = base + (numbers[present][kept] & lay.TABLE_ENTRIES - 1)
            walk.fixes.append((at, slots.sealed(numbers[present][kept], wanted[kept].astype(np.uint64), crcs[kept])))
    if slots.used != total:
        walk.find("error", "root word", "used_slots", f"is {slots.used}, {total} slots are in use")


def _slot_name(slots: Ints, position: int) -> str:
    return f"slot {int(slots[position])}"


def _first(wrong: NDArray[np.bool_]) -> list[int]:
    return np.flatnonzero(wrong)[:_MOST_FINDINGS].tolist()  # type: ignore[no-any-return,unused-ignore]
