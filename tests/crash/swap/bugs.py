"""The planted bugs of swap files: fences dropped, slots used and storage released too early, guards skipped, words sealed for other places."""

from __future__ import annotations

from nvmtool.media.pagefile import PageFile
from nvmtool.swap import frames
from nvmtool.swap.density import Density
from nvmtool.swap.moves import Mover
from nvmtool.swap.slots import Slots
from nvmtool.swap.storage import PlainStorage
from nvmtool.swap.swapfile import SwapFile

from ..planting import plant
from . import operations

_COMMIT, _WORDS = SwapFile.commit, SwapFile._commit_words
_OUT = SwapFile.swap_out

FENCES = [
    plant("swap: pages are not durable before their record", _WORDS, "    self.pages.fence()\n", "", "out-one"),
    plant(
        "swap: the record before the pages' fence",
        _WORDS,
        "    self.pages.fence()\n    self.journal.commit()",
        "    self.journal.commit()\n    self.pages.fence()",
        "out-one",
    ),
    plant(
        "swap: storage given back is not gone before the file says that nobody works",
        SwapFile._rest,
        "            self.pages.fence()\n",
        "            pass\n",
        "in-whole-block",
        redundant="the second commit of closing fences the pages before the words of what the first one gave back",
    ),
    plant(
        "swap: absent blocks get storage before the file says that somebody works",
        SwapFile._begin_work,
        "        self._commit_words()\n",
        "        pass\n",
        "out-into-new-block",
    ),
    plant(
        "swap: copies are not durable before the frames name them",
        operations.copy,
        "    swap.pages.fence()\n",
        "",
        "relocate",
        redundant="SwapFile.commit fences the pages of its own process too; only a helper's copies need their own fence",
    ),
    plant("page file: fence without fdatasync", PageFile.fence, "os.fdatasync(self.fd)", "pass", "proof:out-into-new-block"),
    plant("page file: written pages do not count as a store", PageFile.write, "    self._dirty = True\n", "", "proof:out-one"),
    plant(
        "page file: allocated storage does not count as a store",
        PageFile.allocate,
        "    self._dirty = True\n",
        "",
        "proof:out-into-new-block",
        redundant="pages are written before the fence that the record needs, and a fence covers the whole file",
    ),
    plant("page file: punched storage does not count as a store", PageFile.punch, "    self._dirty = True\n", "", "proof:in-whole-block"),
    plant(
        "page file: pages written to the wrong place",
        PageFile.write,
        "self._writer.write(offset, chunks)",
        "self._writer.write(offset + 4096, chunks)",
        "proof:out-one",
    ),
]

REUSE = [
    plant(
        "swap: the slot of a page that was swapped in is free at once",
        SwapFile.swap_in,
        "    self.slots.freed.append(slot)\n",
        "    self.slots.put_back(np.array([slot]))\n",
        "in-and-out-again",
    ),
    plant(
        "swap: forgotten slots are free at once",
        SwapFile.forget,
        "self.slots.freed.extend(states.tolist())",
        "self.slots.put_back(states)",
        "forget-and-out-again",
    ),
    plant(
        "swap: the slots that pages were moved from are free at once",
        SwapFile.move,
        "self.slots.freed.extend(sources.tolist())",
        "self.slots.put_back(sources)",
        redundant="the commit follows at once, and only then is anything taken",
    ),
    plant(
        "swap: freed slots are free before the record",
        _WORDS,
        "    # The pages must be durable",
        "    self.slots.release()\n    # The pages must be durable",
        redundant="nothing takes slots inside a commit",
    ),
    plant(
        "swap: an interrupted swap-out's slots are free at once",
        SwapFile._unname,
        "        self.slots.freed.extend(slots.tolist())\n",
        "        self.slots.put_back(slots)\n",
        "out-interrupted",
    ),
    plant(
        "swap: an interrupted swap-out is not undone",
        SwapFile._unname,
        "        self.journal.set_words(self._frame_base + frames, memory_words(frames))\n        self._count(slots, -1)\n        # The record may be durable all the same: these slots are free only after the one that takes it back.\n        self.slots.freed.extend(slots.tolist())\n",
        "        self.slots.put_back(slots)\n",
        "out-interrupted",
    ),
    plant(
        "swap: empty blocks are given back before the record",
        _COMMIT,
        "    self._commit_words()\n",
        "    self._emptied.update(np.flatnonzero(self.used == 0).tolist())\n    self._give_back()\n    self._commit_words()\n",
        "in-whole-block",
    ),
    plant(
        "swap: blocks are given back that a helper's copies are for",
        SwapFile._give_back,
        "    taken = self.density.taken[blocks] > 0\n",
        "    taken = np.zeros(len(blocks), bool)\n",
        "relocate-target-empties",
    ),
    plant(
        "swap: blocks with pages are given back",
        SwapFile._give_back,
        "    blocks = blocks[self.used[blocks] == 0]\n",
        "",
        "in-several",
        redundant="a block in which no slot is taken holds no page",
    ),
    plant(
        "swap: targets are not held",
        Mover.plan,
        "swap.slots.take(found)",
        "swap.slots.take(found)\n    swap.slots.put_back(targets)\n    swap.slots._flat[targets] = False",
        "relocate-one-returns",
    ),
    plant(
        "mover: dropped targets stay held",
        Mover.abort,
        "    targets = self._moves.targets\n    self._forget_plan()\n",
        "    targets = self._moves.targets[:0]\n    self._forget_plan()\n",
        "relocate-dropped+in-everything",
    ),
    plant("slots: taken ones are not marked", Slots._take_in_block, "    row[slots] = True\n", "", "out-several+out-the-rest"),
    plant(
        "slots: taken ones of new blocks are not marked",
        Slots.take_in,
        "    self._flat[slots] = True\n",
        "",
        "out-into-new-block+out-the-rest",
    ),
    plant("slots: what was put back stays taken", Slots.put_back, "    self._flat[slots] = False\n", "", "in-several+out-whole-block"),
    plant(
        "slots: freed ones are never released",
        Slots.release,
        "        self.put_back(np.array(self.freed, np.int64))\n",
        "",
        "in-whole-block",
    ),
    plant(
        "density: withdrawn blocks are filled",
        Density.withdraw,
        "self.withdrawn[blocks] = True",
        "pass",
        "relocate",
        redundant="the fullest blocks are filled first, and those that are emptied come last anyway: a matter of speed",
    ),
]

MOVES = [
    plant(
        "mover: a frame that left is moved all the same",
        Mover._on_leave,
        "        self._stayed[position] = False\n",
        "        pass\n",
        "relocate-one-leaves",
    ),
    plant(
        "mover: nobody says that a frame leaves",
        SwapFile.swap_in,
        "        self.on_leave(frame)\n",
        "        pass\n",
        "relocate-one-returns",
    ),
    plant(
        "mover: commits all that was planned",
        Mover.commit,
        "frames[stayed], moves.sources[stayed], moves.targets[stayed]",
        "frames, moves.sources, moves.targets",
        "relocate-one-leaves",
    ),
    plant(
        "mover: targets of frames that left stay held",
        Mover.commit,
        "    self._swap.slots.put_back(moves.targets[~stayed])\n",
        "",
        "relocate-one-leaves+in-everything",
    ),
    plant(
        "mover: targets of frames that stayed are put back too",
        Mover.commit,
        "put_back(moves.targets[~stayed])",
        "put_back(moves.targets)",
        "relocate+out-whole-block",
    ),
    plant(
        "mover: two frames get one target",
        Mover.plan,
        "    self._moves = Moves(",
        "    targets[1:2] = targets[0]\n    self._moves = Moves(",
        "relocate",
    ),
    plant(
        "mover: moves that nobody copied are committed at the end",
        Mover.end,
        "    self.abort()\n",
        "    self.commit()\n",
        "relocate-never-copied",
    ),
    plant("mover: sources are not freed", SwapFile.move, "    self.slots.freed.extend(sources.tolist())\n", "", "relocate"),
]

COUNTS = [
    plant("count forgotten: pages swapped out", SwapFile._name, "    self._count(slots, 1)\n", "    pass\n", "out-one"),
    plant("count forgotten: a page swapped in", SwapFile.swap_in, "    self._used[block] -= 1\n", "", "in-one"),
    plant("count forgotten: forgotten pages", SwapFile.forget, "    self._count(states, -1)\n", "", "forget"),
    plant("count forgotten: pages moved away", SwapFile.move, "    self._count(sources, -1)\n", "", "relocate"),
    plant("count forgotten: pages moved in", SwapFile.move, "    self._count(targets, 1)\n", "", "relocate"),
    plant("count not stored: a page swapped in", SwapFile.swap_in, "    self._touched.add(block)\n", "", "in-one"),
    plant(
        "count not stored: storage blocks that are given back",
        SwapFile._mark_absent,
        "    self._touched.update(blocks.tolist())\n",
        "",
        "in-whole-block",
    ),
    plant(
        "count not stored: new storage blocks",
        SwapFile._take_storage,
        "        self._touched.update(absent.tolist())\n",
        "",
        "out-into-new-block",
        redundant="the pages that they were taken for change their counts in the same transaction",
    ),
    plant(
        "counts: only the first block of a batch",
        SwapFile._count,
        "blocks, counts = np.unique(slots // self.slots_per_block, return_counts=True)",
        "blocks, counts = (each[:1] for each in np.unique(slots // self.slots_per_block, return_counts=True))",
        "out-several",
    ),
]

WORDS = [
    plant(
        "frames: words sealed for the place before",
        frames.slot_words,
        "word.places_array(lay.FRAME_PLACE, 0, frames)",
        "word.places_array(lay.FRAME_PLACE, 0, frames - 1)",
        "out-one",
    ),
    plant("frames: the slot before", frames.slot_words, "_SLOT_BITS + 1", "_SLOT_BITS", "out-several"),
    plant("frames: memory words sealed for another structure", frames.memory_word, "_FRAME | frame", "_STORAGE | frame", "in-one"),
    plant(
        "frames: storage words sealed for the place before",
        frames.storage_words,
        "word.places_array(lay.STORAGE_PLACE, 0, blocks)",
        "word.places_array(lay.STORAGE_PLACE, 0, blocks - 1)",
        "in-one",
    ),
    plant(
        "frames: blocks without storage look present",
        frames.storage_words,
        "np.where(present, ",
        "np.where(present | True, ",
        "in-whole-block",
    ),
    plant(
        "swap: pages of a batch in another order",
        SwapFile._write,
        "[pages[i] for i in order[done : done + count].tolist()]",
        "pages[done : done + count]",
        "out-into-new-block",
    ),
    plant("swap: frames are not named", _OUT, "        self._name(frames, slots)\n", "        pass\n", "out-one"),
    plant("swap: pages are not written", _OUT, "        self._write(slots, pages)\n", "        pass\n", "out-one"),
    plant(
        "swap: a swap-out is not committed",
        _OUT,
        "    self._name(frames, slots)\n        self.commit()\n",
        "    self._name(frames, slots)\n",
        "out-one",
    ),
    plant(
        "swap: half a swap-out commits",
        SwapFile._name,
        "    self._count(slots, 1)\n",
        "    self.journal.commit()\n    self._count(slots, 1)\n",
        "out-one",
    ),
    plant(
        "swap: half a move commits",
        SwapFile.move,
        "    self._count(sources, -1)\n",
        "    self.journal.commit()\n    self._count(sources, -1)\n",
        "relocate",
    ),
    plant(
        "swap: a frame swapped in keeps its word",
        SwapFile.swap_in,
        "    self.journal.set_word(self._frame_base + frame, memory_word(frame))\n",
        "",
        "in-one",
    ),
]

ENDS = [
    plant(
        "swap: a killed process's storage stays",
        SwapFile.recover,
        'if self.root.get("working") or (self.used == 0).any() or self.storage.is_unsettled():',
        "if False:",
        "out-into-new-block",
    ),
    plant(
        "swap: the first record leaves out the counts of frames that came back",
        SwapFile._begin_work,
        "self._commit_words()",
        "self.journal.commit()",
        "in-and-out-into-new-block",
    ),
    plant(
        "swap: a block that was being given back looks as if it had storage",
        SwapFile.recover,
        " or (self.used == 0).any()",
        "",
        "in-whole-block",
        redundant="the record that empties a block says that somebody works, so that the next process looks anyway",
    ),
    plant("swap: recovery gives nothing back", SwapFile.recover, "        self.storage.recover(occupied)\n", "", "out-into-new-block"),
    plant(
        "swap: recovery leaves the words of empty blocks",
        SwapFile.recover,
        "        self._mark_absent(np.flatnonzero(self.used == 0))\n",
        "        pass\n",
        "in-whole-block",
    ),
    plant("storage: recovery punches blocks with pages", PlainStorage.recover, "~occupied", "occupied", "out-into-new-block"),
    plant("storage: nothing is given back", PlainStorage.give_back, "self._pages.punch(", "(lambda *_: None)(", "in-whole-block"),
    plant(
        "storage: twice as much is given back",
        PlainStorage.give_back,
        "self._range(first, count)",
        "self._range(first, 2 * count)",
        "in-whole-block",
    ),
    plant(
        "storage: half a file system's answer is kept",
        PlainStorage.take,
        "        self.give_back(blocks)\n",
        "        pass\n",
        "in-whole-block+out-with-half-the-space",
    ),
    plant("swap: storage is not taken", SwapFile._take_storage, "        self.storage.take(absent)\n", "", "out-into-new-block"),
    plant("swap: `working` is never set", SwapFile._begin_work, 'self.root.put("working", 1)', "pass", "out-into-new-block"),
    plant("swap: `working` is never reset", SwapFile._rest, 'self.root.put("working", 0)', "pass", "out-into-new-block"),
    plant(
        "swap: `working` is reset at the start",
        SwapFile.recover,
        "        self.storage.recover(occupied)\n",
        '        self.root.put("working", 0)\n        self.journal.commit()\n        self.storage.recover(occupied)\n',
        "out-into-new-block",
    ),
    plant(
        "swap: closing commits nothing",
        SwapFile.close,
        "            self.commit()\n            self.commit()",
        "            pass  ",
        "in-lazily",
    ),
    plant(
        "swap: the words of what closing gave back are left",
        SwapFile.close,
        "            self.commit()\n            self.commit()",
        "            self.commit()  ",
        "in-whole-block-lazily",
    ),
]

BUGS = [*FENCES, *REUSE, *MOVES, *COUNTS, *WORDS, *ENDS]
