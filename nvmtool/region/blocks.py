"""Block allocation and reference counts: one count word per block of the data area, one group word per 512 of them.

Free is a count word of 0. Blocks that a transaction dropped stay out of reach until the next checkpoint: until then the log, or a
reader of an older state, may still name them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import NoSpaceError
from ..media import word
from . import layout as lay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ..media.journal import Journal
    from ..media.word import Words
    from .header import Header

    BlockNumbers = NDArray[np.int64]

_GROUP = 512
_POOL = 512
_WINDOW_GROUPS = 64
_COUNT_LIMIT = 1 << 32
# Which of the 16 kinds a count word may have.
_COUNTED = np.isin(np.arange(16), (word.TABLE, word.BLOCK, word.ARRAY, word.LEAF, word.LENT))


class Blocks:
    """The data area's blocks. Numbers are block numbers of the image; arrays of them are int64."""

    def __init__(self, journal: Journal, header: Header) -> None:
        """Stand on the count and group words of an open journal."""
        self._journal = journal
        self._path = journal.store.path
        self.start = header.data_start
        self.nblocks = header.data_blocks
        self.end = self.start + self.nblocks
        self._counts = header.count_start * lay.WORDS_PER_BLOCK
        self._groups = header.group_start * lay.WORDS_PER_BLOCK
        self._ngroups = -(-self.nblocks // _GROUP)
        self._held = np.zeros(self.nblocks, bool)
        self._ntaken = 0
        in_log = journal.zeroed - self._counts
        in_log = in_log[(in_log >= 0) & (in_log < self.nblocks)]
        self._held[in_log] = True
        self._dropped: list[BlockNumbers] = [in_log + self.start]
        self._dropped_before_commit: list[BlockNumbers] = []
        self._pool: list[int] = []
        self._next_group = 0
        # What only jobs that free space may take: purging and deleting must work on a full device.
        self.reserve = max(8, min(1024, self.nblocks // 64))
        self._free = self.nblocks - int(self._used_by_group(0, self._ngroups).sum())
        journal.on_commit.append(self._after_commit)
        journal.on_rollback.append(self._after_rollback)
        journal.on_checkpoint.append(self._after_checkpoint)

    @property
    def free_blocks(self) -> int:
        """Blocks whose count word is 0, those that become reusable at the next checkpoint included."""
        return self._free

    @property
    def available(self) -> int:
        """Blocks that can be taken, after a checkpoint if need be, without touching the reserve."""
        return self._free - self._ntaken + len(self._pool) - self.reserve

    def take(self, count: int, *, from_reserve: bool = False, emptiest: bool = False) -> BlockNumbers:
        """Hold free blocks for this process, in ascending order, contiguous as far as they are.

        They are free on the medium until `name` counts them. `emptiest` takes them where most is free, in long runs and out of the way of
        what is written. Raises NoSpaceError; runs a checkpoint when only that frees enough.
        """
        search = self._search_emptiest if emptiest else self._search
        if count > self.available + (self.reserve if from_reserve else 0):
            raise NoSpaceError(
                f"{self._path}: device full: {count} more blocks of 4 KiB needed, {max(self.available, 0)} available; "
                "purge or delete snapshots, or discard"
            )
        found = search(count)
        if len(found) < count and self._pool:
            self.give_back(np.array([*found.tolist(), *self._pool], np.int64))
            self._pool.clear()
            found = search(count)
        if len(found) < count:
            self.give_back(found)
            if not self._journal.is_idle:
                raise NoSpaceError(f"{self._path}: device full until the open transaction commits")
            self._journal.checkpoint()
            found = search(count)
        if len(found) < count:
            self.give_back(found)
            raise NoSpaceError(f"{self._path}: device full: {count} blocks of 4 KiB needed")
        return found

    def take_one(self, *, from_reserve: bool = False) -> int:
        """Hold one free block; see `take`."""
        if self.available <= 0 and not from_reserve:
            self.take(1)  # raises with the full message
        if not self._pool:
            self._pool = self._search(_POOL)[::-1].tolist()
        return self._pool.pop() if self._pool else int(self.take(1, from_reserve=from_reserve)[0])

    def take_run(self, most: int) -> tuple[int, int]:
        """Hold up to `most` free blocks that follow one another; return (first, how many), at least one. See `take`."""
        first = self.take_one()
        count = 1
        pool = self._pool
        most = min(most, self.available + 1)
        while count < most:
            if not pool:
                self._pool = pool = self._search(_POOL)[::-1].tolist()
            if not pool or pool[-1] != first + count:
                break
            pool.pop()
            count += 1
        return first, count

    def hold(self, blocks: BlockNumbers) -> None:
        """Hold blocks again whose naming was rolled back, because their data still count."""
        self._ntaken += int((~self._held[blocks - self.start]).sum())
        self._held[blocks - self.start] = True

    def give_back(self, blocks: BlockNumbers) -> None:
        """Stop holding blocks that were never named."""
        self._held[blocks - self.start] = False
        self._ntaken -= len(blocks)

    def name(self, blocks: BlockNumbers, kind: int) -> None:
        """Count held blocks as used once, in the open transaction; a rollback makes them free."""
        self._store_counts(blocks, np.ones(len(blocks), np.uint64), kind)
        self._add_used(blocks, 1)
        self.give_back(blocks)

    def replace(self, old: int, new: int, kind: int) -> bool:
        """Free a block that is used once and count a held one in its place; False, and nothing is changed, where `old` is no such block.

        What `name` and `drop_refs` do, for one block each and at a tenth of the time.
        """
        if not self.start <= old < self.end:
            return False
        at, once = self._counts - self.start, kind << word.VALUE_BITS | 1
        if self._journal.words[at + old] != word.seal(once, word.place(lay.COUNT_PLACE, 0, old - self.start)):
            return False
        less, more = (old - self.start) // _GROUP, (new - self.start) // _GROUP
        if less != more:
            used = self._peek_group(less), self._peek_group(more)
            if used[0] < 1 or not 0 <= used[1] < _GROUP:
                return False
            self.store_group(less, used[0] - 1)
            self.store_group(more, used[1] + 1)
        self._journal.set_word(at + old, 0)
        self._journal.set_word(at + new, word.seal(once, word.place(lay.COUNT_PLACE, 0, new - self.start)))
        self._held[old - self.start], self._held[new - self.start] = True, False
        self._ntaken -= 1
        self._dropped_before_commit.append(np.array([old], np.int64))
        return True

    def counts(self, blocks: BlockNumbers) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return (kinds, reference counts), both 0 for free blocks; raises DamagedError for a broken count word."""
        words = self._journal.array[self._counts + blocks - self.start]
        used = words != 0
        if not used.all():
            kinds = np.zeros(len(blocks), np.uint64)
            counts = np.zeros(len(blocks), np.uint64)
            kinds[used], counts[used] = self.counts(blocks[used])
            return kinds, counts
        payloads = word.unseal_array(words, self._places(blocks), "count word", self._offsets(blocks))
        kinds, counts = payloads >> np.uint64(word.VALUE_BITS), payloads & np.uint64(word.VALUE_MASK)
        wrong = ~_COUNTED[kinds] | (counts == 0) | (counts >= _COUNT_LIMIT)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            word.damaged("count word", int(self._offsets(blocks)[first]), int(words[first]), f"of block {int(blocks[first])} is no count")
        return kinds, counts

    def count(self, block: int, kind: int) -> int:
        """Return the reference count of one used block that must be of a kind; raises DamagedError."""
        index = self._counts + block - self.start
        where = word.place(lay.COUNT_PLACE, 0, block - self.start)
        return word.open_pointer(self._journal.words[index], kind, where, _COUNT_LIMIT, "count word", index * 8)

    def add_refs(self, blocks: BlockNumbers, kind: int) -> None:
        """Add one reference for each number in the array (repeats count) to used blocks of a kind."""
        distinct, times = np.unique(blocks, return_counts=True)
        self._store_counts(distinct, self._checked(distinct, kind) + times.astype(np.uint64), kind)

    def drop_refs(self, blocks: BlockNumbers, kind: int) -> BlockNumbers:
        """Take one reference off for each number in the array and free blocks that reach zero; return those freed."""
        distinct, times = np.unique(blocks, return_counts=True)
        before = self._checked(distinct, kind)
        drops = times.astype(np.uint64)
        if (drops > before).any():
            worst = int(distinct[np.flatnonzero(drops > before)[0]])
            word.damaged("count word", int(self._offsets(np.array([worst]))[0]), 0, f"of block {worst} is too low")
        after = before - drops
        kept = after > 0
        self._store_counts(distinct[kept], after[kept], kind)
        freed = distinct[~kept]
        self.free(freed)
        return freed

    def free(self, blocks: BlockNumbers) -> None:
        """Free used blocks whatever their counts; they can be taken again after the next checkpoint."""
        if len(blocks):
            self._journal.set_words(self._counts + blocks - self.start, np.zeros(len(blocks), np.uint64))
            self._add_used(blocks, -1)
            self._dropped_before_commit.append(blocks)
            self._held[blocks - self.start] = True

    def _checked(self, blocks: BlockNumbers, kind: int) -> NDArray[np.uint64]:
        kinds, counts = self.counts(blocks)
        wrong = (kinds != kind) | (counts == 0)
        if wrong.any():
            block = int(blocks[np.flatnonzero(wrong)[0]])
            offset = int(self._offsets(np.array([block]))[0])
            word.damaged(
                "count word", offset, self._journal.words[offset >> 3], f"of block {block}, which is named as {word.KIND_NAMES[kind]}"
            )
        return counts

    def sealed_counts(self, blocks: BlockNumbers, counts: NDArray[np.uint64], kinds: NDArray[np.uint8]) -> tuple[NDArray[np.int64], Words]:
        """Return (word indexes, count words) for blocks; a count of 0 gives the word of a free block."""
        payloads = counts | kinds.astype(np.uint64) << np.uint64(word.VALUE_BITS)
        words = word.seal_array(payloads, self._places(blocks))
        words[counts == 0] = 0
        return self._counts + blocks - self.start, words

    def iter_of_kind(self, kind: int) -> Iterator[BlockNumbers]:
        """Yield the blocks of a kind in ascending order, a window of the count words at a time; raises DamagedError."""
        for first in range(0, self._ngroups, _WINDOW_GROUPS):
            end = min(first + _WINDOW_GROUPS, self._ngroups)
            if self._used_by_group(first, end).any():
                lo, hi = first * _GROUP, min(end * _GROUP, self.nblocks)
                words = self._journal.array[self._counts + lo : self._counts + hi]
                found = np.flatnonzero(words >> np.uint64(60) == np.uint64(kind)) + lo + self.start
                if len(found):
                    self._checked(found, kind)
                    yield found

    def iter_wrong_groups(self) -> Iterator[tuple[int, int, int]]:
        """Yield (group, blocks it counts as used, blocks whose count words are not 0) where the two differ."""
        for first in range(0, self._ngroups, _WINDOW_GROUPS):
            end = min(first + _WINDOW_GROUPS, self._ngroups)
            lo, hi = first * _GROUP, min(end * _GROUP, self.nblocks)
            used = np.zeros((end - first) * _GROUP, bool)
            used[: hi - lo] = self._journal.array[self._counts + lo : self._counts + hi] != 0
            right = used.reshape(-1, _GROUP).sum(axis=1)
            found = self._used_by_group(first, end)
            for position in np.flatnonzero(found != right).tolist():
                yield first + position, int(found[position]), int(right[position])

    def store_group(self, group: int, used: int) -> None:
        """Let a group word count that many used blocks, in the open transaction."""
        value = word.pointer(word.GROUP, used, word.place(lay.GROUP_PLACE, 0, group)) if used else 0
        self._journal.set_word(self._groups + group, value)

    def _peek_group(self, group: int) -> int:
        return word.peek(self._journal.words[self._groups + group], word.GROUP, word.place(lay.GROUP_PLACE, 0, group))

    def _store_counts(self, blocks: BlockNumbers, counts: NDArray[np.uint64], kind: int) -> None:
        self._journal.set_words(*self.sealed_counts(blocks, counts, np.full(len(blocks), kind, np.uint8)))

    def _places(self, blocks: BlockNumbers) -> Words:
        return word.places_array(lay.COUNT_PLACE, 0, blocks - self.start)

    def _offsets(self, blocks: BlockNumbers) -> Words:
        return ((self._counts + blocks - self.start) * 8).astype(np.uint64)

    def _used_by_group(self, first: int, end: int) -> NDArray[np.int64]:
        words = self._journal.array[self._groups + first : self._groups + end]
        used = np.zeros(len(words), np.int64)
        present = np.flatnonzero(words)
        if len(present):
            places = word.places_array(lay.GROUP_PLACE, 0, present + first)
            offsets = ((self._groups + first + present) * 8).astype(np.uint64)
            payloads = word.unseal_array(words[present], places, "group word", offsets)
            used[present] = (payloads & np.uint64(word.VALUE_MASK)).astype(np.int64)
            wrong = (payloads >> np.uint64(word.VALUE_BITS) != word.GROUP) | (used[present] == 0) | (used[present] > _GROUP)
            if wrong.any():
                bad = int(np.flatnonzero(wrong)[0])
                word.damaged("group word", int(offsets[bad]), int(words[present][bad]), "is no number of used blocks")
        return used

    def _add_used(self, blocks: BlockNumbers, sign: int) -> None:
        groups, times = np.unique((blocks - self.start) // _GROUP, return_counts=True)
        first, end = int(groups[0]), int(groups[-1]) + 1
        used = self._used_by_group(first, end)[groups - first] + sign * times
        if (used < 0).any() or (used > _GROUP).any():
            bad = int(groups[np.flatnonzero((used < 0) | (used > _GROUP))[0]])
            word.damaged("group word", (self._groups + bad) * 8, self._journal.words[self._groups + bad], "counts wrongly")
        payloads = used.astype(np.uint64) | np.uint64(word.GROUP << word.VALUE_BITS)
        sealed = word.seal_array(payloads, word.places_array(lay.GROUP_PLACE, 0, groups))
        sealed[used == 0] = 0
        self._journal.set_words(self._groups + groups, sealed)
        self._free -= sign * len(blocks)

    def _search(self, count: int) -> BlockNumbers:
        """Hold up to `count` free blocks, going round the groups once from where the last search ended."""
        parts: list[BlockNumbers] = []
        missing = count
        group = self._next_group
        for _ in range(-(-self._ngroups // _WINDOW_GROUPS) + 1):
            if missing == 0:
                break
            end = min(group + _WINDOW_GROUPS, self._ngroups)
            used = self._used_by_group(group, end)
            if used.sum() < (end - group) * _GROUP:
                lo, hi = group * _GROUP, min(end * _GROUP, self.nblocks)
                words = self._journal.array[self._counts + lo : self._counts + hi]
                free = np.flatnonzero((words == 0) & ~self._held[lo:hi])[:missing] + lo
                self._held[free] = True
                self._ntaken += len(free)
                missing -= len(free)
                parts.append(free + self.start)
            if missing:
                group = end if end < self._ngroups else 0
        self._next_group = group
        return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)

    def _search_emptiest(self, count: int) -> BlockNumbers:
        """Hold up to `count` free blocks, those of the groups with the most of them first."""
        used = self._used_by_group(0, self._ngroups)
        order = np.argsort(used, kind="stable")
        order = order[used[order] < _GROUP]
        parts: list[BlockNumbers] = []
        missing = count
        for start in range(0, len(order), _WINDOW_GROUPS):
            if missing == 0:
                break
            at = (order[start : start + _WINDOW_GROUPS, None] * _GROUP + np.arange(_GROUP)).reshape(-1)
            at = at[at < self.nblocks]
            free = at[(self._journal.array[self._counts + at] == 0) & ~self._held[at]][:missing]
            self._held[free] = True
            self._ntaken += len(free)
            missing -= len(free)
            parts.append(free + self.start)
        return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)

    def _after_commit(self) -> None:
        self._dropped += self._dropped_before_commit
        self._dropped_before_commit.clear()

    def _after_rollback(self) -> None:
        for blocks in self._dropped_before_commit:
            self._held[blocks - self.start] = False
        self._dropped_before_commit.clear()
        self._free = self.nblocks - int(self._used_by_group(0, self._ngroups).sum())

    def _after_checkpoint(self) -> None:
        for blocks in self._dropped:
            self._held[blocks - self.start] = False
        self._dropped.clear()
