"""The planted bugs of borrowing: fences dropped, words said too early, storage moved in the wrong order, the wrong side chosen."""

from __future__ import annotations

from nvmtool.swap import homecoming, reservation_resize
from nvmtool.swap.blockmove import BlockMover
from nvmtool.swap.blockwords import BlockWords
from nvmtool.swap.borrower import Borrower
from nvmtool.swap.swapfile import SwapFile
from nvmtool.swap.swapside import SwapSide

from ..planting import plant

_MOVING = "self._file.words.put(homes, word.MOVING, self._lender.number, blocks)"
_RETURNING = "self._file.words.put(homes, word.MOVING, self._lender.number, part)"
_LEND, _RETURN = Borrower._lend, Borrower._return
_BACK = BlockMover._bring_back_run

FENCES = [
    plant("borrower: blocks are held before they are whole", Borrower._put_home, "    self._fence()", "    pass", "in-whole-block"),
    plant("borrower: blocks are lent before they are there", Borrower._settle_unsaid, "self._fence()", "pass", "out-into-new-block"),
    plant("borrower: the reservation is not fenced", Borrower._fence, "    self._file.pages.fence()\n", "", "in-whole-block"),
    plant("borrower: the swap file is not fenced", Borrower._fence, "    self._area.pages.fence()\n", "", "in-whole-block"),
    plant(
        "borrower: the swap file is fenced first",
        Borrower._fence,
        "    self._file.pages.fence()\n    self._area.pages.fence()",
        "    self._area.pages.fence()\n    self._file.pages.fence()",
        "in-whole-block",
        redundant="recovery makes whole what is on neither side, which no file system that logs in order leaves: the clone comes first",
    ),
    plant("homecoming: blocks are held before they are whole", homecoming.forget, "        file.pages.fence()\n", "", "forget"),
    plant("resize: new blocks are not durable", reservation_resize._write_tail, "    file.pages.fence()\n", "", "grow"),
    plant("resize: stand-ins are lent before their storage is gone", reservation_resize._cut_off, "    file.pages.fence()\n", "", "shrink"),
]

WORDS = [
    plant("borrower: LENT is said at once", _LEND, _MOVING, _MOVING.replace("MOVING", "LENT"), "out-into-new-block"),
    plant("borrower: lending is not announced", _LEND, _MOVING, "pass", "out-into-new-block"),
    plant("borrower: HELD is said at once", _RETURN, _RETURNING, "self._file.words.put_held(homes)", "in-whole-block"),
    plant(
        "borrower: returning is not announced",
        _RETURN,
        _RETURNING,
        "pass",
        "in-whole-block",
        redundant="a lent block without pages goes home like one on its way: the record that emptied it says that somebody works",
    ),
    plant("borrower: LENT is never said", Borrower.close, "self._say_lent()", "pass", "out-into-new-block"),
    plant("borrower: what was lent is forgotten", _RETURN, "            self._put_lent()\n", "", "out-into-new-block+in-first-block"),
    plant("borrower: HELD is never said", Borrower._put_home, "self._file.words.put_held(homes)", "pass", "in-whole-block"),
    plant("block words: the storage block before", BlockWords.put, "(storage + 1)", "storage", "everything-anew"),
    plant("homecoming: MOVING is not said", homecoming.forget, "        file.words.put(part", "        (lambda *_: None)(part", "forget"),
    plant(
        "homecoming: the lender goes first",
        homecoming.forget,
        "    homes = ",
        "    with file.transaction():\n        file.lenders.remove(lender.number)\n    homes = ",
        "forget",
    ),
    plant(
        "homecoming: the lender stays",
        homecoming.forget,
        "        file.lenders.remove(lender.number)\n",
        "        pass\n",
        "leave",
    ),
    plant(
        "swap: blocks are given back before the record",
        SwapFile.commit,
        "    self._commit_words()\n",
        "    self._give_back(np.flatnonzero((self.used == 0)))\n    self._commit_words()\n",
        "in-whole-block",
    ),
]

STORAGE = [
    plant(
        "mover: punched before it is cloned",
        BlockMover._lend_run,
        "    try:\n",
        "    self.reserved.punch(first, count)\n    try:\n",
        "out-into-new-block",
    ),
    plant(
        "mover: what was lent keeps its storage",
        BlockMover._lend_run,
        "    self.reserved.punch(first, count)",
        "    pass",
        "out-into-new-block",
    ),
    plant(
        "mover: what came home is not cloned",
        _BACK,
        "self._clone_back(first, other, count)",
        "True",
        "in-whole-block",
    ),
    plant(
        "mover: what came home is not punched",
        _BACK,
        "            self.storage.punch(other, count)\n            return",
        "            return",
        "in-whole-block",
    ),
    plant(
        "mover: what came home has no storage",
        BlockMover._allocate_back,
        "        fill(self.reserved, first, count, written=self.clones)\n        self",
        "        self",
        "in-whole-block",
    ),
    plant(
        "mover: an allocated block keeps its storage",
        BlockMover._allocate_back,
        "written=self.clones)\n        self.storage.punch(other, count)\n",
        "written=self.clones)\n",
        "in-whole-block",
    ),
    plant(
        "mover: blocks that are whole at home are overwritten with the hole",
        _BACK,
        "self.storage.is_written(other, count) and ",
        "",
        "in-whole-block",
    ),
    plant(
        "mover: a block that is whole on neither side counts as home",
        _BACK,
        "self.reserved.is_written(first, 1)",
        "True",
        "out-into-new-block",
    ),
]

RECOVERY = [
    plant(
        "recovery: takes the wrong side",
        Borrower.recover,
        "self._return(mine[~occupied[mine]])",
        "self._return(mine[occupied[mine]])",
        "out-into-new-block",
    ),
    plant("recovery: gives nothing back", Borrower.recover, "    self._return(mine[~occupied[mine]])\n", "    pass\n", "in-whole-block"),
    plant("recovery: leaves what is on its way", Borrower.recover, "    self._finish_unsaid()\n", "    pass\n", "out-into-new-block"),
    plant(
        "recovery: leaves the storage at home",
        Borrower._finish_unsaid,
        "    self._punch_homes(self._unsaid)\n",
        "    pass\n",
        "out-into-new-block",
    ),
    plant(
        "recovery: believes that nobody works",
        Borrower.is_unsettled,
        "(self._kinds(mine) == word.MOVING).any()",
        "False",
        "out-into-new-block",
    ),
    plant("recovery: an empty block is taken for one with pages", SwapSide.occupied, "used > 0", "used >= 0", "in-whole-block"),
]

RESIZE = [
    plant(
        "resize: nobody stands in",
        reservation_resize._cut_off,
        "        file.words.put(stand_ins, word.MOVING, lenders, storage)\n",
        "        pass\n",
        "shrink",
    ),
    plant(
        "resize: stand-ins are LENT at once",
        reservation_resize._cut_off,
        "word.MOVING, lenders, storage",
        "word.LENT, lenders, storage",
        "shrink",
    ),
    plant(
        "resize: stand-ins stay on their way",
        reservation_resize._cut_off,
        "        file.words.put(stand_ins[lent]",
        "        (lambda *_: None)(stand_ins[lent]",
        "shrink",
    ),
    plant(
        "resize: stand-ins keep their storage",
        reservation_resize._cut_off,
        "        file.area.punch(first, count)\n",
        "        pass\n",
        "shrink",
    ),
    plant(
        "resize: the file is cut first",
        reservation_resize._resize,
        "        relabelled = _shrink(file, before, nblocks)\n",
        "        os.ftruncate(file.fd, file.size_of(nblocks))\n        relabelled = _shrink(file, before, nblocks)\n",
        "shrink",
    ),
    plant(
        "resize: new blocks are taken in before they are there",
        reservation_resize._resize,
        "        _write_tail(file, before, nblocks, progress)\n",
        "        with file.turn():\n            _take_in(file, before, nblocks)\n        _write_tail(file, before, nblocks, progress)\n",
        "grow",
    ),
    plant(
        "resize: new blocks get no words",
        reservation_resize._take_in,
        "        file.words.put_held(np.arange(before, split))\n",
        "        pass\n",
        "grow",
    ),
    plant(
        "borrower: a resize is not noticed",
        Borrower._turn,
        "not self._is_as_remembered(np.concatenate([blocks, self._unsaid]))",
        "not len(self._home)",
        "lend-and-shrink",
    ),
    plant(
        "borrower: stand-ins of what is not said yet keep their storage",
        Borrower._turn,
        "            self._punch_homes(self._unsaid)\n",
        "            pass\n",
        "everything-anew+everything-once-more+shrink",
    ),
    plant(
        "resize: what is on its way is taken for lent",
        reservation_resize._cut_off,
        "lent = kinds == word.LENT",
        "lent = kinds != 0",
        "shrink",
        redundant="recovery makes whole what is on neither side; kept, its storage spares that from asking the file system for more",
    ),
]

BUGS = [*FENCES, *WORDS, *STORAGE, *RECOVERY, *RESIZE]
