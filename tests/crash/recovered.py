"""What recovery makes of a crash state, without opening it: the product's journal replays each log, and a key says what can be read.

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

from .subject import PER_BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .subject import Subject

    Words = NDArray[np.uint64]
    Ints = NDArray[np.int64]

_MAGIC = int.from_bytes(RECORD_MAGIC.ljust(8, b"\0"), "little")


@dataclass(frozen=True)
class Outcome:
    """What journals find in their logs, an element for each log.

    `tags` tell outcomes apart; `pages` are the blocks that the replay changed, with their contents. `tails` are the word indexes behind the
    last valid records, `generations` None where a log could not be read.
    """

    tags: tuple[tuple[object, ...], ...]
    generations: tuple[int | None, ...]
    tails: tuple[int, ...]
    pages: Ints
    contents: Words

    def key(self) -> tuple[object, ...]:
        """Return what matters beside the words at home: errors, and void records that a later commit might bring to life."""
        return tuple(tag if len(tag) == 1 else (tag[1] != 0, tag[2]) for tag in self.tags)


class _Image:
    """As much of a store as replaying needs."""

    path = Path("state.nvm")

    def __init__(self, words: Words) -> None:
        self.size = words.nbytes
        self.view = words.view(np.uint8)


class Log:
    """One log in a state: it stands in a medium, whose words begin at `start` of the state."""

    def __init__(self, medium: slice, log_start: int, log_blocks: int) -> None:
        """Take the log's area, in blocks of its medium."""
        self._medium = medium
        self._log_start, self._log_blocks = log_start, log_blocks
        self.area = slice(medium.start + log_start * PER_BLOCK, medium.start + (log_start + log_blocks) * PER_BLOCK)
        self.generation_word = self.area.start

    def _journal(self, words: Words) -> Journal:
        return Journal(_Image(words[self._medium]), self._log_start, self._log_blocks, writable=False)  # type: ignore[arg-type]

    def replay(self, words: Words, restore: Words | None = None) -> Outcome:
        """Replay the log over a state; `restore` gives the words that its changed blocks get back afterwards."""
        blocks = words.reshape(-1, PER_BLOCK)
        try:
            journal = self._journal(words)
        except NvmtoolError as error:
            if restore is not None:
                words[self._medium] = restore[self._medium]
            none = np.empty(0, np.int64)
            return Outcome(((str(error),),), (None,), (0,), none, blocks[none])
        first = self._medium.start // PER_BLOCK
        pages = np.unique(np.concatenate([*journal._changed_pages, np.empty(0, np.int64)])) + first
        contents = blocks[pages]
        tag = (journal.generation, journal.sequence, self._residue(words, journal), hash_words(contents.reshape(-1)))
        if restore is not None:
            blocks[pages] = restore.reshape(-1, PER_BLOCK)[pages]
        return Outcome((tag,), (journal.generation,), (self._tail(journal),), pages, contents)

    def _tail(self, journal: Journal) -> int:
        return self._medium.start + journal._tail // 8

    def scan(self, words: Words, durable: Words, first: int) -> Callable[[], Outcome]:
        """Return a function that replays the log of `words` as it is when called, and leaves the rest of it durable.

        Between the calls only log words from index `first` on change. The records before that are read once: the journal goes on behind
        them, and where it finds no record there, the outcome is the durable one, but for what void records look like.
        """
        without = self.replay(words, durable)
        if without.generations[0] is None or first < without.tails[0]:
            return lambda: self.replay(words, durable)
        journal = self._journal(words)
        words[self._medium] = durable[self._medium]
        start = journal.sequence, journal._tail

        def outcome() -> Outcome:
            journal.sequence, journal._tail = start
            try:
                if next(journal._iter_records(), None) is not None:
                    return self.replay(words, durable)
            except NvmtoolError:
                return self.replay(words, durable)
            tag = (*without.tags[0][:2], self._residue(words, journal), *without.tags[0][3:])
            return Outcome((tag,), without.generations, without.tails, without.pages, without.contents)

        return outcome

    def _residue(self, words: Words, journal: Journal) -> int:
        """Return which blocks behind the last valid record look like a record's first: a later commit might bring them to life."""
        tail = self._tail(journal)
        if tail >= self.area.stop:
            return 0
        heads = words[tail : self.area.stop].reshape(-1, PER_BLOCK)
        alive = (heads[:, 0] == _MAGIC) & (heads[:, 1] == journal.generation)
        return int.from_bytes(np.packbits(alive).tobytes(), "little") if alive.any() else 0


class Logs:
    """All logs of a state."""

    def __init__(self, *logs: Log) -> None:
        """Serve these logs."""
        self.each = logs

    def find(self, at: int) -> int | None:
        """Return the number of the log in which a word lies."""
        return next((number for number, log in enumerate(self.each) if at in range(log.area.start, log.area.stop)), None)

    def contain(self, at: Ints) -> NDArray[np.bool_]:
        """Tell of some words whether they lie in a log."""
        found = np.zeros(len(at), bool)
        for log in self.each:
            found |= (at >= log.area.start) & (at < log.area.stop)
        return found

    def replay(self, words: Words, *, restore: Words | None = None) -> Outcome:
        """Replay all logs over a state; `restore` gives the words that the changed blocks get back afterwards."""
        return _joined([log.replay(words, restore) for log in self.each])

    def scan(self, words: Words, durable: Words, changing: Ints) -> Callable[[], Outcome]:
        """Return a function that replays the logs of `words` as they are when called; only the words `changing` change meanwhile."""
        parts: list[Callable[[], Outcome]] = []
        for log in self.each:
            mine = changing[(changing >= log.area.start) & (changing < log.area.stop)]
            if len(mine):
                parts.append(log.scan(words, durable, int(mine.min())))
            else:
                known = log.replay(words, durable)
                parts.append(lambda known=known: known)  # type: ignore[misc]
        return lambda: _joined([part() for part in parts])


def _joined(parts: list[Outcome]) -> Outcome:
    if len(parts) == 1:
        return parts[0]
    return Outcome(
        tuple(part.tags[0] for part in parts),
        tuple(part.generations[0] for part in parts),
        tuple(part.tails[0] for part in parts),
        np.concatenate([part.pages for part in parts]),
        np.concatenate([part.contents for part in parts]),
    )


def key_of(subject: Subject, words: Words, outcome: Outcome) -> tuple[object, ...]:
    """Return the key of what can be read of a state over which its logs were replayed: without sound headers, nothing but that."""
    if problem := subject.opens(words):
        return (problem,)
    read = np.flatnonzero(subject.read_at_home(words) | subject.read_far(words))
    return (hash_words(np.concatenate([words[read], read.astype(np.uint64)])), *outcome.key())


def mix(values: Words, places: Words) -> Words:
    """Return a hash of each value at its place; sums of them tell images apart."""
    mixed = (values ^ places * np.uint64(word.PLACE_FACTOR)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB) + places * np.uint64(2)
    return mixed ^ mixed >> np.uint64(32)


def hash_words(words: Words) -> int:
    """Return a 64-bit hash of words in order."""
    return int(mix(words, np.arange(len(words), dtype=np.uint64)).sum())
