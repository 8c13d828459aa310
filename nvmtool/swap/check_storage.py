"""Check the storage-block words of a swap file against what frames name, and both against what the file system has stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError
from ..media.store import translated
from ..media.sysio import iter_extents
from . import layout as lay
from .frames import decode_storage, require_storage_word, storage_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .check import Walk
    from .raw import RawSwap

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

_MOST_FIRSTS = 100


@dataclass(frozen=True)
class Stored:
    """What the file system has: `slots`, bool each, with all their bytes written; `blocks`, bool each, with any storage at all."""

    slots: Bools
    blocks: Bools


def find_stored(raw: RawSwap) -> Stored:
    """Ask the file system (FIEMAP) what has storage, in time and memory of its extents; raises StorageError where it does not tell."""
    slots, blocks = np.zeros(raw.nslots, bool), np.zeros(raw.nblocks, bool)
    block_bytes = raw.slots_per_block * lay.PAGE
    reached = 0
    with translated(raw.path):
        for extent in iter_extents(raw.file.fd, raw.data_offset, raw.nslots * lay.PAGE):
            first = extent.offset - raw.data_offset
            behind = first + extent.length
            blocks[first // block_bytes : -(-behind // block_bytes)] = True
            if extent.written:
                # A page may be in two extents, where the file system's blocks are smaller.
                start = reached // lay.PAGE if first == reached else -(-first // lay.PAGE)
                slots[start : behind // lay.PAGE] = True
                reached = behind
    return Stored(slots, blocks)


def check_storage(walk: Walk, *, working: bool) -> None:
    """Compare words, frames and storage; `working`: blocks without a page may have storage, the next writer gives it back."""
    raw = walk.raw
    used, bad = decode_storage(raw.storage_words, raw.slots_per_block)
    named = walk.taken.reshape(-1, raw.slots_per_block).sum(axis=1)
    _check_words(walk, bad)
    _check_counts(walk, np.where(bad, named, used), named)
    if walk.stored is not None:
        _check_holes(walk, walk.taken & ~walk.stored.slots)
        if not working:
            _check_leaks(walk, walk.stored.blocks & (named == 0))
    # A word that says "storage, but no page" stands while a process is between giving the storage back and saying so.
    wrong = np.flatnonzero(bad | (np.maximum(used, 0) != named))
    walk.fixes.append((raw.storage_base + wrong, storage_words(wrong, named[wrong], named[wrong] > 0)))


def _check_words(walk: Walk, bad: Bools) -> None:
    raw = walk.raw

    def say(block: int) -> tuple[str, str]:
        offset = (raw.storage_base + block) * 8
        try:
            require_storage_word(int(raw.storage_words[block]), block, raw.slots_per_block, offset)
        except DamagedError as error:
            return f"storage block {block} (0x{offset:x})", str(error).partition(": ")[2]
        raise AssertionError("a word is bad by one rule and sound by the same")

    walk.find_each("error", "storage word", np.flatnonzero(bad), say, fixable=True)


def _check_counts(walk: Walk, used: Ints, named: Ints) -> None:
    def say(block: int) -> tuple[str, str]:
        return f"storage block {block}", f"counts {int(used[block])} used slots, frames name {int(named[block])}"

    def say_absent(block: int) -> tuple[str, str]:
        return f"storage block {block}", f"says there is no storage, frames name {int(named[block])} of its slots"

    walk.find_each("error", "storage word", np.flatnonzero((used >= 0) & (used < named)), say, fixable=True)
    # A frame word that was lost reads as never touched: counting anew would make the loss of its page final.
    walk.find_each("error", "storage word", np.flatnonzero(used > named), say)
    absent = np.flatnonzero((used < 0) & (named > 0))
    # Without the file system's word nobody knows whether the pages are there.
    walk.find_each("error", "storage word", absent, say_absent, fixable=walk.stored is not None)


def _check_holes(walk: Walk, missing: Bools) -> None:
    """Report used slots that lie in a hole, or in storage that was never written: their pages read as zeros."""
    by_block = missing.reshape(-1, walk.raw.slots_per_block)
    counts = by_block.sum(axis=1)
    blocks = np.flatnonzero(counts)
    firsts = {block: block * walk.raw.slots_per_block + int(by_block[block].argmax()) for block in blocks[:_MOST_FIRSTS].tolist()}
    naming = walk.frames_naming(list(firsts.values()))

    def say(block: int) -> tuple[str, str]:
        slot = firsts[block]
        frame = naming[slot].frames[0]
        return f"storage block {block}", f"{int(counts[block])} of its used slots have no data, the first is slot {slot} of frame {frame}"

    walk.find_each("error", "storage block", blocks, say)


def _check_leaks(walk: Walk, unneeded: Bools) -> None:
    leaked = np.flatnonzero(unneeded)
    walk.leaked_blocks = len(leaked)
    what = "holds no page, but has storage"
    walk.find_each("leak", "storage block", leaked, lambda block: (f"storage block {block}", what), fixable=True)
