"""Virtblock entries and the arrays that own them (T1; docs/format.md, section 7).

An entry stands at a fixed address as long as any level-1 entry names it, so that where its data are changes in one word. Arrays are
chains of blocks; a whole array changes hands by its first block, single blocks by relinking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, NoSpaceError
from ..media import word
from . import layout as lay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from ..media.journal import Journal
    from ..media.word import Words
    from .blocks import BlockNumbers, Blocks
    from .records import Record

    Addresses = NDArray[np.int64]
    Indexes = NDArray[np.int64]
    FindOwner = Callable[[int], Record]

_OWNER, _NEXT, _PREV, _LIVE = range(4)
_ENTRY_POSITIONS = np.arange(lay.FIRST_ENTRY, lay.ENTRIES_PER_ARRAY_BLOCK, dtype=np.int64)


class Virtblocks:
    """The virtblock entries of one region. Addresses are block * 256 + position."""

    def __init__(self, journal: Journal, blocks: Blocks, region: int) -> None:
        """Stand on the arrays of a region id."""
        self._journal = journal
        self._blocks = blocks
        self._region = region
        self._free: Addresses = np.empty(0, np.int64)
        self._with_holes: set[int] = set()
        journal.on_rollback.append(self.forget_free)

    # --- entries

    def targets(self, addresses: Addresses, indexes: Indexes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return (kinds, values) of where the data of entries are: BLOCK or SLOT.

        `indexes` are the logical blocks through which the entries were reached; raises DamagedError when an entry belongs to another.
        """
        words = self._journal.array[addresses * 2]
        offsets = (addresses * 16).astype(np.uint64)
        places = word.places_array(lay.ENTRY_PLACE, self._region, indexes)
        payloads = word.unseal_array(words, places, "virtblock entry", offsets)
        kinds = (payloads >> np.uint64(word.VALUE_BITS)).astype(np.uint8)
        values = (payloads & np.uint64(word.VALUE_MASK)).astype(np.int64)
        is_block = (kinds == word.BLOCK) & (values >= self._blocks.start) & (values < self._blocks.end)
        is_slot = (kinds == word.SLOT) & (values > 0) & (values < lay.MAX_SLOTS)
        wrong = ~(is_block | is_slot)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            word.damaged("virtblock entry", int(offsets[first]), int(words[first]), f"names {int(values[first])}, out of range")
        return kinds, values

    def sole_block(self, address: int, index: int) -> int:
        """Return the data block in NVM of an entry that is named once, -1 for any other entry."""
        words = self._journal.words
        if word.peek(words[address * 2 + 1], 0, word.place(lay.HOME_PLACE, 0, address)) != index << lay.COUNT_BITS | 1:
            return -1
        return word.peek(words[address * 2], word.BLOCK, word.place(lay.ENTRY_PLACE, self._region, index))

    def point_one(self, address: int, index: int, block: int) -> None:
        """Let one entry name another data block in NVM."""
        self._journal.set_word(address * 2, word.pointer(word.BLOCK, block, word.place(lay.ENTRY_PLACE, self._region, index)))

    def homes(self, addresses: Addresses) -> tuple[Indexes, NDArray[np.int64]]:
        """Return (logical blocks, reference counts) of present entries; raises DamagedError."""
        words = self._journal.array[addresses * 2 + 1]
        offsets = (addresses * 16 + 8).astype(np.uint64)
        places = word.places_array(lay.HOME_PLACE, 0, addresses)
        payloads = word.unseal_array(words, places, "virtblock entry home", offsets).astype(np.int64)
        counts = payloads & lay.COUNT_MASK
        if (counts == 0).any():
            first = int(np.flatnonzero(counts == 0)[0])
            word.damaged("virtblock entry home", int(offsets[first]), int(words[first]), "is named but has no references")
        return payloads >> lay.COUNT_BITS, counts

    def point(self, addresses: Addresses, indexes: Indexes, kind: int, values: NDArray[np.int64]) -> None:
        """Let entries name other data: the one word that purging and recalling change."""
        payloads = values.astype(np.uint64) | np.uint64(kind << word.VALUE_BITS)
        places = word.places_array(lay.ENTRY_PLACE, self._region, indexes)
        self._journal.set_words(addresses * 2, word.seal_array(payloads, places))

    def store_homes(self, addresses: Addresses, indexes: Indexes, counts: NDArray[np.int64]) -> None:
        """Store logical blocks and reference counts; raises NoSpaceError when a count is past its limit."""
        self._journal.set_words(*self.sealed_homes(addresses, indexes, counts))

    def sealed_homes(self, addresses: Addresses, indexes: Indexes, counts: NDArray[np.int64]) -> tuple[Indexes, Words]:
        """Return (word indexes, home words); raises NoSpaceError when a count is past its limit."""
        if (counts > lay.COUNT_MASK).any():
            raise NoSpaceError(f"{self._journal.store.path}: a block cannot be named more than {lay.COUNT_MASK} times")
        payloads = (indexes << lay.COUNT_BITS | counts).astype(np.uint64)
        return addresses * 2 + 1, word.seal_array(payloads, word.places_array(lay.HOME_PLACE, 0, addresses))

    def add_refs(self, addresses: Addresses) -> None:
        """Add one reference to each entry; the addresses must be distinct."""
        indexes, counts = self.homes(addresses)
        self.store_homes(addresses, indexes, counts + 1)

    def drop_refs(self, addresses: Addresses) -> tuple[Addresses, Indexes]:
        """Take one reference off for each address in the array; return the entries that reach zero, with their logical blocks.

        Those are still present: free them with `free`.
        """
        distinct, times = np.unique(addresses, return_counts=True)
        indexes, counts = self.homes(distinct)
        if (times > counts).any():
            first = int(np.flatnonzero(times > counts)[0])
            at = int(distinct[first])
            word.damaged("virtblock entry home", at * 16 + 8, self._journal.words[at * 2 + 1], "counts too few references")
        kept = times < counts
        self.store_homes(distinct[kept], indexes[kept], (counts - times)[kept])
        return distinct[~kept], indexes[~kept]

    def create(
        self, indexes: Indexes, kind: int, values: NDArray[np.int64], counts: NDArray[np.int64], owner: Record, state: int
    ) -> Addresses:
        """Make entries for logical blocks in the array of a state; return their addresses.

        `owner` is the record of the state with that id. Raises NoSpaceError.
        """
        addresses = self._take_free(len(indexes), owner, state)
        self.point(addresses, indexes, kind, values)
        self.store_homes(addresses, indexes, counts)
        return addresses

    def free(self, addresses: Addresses, find_owner: FindOwner) -> None:
        """Free distinct entries that nothing names any more; array blocks that become empty are freed too.

        `find_owner` returns the record of a state id; it is asked when the first block of an array goes.
        """
        if len(addresses):
            zeros = np.zeros(len(addresses), np.uint64)
            self._journal.set_words(addresses * 2, zeros)
            self._journal.set_words(addresses * 2 + 1, zeros)
            self._add_live(addresses, -1)
            for block in np.unique(addresses >> lay.ENTRY_BITS).tolist():
                if self._header(block, _LIVE) == 0:
                    self.unlink(block, find_owner(self.owner(block)))
                    self._blocks.free(np.array([block]))
                    self._with_holes.discard(block)
                    self._free = self._free[self._free >> lay.ENTRY_BITS != block]
                else:
                    self._with_holes.add(block)

    def forget_free(self) -> None:
        """Forget which entries are free: the running point has another array now, or a transaction was undone."""
        self._free = self._free[:0]
        self._with_holes.clear()

    # --- arrays

    def is_in_array(self, block: int, state: int) -> bool:
        """Tell whether a block belongs to a state's array."""
        kinds, _ = self._blocks.counts(np.array([block], np.int64))
        return int(kinds[0]) == word.ARRAY and self.owner(block) == state

    def following(self, block: int) -> int:
        """Return the next block in the array, 0 behind the last."""
        return self._pointer(block, _NEXT)

    def iter_array(self, head: int, nblocks: int, before: int = 0) -> Iterator[BlockNumbers]:
        """Yield the blocks of an array in batches of `nblocks`, in chain order, from the one behind `before` on.

        Raises DamagedError for a broken chain.
        """
        batch: list[int] = []
        block, previous, seen = head, before, 0
        while block:
            if self._pointer(block, _PREV) != previous or seen > self._blocks.nblocks:
                raise DamagedError(f"virtblock array block {block} at 0x{block * lay.BLOCK_SIZE:x}: chain is broken")
            following = self._pointer(block, _NEXT)
            batch.append(block)
            if len(batch) == nblocks:
                yield np.array(batch, np.int64)
                batch = []
            block, previous, seen = following, block, seen + 1
        if batch:
            yield np.array(batch, np.int64)

    def present_entries(self, blocks: BlockNumbers) -> tuple[Addresses, Indexes]:
        """Return (addresses, logical blocks) of the entries that are present in array blocks."""
        addresses = ((blocks << lay.ENTRY_BITS)[:, None] + _ENTRY_POSITIONS).reshape(-1)
        addresses = addresses[self._journal.array[addresses * 2 + 1] != 0]
        return addresses, self.homes(addresses)[0]

    def lives(self, blocks: BlockNumbers) -> Indexes:
        """Return how many entries of each array block are present, as its header says; raises DamagedError."""
        return self._headers(blocks, _LIVE)

    def owners(self, blocks: BlockNumbers) -> Indexes:
        """Return the state ids that array blocks belong to; raises DamagedError for another region's."""
        owners = self._headers(blocks, _OWNER)
        foreign = np.flatnonzero(owners >> lay.STATE_BITS != self._region)
        if len(foreign):
            self.owner(int(blocks[foreign[0]]))  # raises with the full message
        return owners & (1 << lay.STATE_BITS) - 1

    def owner(self, block: int) -> int:
        """Return the state id that an array block belongs to; raises DamagedError for another region's."""
        owner = self._header(block, _OWNER)
        if owner >> lay.STATE_BITS != self._region:
            raise DamagedError(
                f"virtblock array block {block} at 0x{block * lay.BLOCK_SIZE:x}: belongs to region {owner >> lay.STATE_BITS}"
            )
        return owner & (1 << lay.STATE_BITS) - 1

    def link(self, block: int, owner: Record, state: int) -> None:
        """Put a block at the front of a state's array."""
        head = owner.get_pointer("array", word.ARRAY)
        self._put(block, _OWNER, self._region << lay.STATE_BITS | state)
        self._put_pointer(block, _NEXT, head)
        self._put_pointer(block, _PREV, 0)
        if head:
            self._put_pointer(head, _PREV, block)
        owner.put_pointer("array", word.ARRAY, block)

    def unlink(self, block: int, owner: Record) -> None:
        """Take a block out of its array, whose state has the record `owner`."""
        before, after = self._pointer(block, _PREV), self._pointer(block, _NEXT)
        if before:
            self._put_pointer(before, _NEXT, after)
        else:
            owner.put_pointer("array", word.ARRAY, after)
        if after:
            self._put_pointer(after, _PREV, before)

    def _take_free(self, count: int, owner: Record, state: int) -> Addresses:
        tag = self._region << lay.STATE_BITS | state
        if len(self._free) and self._header(int(self._free[0]) >> lay.ENTRY_BITS, _OWNER) != tag:
            self.forget_free()
        parts: list[Addresses] = []
        taken: dict[int, Addresses] = {}
        while count:
            while not len(self._free):
                self._free = self._find_free(owner, state)
                before = taken.get(int(self._free[0]) >> lay.ENTRY_BITS) if len(self._free) else None
                if before is not None:
                    # What was taken here already has no home word yet, and would be found a second time.
                    self._free = self._free[~np.isin(self._free, before)]
            part, self._free = self._free[:count], self._free[count:]
            block = int(part[0]) >> lay.ENTRY_BITS  # free entries are those of one block
            taken[block] = np.concatenate([taken[block], part]) if block in taken else part
            # Counted at once, so that the next search does not take the same block for one with room.
            self._add_live(part, 1)
            parts.append(part)
            count -= len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _find_free(self, owner: Record, state: int) -> Addresses:
        head = owner.get_pointer("array", word.ARRAY)
        candidates = self._with_holes or ({head} if head else set())
        while candidates:
            block = candidates.pop()
            if self.owner(block) == state and self._header(block, _LIVE) < lay.LIVE_ENTRIES:
                addresses = (block << lay.ENTRY_BITS) + _ENTRY_POSITIONS
                free: Addresses = addresses[self._journal.array[addresses * 2 + 1] == 0]
                return free
        block = self._blocks.take_one()
        self._blocks.name(np.array([block]), word.ARRAY)
        self._journal.add_fresh(block)
        self._put(block, _LIVE, 0)
        self.link(block, owner, state)
        return (block << lay.ENTRY_BITS) + _ENTRY_POSITIONS

    def _add_live(self, addresses: Addresses, sign: int) -> None:
        blocks, times = np.unique(addresses >> lay.ENTRY_BITS, return_counts=True)
        for block, ntimes in zip(blocks.tolist(), times.tolist(), strict=True):
            live = self._header(block, _LIVE) + sign * ntimes
            if not 0 <= live <= lay.LIVE_ENTRIES:
                raise DamagedError(f"virtblock array block {block} at 0x{block * lay.BLOCK_SIZE:x}: counts its entries wrongly ({live})")
            self._put(block, _LIVE, live)

    def _header(self, block: int, field: int) -> int:
        index = block * lay.WORDS_PER_BLOCK + field
        return word.unseal(self._journal.words[index], _place(block, field), "virtblock array header", index * 8)

    def _headers(self, blocks: BlockNumbers, field: int) -> Indexes:
        at = blocks * lay.WORDS_PER_BLOCK + field
        places = word.places_array(lay.ARRAY_PLACE, 0, blocks << 2 | field)
        return word.unseal_array(self._journal.array[at], places, "virtblock array header", (at * 8).astype(np.uint64)).astype(np.int64)

    def _put(self, block: int, field: int, payload: int) -> None:
        self._journal.set_word(block * lay.WORDS_PER_BLOCK + field, word.seal(payload, _place(block, field)))

    def _pointer(self, block: int, field: int) -> int:
        index = block * lay.WORDS_PER_BLOCK + field
        stored = self._journal.words[index]
        if stored == 0:
            return 0
        value = word.open_pointer(stored, word.ARRAY, _place(block, field), self._blocks.end, "virtblock array link", index * 8)
        if value < self._blocks.start:
            word.damaged("virtblock array link", index * 8, stored, "names a block before the data area")
        return value

    def _put_pointer(self, block: int, field: int, target: int) -> None:
        index = block * lay.WORDS_PER_BLOCK + field
        self._journal.set_word(index, word.pointer(word.ARRAY, target, _place(block, field)) if target else 0)


def _place(block: int, field: int) -> int:
    return word.place(lay.ARRAY_PLACE, 0, block << 2 | field)
