"""The frame table and the storage-block words of a swap file: reading and sealing, scalar and vectorised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..media import word
from . import layout as lay

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..media.word import Words

    Ints = NDArray[np.int64]

IN_MEMORY = -1
UNTOUCHED = -2

_FRAME = word.place(lay.FRAME_PLACE, 0, 0)
_STORAGE = word.place(lay.STORAGE_PLACE, 0, 0)
_SLOT_BITS = word.SLOT << word.VALUE_BITS
_MEMORY_BITS = word.MEMORY << word.VALUE_BITS | 1
_STORAGE_BITS = word.STORAGE << word.VALUE_BITS


def slot_word(frame: int, slot: int) -> int:
    """Return the word of a frame that is in a slot; what is stored is slot + 1, so that two bytes differ from absent."""
    return word.seal(_SLOT_BITS | slot + 1, _FRAME | frame)


def memory_word(frame: int) -> int:
    """Return the word of a frame that is in memory."""
    return word.seal(_MEMORY_BITS, _FRAME | frame)


def slot_words(frames: Ints, slots: Ints) -> Words:
    """Return the words of frames that are in slots, arrays of equal shape."""
    payloads = slots.astype(np.uint64) + np.uint64(_SLOT_BITS + 1)
    return word.seal_array(payloads, word.places_array(lay.FRAME_PLACE, 0, frames))


def memory_words(frames: Ints) -> Words:
    """Return the words of frames that are in memory."""
    return word.seal_array(np.full(len(frames), _MEMORY_BITS, np.uint64), word.places_array(lay.FRAME_PLACE, 0, frames))


def frame_state(stored: int, frame: int, nslots: int, offset: int) -> int:
    """Return a frame's slot, IN_MEMORY or UNTOUCHED; `offset` is the word's byte in the file. Raises DamagedError."""
    if stored == 0:
        return UNTOUCHED
    payload = word.unseal(stored, _FRAME | frame, f"frame word {frame}", offset)
    kind, value = payload >> word.VALUE_BITS, payload & word.VALUE_MASK
    if kind == word.SLOT and 0 < value <= nslots:
        return value - 1
    if payload != _MEMORY_BITS:
        word.damaged(f"frame word {frame}", offset, stored, f"names neither memory nor one of {nslots} slots")
    return IN_MEMORY


def frame_states(stored: Words, frames: Ints, nslots: int, base: int) -> Ints:
    """Return the states of frames whose words are given; `base` is the first frame word's byte.

    Raises DamagedError for the first bad one.
    """
    states, bad = decode_frames(stored, frames, nslots)
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        frame_state(int(stored[at]), int(frames[at]), nslots, base + int(frames[at]) * 8)
    return states


def decode_frames(stored: Words, frames: Ints, nslots: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Return the states of frames whose words are given, and which words are bad; the states of those mean nothing."""
    states, bad = np.full(len(stored), UNTOUCHED, np.int64), np.zeros(len(stored), bool)
    present = np.flatnonzero(stored)
    if not len(present):
        return states, bad
    words = stored[present]
    unsound = word.syndrome_array(words, word.places_array(lay.FRAME_PLACE, 0, frames[present])) != 0
    kinds, values = words >> np.uint64(60), (words >> np.uint64(8) & np.uint64(word.VALUE_MASK)).astype(np.int64)
    in_slot = (kinds == word.SLOT) & (values > 0) & (values <= nslots)
    in_memory = words >> np.uint64(8) == _MEMORY_BITS
    bad[present] = unsound | ~(in_slot | in_memory)
    states[present] = np.where(in_slot, values - 1, IN_MEMORY)
    return states, bad


def may_be_in_blocks(stored: Words, blocks: NDArray[np.bool_], slots_per_block: int) -> NDArray[np.bool_]:
    """Tell which words seem to name slots in chosen blocks; a quick look that no checksum proves."""
    values = (stored >> np.uint64(8) & np.uint64(word.VALUE_MASK)).astype(np.int64) - 1
    numbers = np.minimum(values // slots_per_block, len(blocks) - 1)
    found: NDArray[np.bool_] = (stored >> np.uint64(60) == word.SLOT) & blocks[numbers]
    return found


def storage_words(blocks: Ints, used: Ints, present: NDArray[np.bool_]) -> Words:
    """Return the words of storage blocks: absent where they have no storage, else how many of their slots are used."""
    payloads = used.astype(np.uint64) + np.uint64(_STORAGE_BITS + 1)
    return np.where(present, word.seal_array(payloads, word.places_array(lay.STORAGE_PLACE, 0, blocks)), np.uint64(0))


def storage_states(stored: Words, slots_per_block: int, base: int) -> Ints:
    """Return the used slots of storage blocks 0 and on, -1 where a block has no storage; `base` is the first word's byte.

    Raises DamagedError for the first bad one.
    """
    used, bad = decode_storage(stored, slots_per_block)
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        require_storage_word(int(stored[at]), at, slots_per_block, base + at * 8)
    return used


def decode_storage(stored: Words, slots_per_block: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Return the used slots of storage blocks 0 and on, -1 without storage, and which words are bad; their counts mean nothing."""
    used, bad = np.full(len(stored), -1, np.int64), np.zeros(len(stored), bool)
    present = np.flatnonzero(stored)
    words = stored[present]
    unsound = word.syndrome_array(words, word.places_array(lay.STORAGE_PLACE, 0, present)) != 0
    values = (words >> np.uint64(8) & np.uint64(word.VALUE_MASK)).astype(np.int64)
    bad[present] = unsound | (words >> np.uint64(60) != word.STORAGE) | (values == 0) | (values > slots_per_block + 1)
    used[present] = values - 1
    return used, bad


def require_storage_word(stored: int, block: int, slots_per_block: int, offset: int) -> None:
    """Raise DamagedError for a bad storage word, `offset` bytes into the file."""
    what = f"storage word {block}"
    if word.open_pointer(stored, word.STORAGE, _STORAGE | block, slots_per_block + 2, what, offset) == 0:
        word.damaged(what, offset, stored, "counts no storage")
