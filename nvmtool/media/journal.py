"""The one transaction mechanism: a redo log of words over a private view (docs/format.md, section 10).

A transaction changes words in the store's private view. `commit` makes fresh blocks durable at home, then appends one record with
the changed words to the log; with that the transaction has happened. Nothing else goes home until `checkpoint`: committed
changes live in the view, which every later open rebuilds from the log. A checkpoint writes the changed blocks home, fences,
and voids the log by storing the next generation.

Crash anywhere: the records up to the last whole one count. Values are absolute, so applying them again changes nothing.
"""

from __future__ import annotations

import struct
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BusyError, DamagedError, NvmtoolError
from . import word
from .checksum import crc32c
from .store import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from .store import Chunk, Store
    from .word import Words

    Indexes = NDArray[np.int64]

LOG_RECORD = np.dtype(
    [
        ("magic", "S8"),
        ("generation", "<u8"),
        ("sequence", "<u8"),
        ("nwords", "<u4"),
        ("nblocks", "<u4"),
        ("reserved", "<u4"),
        ("crc", "<u4"),
    ]
)
_LOG_RECORD = struct.Struct("<8sQQIIII")
assert LOG_RECORD.itemsize == _LOG_RECORD.size == 40
RECORD_MAGIC = b"NVMLOGR"
MIN_LOG_BLOCKS = 32

LOG = 0x70
_GENERATION_PLACE = word.place(LOG, 0, 0)
_WORDS_PER_PAGE = PAGE // 8
_CRC_OFFSET = LOG_RECORD.itemsize - 4


class Journal:
    """Transactions over one store.

    `words` (memoryview of u8) and `array` (the same as a numpy array) are the current state, indexed by word; change them through
    `set_word` and `set_words` alone. One thread at a time.
    """

    def __init__(
        self,
        store: Store,
        log_start: int,
        log_blocks: int,
        *,
        writable: bool,
        no_readers: Callable[[bool], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Replay the log into the view; a writable journal also moves what it found home.

        `no_readers(patient)` gives a context in which no other process reads the image; checkpoints run inside it. It raises BusyError,
        after having waited when it is to be patient.
        """
        self.store = store
        self.array: Words = store.view.view("<u8")
        self.words = store.view.data.cast("B").cast("Q")
        self.on_commit: list[Callable[[], None]] = []
        self.on_rollback: list[Callable[[], None]] = []
        self.on_checkpoint: list[Callable[[], None]] = []
        self.writable = writable
        self._no_readers = no_readers
        self._start = log_start * PAGE
        self._end = (log_start + log_blocks) * PAGE
        self._scalars: list[tuple[int, int]] = []
        self._arrays: list[tuple[Indexes, Words]] = []
        self._array_words = 0
        self._fresh = np.zeros(store.size // PAGE, bool)
        self._fresh_blocks: list[int] = []
        self._logged: dict[int, Chunk] = {}
        self._changed_pages: list[Indexes] = []
        self.generation = self._read_generation()
        self.sequence = 0
        self._tail = self._start + PAGE
        self._no_room: BusyError | None = None
        # Words that the log makes 0: what they counted may not be used again before a checkpoint.
        self.zeroed: Indexes = np.empty(0, np.int64)
        self._replay()
        if writable and self.sequence:
            if self._tail - self._start > (self._end - self._start) // 2:
                self.checkpoint()
            else:
                with suppress(BusyError):  # readers need what is at home
                    self.checkpoint(patient=False)

    @staticmethod
    def format(store: Store, log_start: int) -> None:
        """Store the first generation word of an empty log; the caller fences."""
        first = word.pointer(word.NUMBER, 1, _GENERATION_PLACE)
        store.store_bytes(log_start * PAGE, [first.to_bytes(8, "little") + bytes(PAGE - 8)])

    @property
    def max_words(self) -> int:
        """How many words one transaction may change: its record fills at most half the log."""
        return ((self._end - self._start) // 2 - PAGE) // 16

    @property
    def pending_words(self) -> int:
        """How many word changes wait for the commit (the same word counts each time)."""
        return len(self._scalars) + self._array_words

    @property
    def is_idle(self) -> bool:
        """Whether no transaction is open."""
        return not (self._scalars or self._arrays or self._fresh_blocks or self._logged)

    @property
    def is_filling(self) -> bool:
        """Whether the log is more than an eighth full: a few commits more move it home, which takes longer than they do."""
        return self._tail - self._start > (self._end - self._start) // 8

    @property
    def is_outdated(self) -> bool:
        """Whether another process has moved the log home since this one read it; raises DamagedError."""
        return self._read_generation() != self.generation

    def set_word(self, index: int, value: int) -> None:
        """Change one word in the open transaction."""
        self._scalars.append((index, self.words[index]))
        self.words[index] = value

    def set_words(self, indexes: Indexes, values: Words) -> None:
        """Change words in the open transaction; the indexes must be distinct."""
        if len(indexes):
            if self._scalars:  # keep the order of changes, which rollback undoes backwards
                self._fold_scalars()
            self._arrays.append((indexes, self.array[indexes]))
            self._array_words += len(indexes)
            self.array[indexes] = values

    def add_fresh(self, block: int, content: Chunk | None = None) -> None:
        """Enter a block that nothing durable names yet: the commit writes it home whole, and its words need no log.

        Without content the block starts as zeros.
        """
        start = block * PAGE
        if content is None:
            self.store.view[start : start + PAGE] = 0
        else:
            self.store.view.data[start : start + PAGE] = content
        self._fresh[block] = True
        self._fresh_blocks.append(block)

    def add_data(self, block: int, content: Chunk) -> None:
        """Carry a data block in the log record itself: durable with the commit, in the same write."""
        self._logged[block] = content

    def store_data(self, block: int, chunks: list[Chunk]) -> None:
        """Store data at home in consecutive free blocks; the commit makes them durable before it names them."""
        self.store.store_bytes(block * PAGE, chunks)

    def commit(self) -> None:
        """Make the open transaction durable; on return it survives power loss.

        On a journal opened for reading this is a rehearsal: the view changes, nothing is stored. Raises StorageError or NoSpaceError
        from the medium, or BusyError when readers keep a log that is half full from going home; then call `rollback`.
        """
        if self.writable:
            if self._no_room is not None and not self.is_idle:
                raise self._no_room
            self._commit_durably()
        self._fresh[self._fresh_blocks] = False
        self._forget()
        for listener in self.on_commit:
            listener()
        filled, size = self._tail - self._start, self._end - self._start
        if filled > size // 2:
            try:
                self.checkpoint()
            except BusyError as error:
                self._no_room = error  # this commit has happened; the next one must not
        elif filled > size // 4:
            with suppress(BusyError):  # there is room yet to let them read on
                self.checkpoint(patient=False)

    def _commit_durably(self) -> None:
        if self.is_idle:
            self.store.fence()
            return
        changed = self._changed_words()
        fresh = np.array(self._fresh_blocks, np.int64)
        for first, length in runs(np.sort(fresh)) if len(fresh) else ():
            self.store.store_bytes(first * PAGE, [self._view_bytes(first, length)])
        # The log record names fresh blocks and data: all of them must be durable before it.
        self.store.fence()
        for block, content in self._logged.items():
            self.store.store_logged(block * PAGE, content)
        self._append(changed)
        self._changed_pages += [changed // _WORDS_PER_PAGE, fresh]

    def reload(self) -> None:
        """See what other processes committed since; for files whose writers take turns, each under the writer's lock.

        Costs two comparisons when nothing changed. Raises DamagedError.
        """
        assert self.is_idle, "an open transaction stands on words that others may have changed"
        generation = self._read_generation()
        if generation != self.generation:
            # Another process moved everything home: our private pages are older than what is there.
            self._drop_private(np.concatenate([*self._changed_pages, self.zeroed[:0]]))
            self._changed_pages.clear()
            self._no_room = None
            self.generation = generation
            self.sequence = 0
            self.zeroed = self.zeroed[:0]
            self._tail = self._start + PAGE
        tail = self._tail
        self._replay()
        if self._tail != tail:
            # Whoever wrote these records may have been killed before its flush; our next record must not be durable before them.
            self.store.adopt(tail, self._tail - tail)

    def rollback(self) -> None:
        """Undo the open transaction in the view; nothing of it was durable."""
        self._fold_scalars()
        for indexes, old in reversed(self._arrays):
            self.array[indexes] = old
        if self.writable:
            self._drop_undone()
        self._fresh[self._fresh_blocks] = False
        self._drop_private(np.array(self._fresh_blocks, np.int64))
        self._forget()
        for listener in self.on_rollback:
            listener()

    def make_room(self) -> None:
        """Try again what readers held up, before a transaction begins; raises BusyError while they stay."""
        if self._no_room is not None and self.is_idle:
            self.checkpoint(patient=False)

    def iter_written_words(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield (first, count) of the stretches of words that may differ from 0, on the medium or in the log; ascending, each word once."""
        behind = first
        pages = distinct(np.concatenate([np.empty(0, np.int64), *self._changed_pages]))
        logged = [(page * PAGE, npages * PAGE) for page, npages in runs(pages)]
        for offset, length in sorted([*self.store.iter_data(first * 8, count * 8), *logged]):
            start, end = max(offset // 8, behind), min(-(-(offset + length) // 8), first + count)
            if start < end:
                yield start, end - start
                behind = end

    def checkpoint(self, *, patient: bool = True) -> None:
        """Move all committed changes home and void the log; raises BusyError while readers stay, at once unless patient."""
        assert self.is_idle, "a checkpoint inside a transaction would make half of it durable"
        if self.writable:
            if self.sequence == 0:
                return
            self._move_home(patient)
        for listener in self.on_checkpoint:
            listener()

    def _move_home(self, patient: bool) -> None:
        pages = distinct(np.concatenate(self._changed_pages))
        with self._no_readers(patient):
            for first, length in runs(pages):
                self.store.store_bytes(first * PAGE, [self._view_bytes(first, length)])
            # All must be home before the records that could bring it there are void.
            self.store.fence()
            following = word.pointer(word.NUMBER, self.generation + 1, _GENERATION_PLACE)
            self.store.store_word(self._start, following)
            # The records must be void before the space they were written in is used again.
            self.store.fence()
        self._drop_private(pages)
        self._changed_pages.clear()
        self._no_room = None
        self.generation += 1
        self.sequence = 0
        self.zeroed = self.zeroed[:0]
        self._tail = self._start + PAGE

    def _read_generation(self) -> int:
        stored = self.words[self._start >> 3]
        return word.open_pointer(stored, word.NUMBER, _GENERATION_PLACE, 1 << 51, "log generation", self._start)

    def _replay(self) -> None:
        for indexes, values, blocks, contents in self._iter_records():
            self.array[indexes] = values
            pages = self.store.view.reshape(-1, PAGE)
            pages[blocks] = contents
            self._changed_pages += [indexes // _WORDS_PER_PAGE, blocks]
            self.zeroed = np.concatenate([self.zeroed, indexes[values == 0]])

    def _iter_records(self) -> Iterator[tuple[Indexes, Words, Indexes, NDArray[np.uint8]]]:
        """Yield (word indexes, values, block numbers, block contents) of each valid record in order."""
        view = self.store.view.data
        while self._tail + LOG_RECORD.itemsize <= self._end:
            head = np.frombuffer(view, LOG_RECORD, 1, self._tail)[0]
            nwords, nblocks = int(head["nwords"]), int(head["nblocks"])
            size = LOG_RECORD.itemsize + 16 * nwords + (8 + PAGE) * nblocks
            if bytes(head["magic"]) != RECORD_MAGIC or int(head["generation"]) != self.generation or int(head["sequence"]) != self.sequence:
                return
            record = self._whole_record(self._tail)
            if record is None:
                self.require_no_later_record()
                return
            body = np.frombuffer(record, "<u8", 2 * nwords + nblocks, LOG_RECORD.itemsize)
            indexes, values, blocks = np.split(body, [nwords, 2 * nwords])
            contents = np.frombuffer(record, np.uint8, PAGE * nblocks, size - PAGE * nblocks).reshape(-1, PAGE)
            self._check_targets(indexes, blocks)
            yield indexes.astype(np.int64), values, blocks.astype(np.int64), contents
            self.sequence += 1
            self._tail += -(-size // PAGE) * PAGE

    def _whole_record(self, offset: int) -> bytearray | None:
        """Return a record, its checksum taken as 0, where there is one that fits the log and whose checksum is right."""
        view = self.store.view.data
        head = np.frombuffer(view, LOG_RECORD, 1, offset)[0]
        size = LOG_RECORD.itemsize + 16 * int(head["nwords"]) + (8 + PAGE) * int(head["nblocks"])
        if offset + size > self._end:
            return None
        record = bytearray(view[offset : offset + size])
        record[_CRC_OFFSET : LOG_RECORD.itemsize] = bytes(4)
        return record if crc32c(record) == int(head["crc"]) else None

    def require_no_later_record(self) -> None:
        """Raise DamagedError when a whole record of this generation stands behind one that is missing.

        A record is written when the one before it is durable, so that no crash leaves this: the one before was damaged later. Looks at
        each block of the log; opening does so only where a record seems to be torn. Another process may append meanwhile.
        """
        pages = self.store.view[self._start : self._end].reshape(-1, PAGE)
        heads = pages[(self._tail - self._start) // PAGE :, : LOG_RECORD.itemsize].copy().view(LOG_RECORD).reshape(-1)
        # Looked for after the copy was made: what a writer appended before those is whole by now.
        tail, sequence = self._skip_whole_records()
        behind = (heads["magic"] == RECORD_MAGIC) & (heads["generation"] == self.generation) & (heads["sequence"] > sequence)
        for position in np.flatnonzero(behind).tolist():
            if self._whole_record(self._tail + position * PAGE) is not None:
                raise DamagedError(
                    f"log record {sequence} at 0x{tail:x}: is damaged, for record {int(heads['sequence'][position])} behind it is whole"
                )

    def _skip_whole_records(self) -> tuple[int, int]:
        """Return where the record is missing, and its sequence, that follows on all those which another process has appended."""
        tail, sequence = self._tail, self.sequence
        while tail + LOG_RECORD.itemsize <= self._end:
            record = self._whole_record(tail)
            head = np.frombuffer(self.store.view.data, LOG_RECORD, 1, tail)[0]
            ours = bytes(head["magic"]) == RECORD_MAGIC and int(head["generation"]) == self.generation
            if record is None or not ours or int(head["sequence"]) != sequence:
                break
            tail += -(-len(record) // PAGE) * PAGE
            sequence += 1
        return tail, sequence

    def _check_targets(self, indexes: Words, blocks: Words) -> None:
        pages = np.concatenate([indexes // _WORDS_PER_PAGE, blocks])
        inside_log = (pages >= self._start // PAGE) & (pages < self._end // PAGE)
        if (pages >= self.store.size // PAGE).any() or inside_log.any():
            raise DamagedError(f"log record {self.sequence} at 0x{self._tail:x}: names a block that it must not change")

    def _append(self, changed: Indexes) -> None:
        head = _LOG_RECORD.pack(RECORD_MAGIC, self.generation, self.sequence, len(changed), len(self._logged), 0, 0)
        blocks = struct.pack(f"<{len(self._logged)}Q", *self._logged)
        parts = [head, changed.tobytes(), self.array[changed].tobytes(), blocks, *self._logged.values()]
        record = bytearray(b"".join(parts))
        record[_CRC_OFFSET : LOG_RECORD.itemsize] = crc32c(record).to_bytes(4, "little")
        padded = -(-len(record) // PAGE) * PAGE
        if self._tail + padded > self._end:
            raise NvmtoolError(f"{self.store.path}: a transaction of {len(changed)} words does not fit the log")
        record.extend(bytes(padded - len(record)))
        self.store.store_durable(self._tail, [record])
        self._tail += padded
        self.sequence += 1

    def _changed_words(self) -> Indexes:
        scalars = {index for index, _ in self._scalars}
        if not self._arrays and not self._fresh_blocks:
            return np.array(sorted(scalars), np.int64)
        changed = [np.fromiter(scalars, np.int64, len(scalars)), *(indexes for indexes, _ in self._arrays)]
        merged = distinct(np.concatenate(changed))
        return merged[~self._fresh[merged // _WORDS_PER_PAGE]]

    def _fold_scalars(self) -> None:
        if self._scalars:
            # Oldest value wins for a word that changed twice: undoing runs backwards, so keep the first of each.
            first: dict[int, int] = {}
            for index, old in self._scalars:
                first.setdefault(index, old)
            self._arrays.append((np.fromiter(first, np.int64, len(first)), np.fromiter(first.values(), "<u8", len(first))))
            self._array_words += len(first)
            self._scalars.clear()

    def _forget(self) -> None:
        self._scalars.clear()
        self._arrays.clear()
        self._array_words = 0
        self._fresh_blocks.clear()
        self._logged.clear()

    def _drop_undone(self) -> None:
        """Forget private copies that are equal to what is at home again: a later reload must not see them instead of it."""
        none = np.empty(0, np.int64)
        touched = distinct(np.concatenate([none, *(indexes // _WORDS_PER_PAGE for indexes, _ in self._arrays)]))
        committed = np.concatenate([none, *self._changed_pages])
        self._drop_private(touched[~np.isin(touched, committed)])

    def _view_bytes(self, block: int, nblocks: int) -> memoryview:
        return self.store.view.data[block * PAGE : (block + nblocks) * PAGE]

    def _drop_private(self, blocks: Indexes) -> None:
        for first, length in runs(distinct(blocks)):
            self.store.drop_private(first * PAGE, length * PAGE)


def runs(numbers: Indexes) -> Iterator[tuple[int, int]]:
    """Yield (first, length) of each run of consecutive numbers in a sorted array of distinct ones."""
    if len(numbers):
        starts, lengths = run_arrays(numbers)
        yield from zip(starts.tolist(), lengths.tolist(), strict=True)


def distinct(numbers: Indexes) -> Indexes:
    """Return the distinct numbers in ascending order; sorting is much faster than numpy's hashing for our arrays."""
    ordered = np.sort(numbers)
    if len(ordered) < 2:
        return ordered
    first: Indexes = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
    return first


def run_arrays(numbers: Indexes) -> tuple[Indexes, Indexes]:
    """Return the first numbers and the lengths of the runs of consecutive numbers; the order is kept."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    bounds = np.concatenate([[0], breaks, [len(numbers)]])
    return numbers[bounds[:-1]] if len(numbers) else numbers, np.diff(bounds)
