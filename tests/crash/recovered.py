"""What recovery makes of a crash state, without opening it: the product's journal replays the log, and a key says what can be read.

Two states with the same key differ only in what nothing reads: free blocks, what free slots hold, words that the log overrides, and void
records. One of them is judged in full, the others are counted as duplicates (and a sample of them is judged too, see `enumeration.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.errors import NvmtoolError
from nvmtool.media import word
from nvmtool.media.journal import RECORD_MAGIC, Journal
from nvmtool.region import layout as lay
from nvmtool.region.header import choose_header

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from nvmtool.region.header import Header

    Words = NDArray[np.uint64]

PER_BLOCK = lay.WORDS_PER_BLOCK
_MAGIC = int.from_bytes(RECORD_MAGIC.ljust(8, b"\0"), "little")
_PATH = Path("state.nvm")


@dataclass(frozen=True)
class Outcome:
    """What a journal finds in the log: `tag` tells outcomes apart, `pages` are the blocks that the replay changed, with their contents.

    `tail` is the word index behind the last valid record.
    """

    tag: tuple[object, ...]
    tail: int
    pages: NDArray[np.int64]
    contents: Words


class _Image:
    """As much of a store as replaying needs."""

    def __init__(self, words: Words) -> None:
        self.path = _PATH
        self.size = words.nbytes
        self.view = words.view(np.uint8)


class Replayer:
    """Replays logs over images of one geometry."""

    def __init__(self, header: Header) -> None:
        """Take the areas from a header."""
        self.log_start, self.log_blocks = header.log_start, header.log_blocks
        self.data_start, self.nblocks = header.data_start, header.data_blocks
        self.counts = slice(header.count_start * PER_BLOCK, header.count_start * PER_BLOCK + self.nblocks)
        self.log = slice(self.log_start * PER_BLOCK, (self.log_start + self.log_blocks) * PER_BLOCK)
        self.generation_word = self.log.start
        self._first_record = self.log.start + PER_BLOCK

    def replay(self, words: Words, *, restore: Words | None = None) -> Outcome:
        """Replay the log of an image over it; `restore` gives the words that its changed blocks get back afterwards."""
        blocks = words.reshape(-1, PER_BLOCK)
        try:
            journal = Journal(_Image(words), self.log_start, self.log_blocks, writable=False)  # type: ignore[arg-type]
        except NvmtoolError as error:
            none = np.empty(0, np.int64)
            if restore is not None:
                words[:] = restore
            return Outcome((str(error),), 0, none, blocks[none])
        pages = np.unique(np.concatenate([*journal._changed_pages, np.empty(0, np.int64)]))
        contents = blocks[pages]
        tag = (journal.generation, journal.sequence, self._residue(words, journal), hash_words(contents.reshape(-1)))
        if restore is not None:
            blocks[pages] = restore.reshape(-1, PER_BLOCK)[pages]
        return Outcome(tag, journal._tail // 8, pages, contents)

    def scan(self, words: Words, durable: Words, first: int) -> Callable[[], Outcome]:
        """Return a function that replays the log of `words` as it is when called, and leaves the rest of it durable.

        Between the calls only log words from index `first` on change. The records before that are read once: the journal goes on behind
        them, and where it finds no record there, the outcome is the durable one, but for what void records look like.
        """
        without = self.replay(words, restore=durable)
        if not len(without.tag) > 1 or first < without.tail:
            return lambda: self.replay(words, restore=durable)
        journal = Journal(_Image(words), self.log_start, self.log_blocks, writable=False)  # type: ignore[arg-type]
        words[:] = durable
        start = journal.sequence, journal._tail

        def outcome() -> Outcome:
            journal.sequence, journal._tail = start
            try:
                if next(journal._iter_records(), None) is not None:
                    return self.replay(words, restore=durable)
            except NvmtoolError:
                return self.replay(words, restore=durable)
            tag = (*without.tag[:2], self._residue(words, journal), *without.tag[3:])
            return Outcome(tag, without.tail, without.pages, without.contents)

        return outcome

    def _residue(self, words: Words, journal: Journal) -> int:
        """Return which blocks behind the last valid record look like a record's first: a later commit might bring them to life."""
        if journal._tail // 8 >= self.log.stop:
            return 0
        heads = words[journal._tail // 8 : self.log.stop].reshape(-1, PER_BLOCK)
        alive = (heads[:, 0] == _MAGIC) & (heads[:, 1] == journal.generation)
        return int.from_bytes(np.packbits(alive).tobytes(), "little") if alive.any() else 0

    def free_mask(self, words: Words) -> NDArray[np.bool_]:
        """Return, per block of the image, whether nothing reads it: the log, and blocks whose count word is 0."""
        free = np.zeros(len(words) // PER_BLOCK, bool)
        free[self.log_start : self.log_start + self.log_blocks] = True
        free[self.data_start : self.data_start + self.nblocks] = words[self.counts] == 0
        return free

    def used_slots(self, words: Words, nslots: int) -> NDArray[np.bool_]:
        """Return, per slot, whether its slot word is present; all where the table is broken, for the oracle to say so."""
        used = np.zeros(nslots, bool)
        used[0] = True
        tables = [(3, 0, int(words[lay.ROOT_BLOCK * PER_BLOCK + lay.field_index(lay.ROOT, "slot_table")]))]
        for level, first, pointer in tables:
            block = pointer >> 8 & lay.ADDRESS_MASK
            if pointer == 0:
                continue
            if block >= len(words) // PER_BLOCK:
                return np.ones(nslots, bool)
            found = words[block * PER_BLOCK : (block + 1) * PER_BLOCK]
            for position in np.flatnonzero(found).tolist():
                index = first << lay.TABLE_BITS | position
                if level:
                    tables.append((level - 1, index, int(found[position])))
                elif index < nslots:
                    used[index] = True
        return used

    def key(self, words: Words, mass: Words, outcome: Outcome) -> tuple[object, ...]:
        """Return the key of what can be read of an image over which its log was replayed: without a sound header, nothing but that."""
        try:
            choose_header(words[:PER_BLOCK].tobytes(), words[PER_BLOCK : 2 * PER_BLOCK].tobytes(), _PATH)
        except NvmtoolError as problem:
            return (str(problem),)
        used = np.flatnonzero(~self.free_mask(words))
        home = hash_words(np.concatenate([words.reshape(-1, PER_BLOCK)[used].reshape(-1), used.astype(np.uint64)]))
        slots = np.flatnonzero(self.used_slots(words, len(mass) // PER_BLOCK))
        far = hash_words(np.concatenate([mass.reshape(-1, PER_BLOCK)[slots].reshape(-1), slots.astype(np.uint64)]))
        error = outcome.tag if len(outcome.tag) == 1 else (outcome.tag[1] != 0, outcome.tag[2])
        return (home, far, error)


def mix(values: Words, places: Words) -> Words:
    """Return a hash of each value at its place; sums of them tell images apart."""
    mixed = (values ^ places * np.uint64(word.PLACE_FACTOR)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB) + places * np.uint64(2)
    return mixed ^ mixed >> np.uint64(32)


def hash_words(words: Words) -> int:
    """Return a 64-bit hash of words in order."""
    return int(mix(words, np.arange(len(words), dtype=np.uint64)).sum())
