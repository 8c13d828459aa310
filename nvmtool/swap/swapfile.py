"""A swap file: open it, swap pages out and in, and keep its storage thin (T4).

One process, the VM's or a defragmenter's where no VM runs, has it open for writing. A frame's word says whether its page is in memory,
in a slot, or was never touched; the words of a storage block say how many of its slots are used. Both change in the one
transaction mechanism. Pages are written to free slots and are durable before the record that names them; a slot that a record frees is
free only after that record is durable; storage goes back after that too.

Killed anywhere: each frame is in its slot with the contents that were swapped out, or was in memory and went with the process.
"""

from __future__ import annotations

import math
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..errors import BusyError, DamagedError, NoSpaceError, NotFoundError, RefusedError, UsageError
from ..media.imagefile import ImageFile, close_file, open_file, take_lock
from ..media.journal import distinct, runs
from ..media.pagefile import PageFile
from ..media.root import Root
from ..media.store import FileStore
from . import layout as lay
from .density import Density
from .frames import (
    IN_MEMORY,
    UNTOUCHED,
    frame_state,
    frame_states,
    may_be_in_blocks,
    memory_word,
    memory_words,
    slot_words,
    storage_states,
    storage_words,
)
from .opening import open_storage, read_fields, wait_for_helper
from .remote import Service
from .slots import Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ..media.store import Store
    from .storage import Storage

    Ints = NDArray[np.int64]

__all__ = ["IN_MEMORY", "UNTOUCHED", "SwapFile"]

_MOST_AT_ONCE = 4096
# Words that a commit may need for storage blocks, beside those of frames.
_SPARE_WORDS = 4096
_FRAMES_AT_ONCE = 1 << 18
_HELPER_SECONDS = 10.0


class SwapFile:
    """An open swap file. Use it as a context manager. Frames and slots are numbers of 4 KiB pages."""

    def __init__(self, store: Store, pages: PageFile, fields: dict[str, Any], storage: Storage, *, writable: bool, fd: int = -1) -> None:
        """Stand on an open store; `open` is the usual way. Raises DamagedError."""
        self.path = store.path
        self.fields = fields
        self.nframes: int = fields["nframes"]
        self.slots_per_block: int = fields["slots_per_block"]
        self.nblocks: int = fields["nblocks"]
        self.nslots = self.nblocks * self.slots_per_block
        self.block_bytes = self.slots_per_block * lay.PAGE
        self.data_offset: int = fields["data_start"] * lay.PAGE
        self.writable = writable
        self.pages = pages
        self.storage = storage
        self._file = ImageFile(store, fields["log_start"], fields["log_blocks"], writable=writable, fd=fd)
        self.journal = self._file.journal
        self.root = Root(self.journal, lay.SWAP_ROOT, lay.SWAP_ROOT_PLACE)
        self._words = self.journal.words
        self._frame_base: int = fields["frame_start"] * lay.WORDS_PER_PAGE
        self._storage_base: int = fields["storage_start"] * lay.WORDS_PER_PAGE
        # How many pages each block holds by the frame words; -1 for blocks without storage.
        self.used = self._read_storage_words()
        self._used = self.used.data
        self._touched: set[int] = set()
        # Blocks that hold no page any more; those that nobody took again give their storage back.
        self._emptied: set[int] = set()
        # Called with a frame that leaves its slot.
        self.on_leave: Callable[[int], None] | None = None
        self.service: Service | None = None
        self._slots: Slots | None = None
        self._working = False

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = False, reservation: str | Path | None = None) -> SwapFile:
        """Open a swap file; a writable one finishes what a killed process left.

        Raises FormatError, DamagedError, BusyError that names who holds it, NotFoundError, RefusedError or StorageError.
        """
        path = Path(path)
        fd = open_file(path, writable=writable)
        with ExitStack() as opened:
            opened.callback(close_file, fd)
            fields = read_fields(path, fd)
            take_lock(fd, path, writable=writable)
            if writable:
                wait_for_helper(fd, path)
            store = FileStore(path, fd, fields["data_start"] * lay.PAGE, writable=writable)
            opened.callback(store.close)
            pages = PageFile(path, fd, writable=writable)
            opened.callback(pages.close)
            storage = open_storage(path, fields, pages, reservation, writable=writable)
            opened.callback(storage.close)
            swap = cls(store, pages, fields, storage, writable=writable, fd=fd)
            if writable:
                swap.recover()
            opened.pop_all()
        return swap

    def __enter__(self) -> Self:
        """Return the swap file."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Commit and close; after an exception close without committing."""
        self.close(commit=error is None)

    @property
    def uuid_text(self) -> str:
        """The file's UUID as people write it."""
        return str(uuid.UUID(bytes=self.fields["uuid"]))

    @property
    def slots(self) -> Slots:
        """Which slots are free; known on a writable file only."""
        if self._slots is None:
            raise RefusedError(f"{self.path}: opened for reading")
        return self._slots

    @property
    def density(self) -> Density:
        """The density structure: slots in use, and those that are not free yet."""
        return self.slots.density

    @property
    def max_batch(self) -> int:
        """The most pages that one `swap_out` takes."""
        return min(_MOST_AT_ONCE, self.journal.max_words // 4)

    @property
    def used_slots(self) -> int:
        """How many slots hold a page."""
        return int(self.used[self.used > 0].sum())

    @property
    def blocks_allocated(self) -> int:
        """How many storage blocks have storage."""
        return int((self.used >= 0).sum())

    @property
    def blocks_optimal(self) -> int:
        """How many storage blocks would hold all pages."""
        return -(-self.used_slots // self.slots_per_block)

    def state_of(self, frame: int) -> int:
        """Return a frame's slot, IN_MEMORY or UNTOUCHED; raises DamagedError."""
        index = self._frame_base + frame
        return frame_state(self._words[index], frame, self.nslots, index * 8)

    def states(self, frames: Ints) -> Ints:
        """Return the states of frames, int64 array; raises DamagedError."""
        return frame_states(self.journal.array[self._frame_base + frames], frames, self.nslots, self._frame_base * 8)

    def states_of_range(self, first: int, behind: int) -> Ints:
        """Return the states of consecutive frames, int64 array; raises DamagedError."""
        words = self.journal.array[self._frame_base + first : self._frame_base + behind]
        return frame_states(words, np.arange(first, behind), self.nslots, self._frame_base * 8)

    def frames_in_blocks(self, first: int, behind: int, blocks: NDArray[np.bool_]) -> Ints:
        """Return those of consecutive frames, ascending, whose slots are in chosen storage blocks; raises DamagedError for one of them."""
        words = self.journal.array[self._frame_base + first : self._frame_base + behind]
        frames = np.flatnonzero(may_be_in_blocks(words, blocks, self.slots_per_block)) + first
        slots = self.states(frames)
        return frames[blocks[slots // self.slots_per_block]]

    def read_pages(self, frames: Ints, out: NDArray[np.uint8]) -> None:
        """Read frames that are in slots into rows of 4096 bytes; the frames stay where they are. Raises NotFoundError."""
        states = self.states(frames)
        if (states < 0).any():
            raise NotFoundError(f"{self.path}: frame {int(frames[states < 0][0])} is not swapped")
        order = np.argsort(states, kind="stable")
        ordered, done = states[order], 0
        for first, count in runs(distinct(ordered)):
            rows = [out[row].data for row in order[done : done + count].tolist()]
            self.pages.read(self.offset_of(first), rows)
            done += count

    def offset_of(self, slot: int) -> int:
        """Return where a slot begins in the file, in bytes."""
        return self.data_offset + slot * lay.PAGE

    def swap_out(self, frames: Ints, pages: Sequence[memoryview]) -> None:
        """Write the pages of frames (distinct, in memory or untouched) to free slots; durable on return.

        Raises UsageError for a frame that is swapped already, NoSpaceError or RefusedError when there is no storage, BusyError when
        readers hold up the log: then nothing changed, and the pages are the caller's still.
        """
        if len(frames) > self.max_batch:
            raise UsageError(f"{len(frames)} pages are more than one swap-out takes ({self.max_batch})")
        before = self.states(frames)
        if (before >= 0).any():
            raise UsageError(f"{self.path}: frame {int(frames[before >= 0][0])} is swapped already")
        if self.journal.pending_words > self.journal.max_words // 2:
            self.commit()
        slots = self._take_slots_patiently(len(frames))
        try:
            self._write(slots, pages)
            self._name(frames, slots)
            self.commit()
        except BaseException:  # an interrupt too: what was not committed is in memory still
            self._unname(frames, before, slots)
            raise

    def swap_in(self, frame: int, into: memoryview) -> None:
        """Fill 4096 bytes with a frame's page, which is in memory from now on; its slot is free with the next commit.

        Raises NotFoundError when the frame is not swapped.
        """
        slot = self.state_of(frame)
        if slot < 0:
            raise NotFoundError(f"{self.path}: frame {frame} is not swapped")
        if self.journal.pending_words >= self.journal.max_words - _SPARE_WORDS:
            self.commit()
        self.pages.read(self.data_offset + slot * lay.PAGE, [into])
        if self.on_leave is not None:
            self.on_leave(frame)
        self.journal.set_word(self._frame_base + frame, memory_word(frame))
        block = slot // self.slots_per_block
        self._used[block] -= 1
        self._touched.add(block)
        self.slots.freed.append(slot)

    def touch(self, frame: int) -> None:
        """Note that a frame that was never touched is in memory from now on; durable with the next commit."""
        if self.state_of(frame) != UNTOUCHED:
            raise UsageError(f"{self.path}: frame {frame} was touched before")
        self.journal.set_word(self._frame_base + frame, memory_word(frame))

    def forget(self, frames: Ints) -> None:
        """Say that frames which are swapped are in memory, without reading their pages; durable with the next commit."""
        states = self.states(frames)
        if (states < 0).any():
            raise NotFoundError(f"{self.path}: frame {int(frames[states < 0][0])} is not swapped")
        if self.on_leave is not None:
            for frame in frames.tolist():
                self.on_leave(frame)
        self.journal.set_words(self._frame_base + frames, memory_words(frames))
        self._count(states, -1)
        self.slots.freed.extend(states.tolist())

    def move(self, frames: Ints, sources: Ints, targets: Ints) -> None:
        """Let frames that are in `sources` name `targets`, where durable copies of their pages are; durable with the next commit."""
        self.journal.set_words(self._frame_base + frames, slot_words(frames, targets))
        self._count(sources, -1)
        self._count(targets, 1)
        self.slots.freed.extend(sources.tolist())

    def serve(self) -> None:
        """Be a VM: let defragmenters in other processes ask this one; `poll` answers them.

        Readers that hold up the log are waited for as long as they stay, for a VM that ends loses what it has in memory.
        """
        self._file.reader_patience = math.inf
        self.service = Service(self)

    def poll(self) -> bool:
        """Answer a defragmenter's request, if there is one; return whether there was. Call it between two faults."""
        return self.service is not None and self.service.poll()

    def commit(self) -> None:
        """Make swap-ins and moves durable, then give back the storage of blocks that became empty; raises as `swap_out` does.

        Where the reservation is busy, or the file system too full to move storage, it goes back with a later commit.
        """
        self._commit_words()
        if self._touched:
            blocks = self._touched_blocks()
            self._touched.clear()
            self.slots.release()
            self._emptied.update(blocks[self.used[blocks] == 0].tolist())
        if self._emptied:
            with suppress(BusyError, NoSpaceError):
                self._give_back()

    def recover(self) -> None:
        """Learn which slots are free, and bring in order what a killed process left; raises DamagedError."""
        self._slots = Slots(self._taken_slots(), self.slots_per_block)
        occupied = self.used > 0
        # A block that counts no page was being given back: it may be a hole already, whether absent blocks had storage or not.
        if self.root.get("working") or (self.used == 0).any() or self.storage.is_unsettled():
            self.storage.recover(occupied)
            self._mark_absent(np.flatnonzero(self.used == 0))

    def close(self, *, commit: bool = True) -> None:
        """Close the file, with its log empty unless readers are still there."""
        try:
            copying = self.service is not None and not self.service.close(_HELPER_SECONDS, commit=commit)
            if self.writable and commit:
                if copying:  # a copy that comes late may bring storage: the next process is to look for it
                    self._begin_work()
                self.commit()
                self.commit()  # the words of what the first one gave back
                if not copying:
                    self._rest()
        finally:
            self.storage.close()
            self.pages.close()
            self._file.close()

    def _take_slots_patiently(self, count: int) -> Ints:
        """Reserve free slots; where a helper holds the last ones, let it finish, however long it takes: failing would lose pages."""
        try:
            return self._take_slots(count)
        except (NoSpaceError, RefusedError):
            if self.service is None or not self.service.wait_until_free(math.inf):
                raise
        return self._take_slots(count)

    def _take_slots(self, count: int) -> Ints:
        """Reserve free slots, in new storage blocks where those with storage have none left; raises NoSpaceError or RefusedError."""
        slots = self.slots.take(count)
        missing = count - len(slots)
        if missing == 0:
            return slots
        try:
            blocks = self._take_storage(-(-missing // self.slots_per_block))
            return np.concatenate([slots, self.slots.take_in(blocks, missing)])
        except (NoSpaceError, RefusedError):
            # Blocks that are being emptied have room: better a page there than none.
            self.density.restore()
            more = self.slots.take(missing)
            slots = np.concatenate([slots, more])
            if len(more) == missing:
                return slots
            self.slots.put_back(slots)
            raise

    def _take_storage(self, nblocks: int) -> Ints:
        # What could not go back yet is at hand.
        kept = [block for block in sorted(self._emptied) if self.used[block] == 0 and not self.density.taken[block]]
        free = np.array(kept[:nblocks], np.int64)
        others = self.density.empty_blocks(nblocks)
        free = np.sort(np.concatenate([free, np.setdiff1d(others, free)[: nblocks - len(free)]]))
        if len(free) < nblocks:
            raise RefusedError(f"{self.path}: all {self.nslots} slots are taken")
        absent = free[self.used[free] < 0]
        if len(absent):
            self._begin_work()
            self.storage.take(absent)
            self.used[absent] = 0
            self._touched.update(absent.tolist())
        return free

    def _begin_work(self) -> None:
        """Say durably that absent blocks may have storage from now on, once per process."""
        if not self._working:
            self.root.put("working", 1)
            # Frames that came into memory meanwhile go into this record, and so must their blocks' counts.
            self._commit_words()
            self._working = True

    def _commit_words(self) -> None:
        """Make all words durable, those of the changed storage blocks included; what they free is not free yet."""
        empties = False
        if self._touched:
            blocks = self._touched_blocks()
            used = self.used[blocks]
            words = storage_words(blocks, np.maximum(used, 0), used >= 0)
            self.journal.set_words(self._storage_base + blocks, words)
            if empties := not self._working and bool((used == 0).any()):
                # Killed before their storage goes back, the next process must look for it.
                self.root.put("working", 1)
        # The pages must be durable before the record that names them.
        self.pages.fence()
        self.journal.commit()
        self._working |= empties

    def _touched_blocks(self) -> Ints:
        return np.fromiter(sorted(self._touched), np.int64, len(self._touched))

    def _rest(self) -> None:
        with suppress(BusyError):  # the log keeps what cannot go home while somebody reads
            if self.root.get("working") and not self._emptied:
                # What was given back must be gone before the file says so: nobody would look for it again.
                self.pages.fence()
                self.root.put("working", 0)
                self.journal.commit()
            self.journal.checkpoint(patient=False)

    def _write(self, slots: Ints, pages: Sequence[memoryview]) -> None:
        order = np.argsort(slots, kind="stable")
        ordered, done = slots[order], 0
        straight = bool((np.diff(order) == 1).all())
        for first, count in runs(ordered):
            batch = pages[done : done + count] if straight else [pages[i] for i in order[done : done + count].tolist()]
            self.pages.write(self.offset_of(first), batch)
            done += count

    def _name(self, frames: Ints, slots: Ints) -> None:
        self.journal.set_words(self._frame_base + frames, slot_words(frames, slots))
        self._count(slots, 1)

    def _unname(self, frames: Ints, before: Ints, slots: Ints) -> None:
        """Undo a swap-out that was not committed."""
        now = self.states(frames)
        if (now == slots).all():
            self.journal.set_words(self._frame_base + frames, memory_words(frames))
            self._count(slots, -1)
            # The record may be durable all the same: these slots are free only after the one that takes it back.
            self.slots.freed.extend(slots.tolist())
        else:
            self.slots.put_back(slots)

    def _count(self, slots: Ints, difference: int) -> None:
        blocks, counts = np.unique(slots // self.slots_per_block, return_counts=True)
        self.used[blocks] += difference * counts
        self._touched.update(blocks.tolist())

    def _give_back(self) -> None:
        blocks = np.fromiter(sorted(self._emptied), np.int64, len(self._emptied))
        blocks = blocks[self.used[blocks] == 0]
        taken = self.density.taken[blocks] > 0
        if not taken.all():
            self.storage.give_back(blocks[~taken])
            self._mark_absent(blocks[~taken])
        # Slots that are held for pages on their way may come free without one.
        self._emptied = set(blocks[taken].tolist())

    def _mark_absent(self, blocks: Ints) -> None:
        """Say that blocks have no storage any more; durable with the next commit, and harmless before: they hold nothing."""
        self.used[blocks] = -1
        self._touched.update(blocks.tolist())

    def _read_storage_words(self) -> Ints:
        stored = self.journal.array[self._storage_base : self._storage_base + self.nblocks]
        return storage_states(stored, self.slots_per_block, self._storage_base * 8)

    def _taken_slots(self) -> NDArray[np.bool_]:
        """Return which slots frames name; raises DamagedError when that contradicts itself or the storage-block words."""
        taken, count = np.zeros(self.nslots, bool), 0
        for word, nwords in self.journal.iter_written_words(self._frame_base, self.nframes):
            first, behind = word - self._frame_base, word - self._frame_base + nwords
            for start in range(first, behind, _FRAMES_AT_ONCE):
                states = self.states_of_range(start, min(start + _FRAMES_AT_ONCE, behind))
                slots = states[states >= 0]
                taken[slots] = True
                count += len(slots)
        by_block = taken.reshape(-1, self.slots_per_block).sum(axis=1)
        wrong = np.flatnonzero(by_block != np.maximum(self.used, 0))
        what = ""
        if len(wrong):
            block = int(wrong[0])
            what = f"storage block {block} counts {int(self.used[block])} used slots, frames name {int(by_block[block])}"
        elif int(by_block.sum()) != count:
            what = "two frames name one slot"
        if what:
            raise DamagedError(f"{self.path}: {what}; nvmtool swap check tells all")
        return taken
