"""The planted bugs: fences dropped, commit words hoisted, checks skipped, blocks and slots used too early, counts forgotten."""

from __future__ import annotations

from nvmtool.media.imagefile import ImageFile
from nvmtool.media.journal import Journal
from nvmtool.media.store import FileStore
from nvmtool.region import copying, lending, purge, purge_pointers, purge_virtblock, recall, repair, snapshots, sweep
from nvmtool.region import format as formatting
from nvmtool.region.blocks import Blocks
from nvmtool.region.convert import _convert_all, convert_region
from nvmtool.region.device import Device
from nvmtool.region.mass import MassStore
from nvmtool.region.pagemap import PageMap
from nvmtool.region.pairing import Pairing
from nvmtool.region.region import Region
from nvmtool.region.slots import Slots
from nvmtool.region.virtblock import Virtblocks

from ..planting import Edit, Plant, plant
from .receiving_bugs import RECEIVING

_COMMIT, _HOME, _RECORDS = Journal._commit_durably, Journal._move_home, Journal._iter_records
_WHOLE = Journal._whole_record


FENCES = [
    plant("fence dropped: data before their log record", _COMMIT, "    self.store.fence()\n    for block", "    for block", "write-home"),
    plant(
        "fence dropped: a commit without words",
        _COMMIT,
        "        self.store.fence()\n        return",
        "        return",
        "repair-unused",
        redundant="nothing stores without changing words but a repair of unused ones, and the commit that follows it fences",
    ),
    plant(
        "fence dropped: home before the records are void",
        _HOME,
        "        self.store.fence()\n        following",
        "        following",
        "write-logged",
    ),
    plant(
        "fence dropped: records void before their space is used",
        _HOME,
        "following)\n        # The records must be void before the space they were written in is used again.\n        self.store.fence()",
        "following)",
        "write-logged",
    ),
    plant("fence dropped: the log record", Journal._append, "store_durable(", "store_bytes(", "write-logged"),
    plant("fence dropped: format, before the headers", formatting._write_image, "    opened.fence()\n    block", "    block", "format"),
    plant(
        "fence dropped: format, the headers", formatting._write_image, "    opened.fence()\n    opened.close", "    opened.close", "format"
    ),
    plant("fence dropped: copies on the mass store", copying.copy_to_mass, "device.mass.fence()", "pass", "purge-pointers", "purge-part"),
    plant("fence dropped: the mass store's tag", MassStore.show_tag, "        self.fence()\n", "", "region-delete"),
    plant(
        "fence dropped: slots given back before the image says so",
        Pairing.settle,
        "            self.mass.fence()",
        "            pass",
        "recall",
    ),
    plant("fence dropped: a repaired header copy", repair.apply_fixes, "device.store.fence()", "pass", "repair-header-a"),
    plant("file store: fence without fdatasync", FileStore.fence, "os.fdatasync(self.fd)", "pass", "proof:write-home"),
    plant("file store: durable store without its flag", FileStore.store_durable, ", os.RWF_DSYNC", "", "proof:write-logged"),
    plant("file store: a word does not count as a store", FileStore.store_word, "self._dirty = True", "pass", "proof:write-logged"),
    plant("file store: bytes do not count as a store", FileStore.store_bytes, "self._dirty = True", "pass", "proof:write-home"),
    plant("file store: stores to the wrong place", FileStore.store_bytes, "offset, chunks)", "offset + 8, chunks)", "proof:write-home"),
    plant("file store: half a logged page", FileStore.store_logged, "[content]", "[content[:2048]]", "proof:write-logged"),
    plant("mass store: fence without fdatasync", MassStore.fence, "os.fdatasync(self._fd)", "pass", "proof:purge-pointers"),
    plant("mass store: a written slot does not count as a store", MassStore.write, "self._dirty = True", "pass", "purge-pointers"),
    plant("mass store: a punched slot does not count as a store", MassStore.punch, "self._dirty = True", "pass", "recall"),
]

LOG = [
    plant(
        "commit word hoisted: void before home",
        _HOME,
        "        for first, length in runs(pages):",
        "        self.store.store_word(self._start, word.pointer(word.NUMBER, self.generation + 1, _GENERATION_PLACE))\n        for first, length in runs(pages):",
        "write-logged",
    ),
    plant(
        "commit word hoisted: record before fresh blocks",
        _COMMIT,
        "    changed = self._changed_words()\n",
        "    changed = self._changed_words()\n    self._append(changed)\n",
        "recall",
    ),
    plant(
        "commit word torn: generation stored as bytes",
        _HOME,
        "store_word(self._start, following)",
        "store_bytes(self._start, [following.to_bytes(8, 'little')])",
        "write-logged",
    ),
    plant("generation stays", _HOME, "self.generation + 1, _G", "self.generation, _G", "recall"),
    plant("generation not remembered", _HOME, "    self.generation += 1\n", "", "snapshot-create+checkpoint+write-logged"),
    plant("sequence not started again", _HOME, "    self.sequence = 0\n", "", "snapshot-create+checkpoint+write-logged"),
    plant("tail not set back", _HOME, "    self._tail = self._start + PAGE\n", "", "snapshot-create+checkpoint+write-logged"),
    plant(
        "record in two halves, the first alone under the CRC",
        Journal._append,
        "= crc32c(record).to",
        "= crc32c(record[:LOG_RECORD.itemsize + 16]).to",
        "write-logged",
    ),
    Plant(
        "the CRC covers the record's head alone",
        (
            Edit(Journal._append, "= crc32c(record).to", "= crc32c(record[:LOG_RECORD.itemsize + 16]).to"),
            Edit(_WHOLE, "crc32c(record) == int", "crc32c(record[:LOG_RECORD.itemsize + 16]) == int"),
        ),
    ),
    plant(
        "record in two halves, each made durable",
        Journal._append,
        "self.store.store_durable(self._tail, [record])",
        "self.store.store_durable(self._tail, [record[:64]]); self.store.store_durable(self._tail + 64, [record[64:]])",
        "recall",
    ),
    plant("replay skips the CRC", _WHOLE, 'crc32c(record) == int(head["crc"])', "True", "write-logged"),
    plant(
        "replay skips the generation",
        _RECORDS,
        ' or int(head["generation"]) != self.generation',
        "",
        "snapshot-create+checkpoint+write-logged",
    ),
    plant(
        "replay skips the sequence",
        _RECORDS,
        ' or int(head["sequence"]) != self.sequence',
        "",
        redundant="the generation says which records are of this log, and in a log they stand in order",
    ),
    plant(
        "replay skips the magic",
        _RECORDS,
        'bytes(head["magic"]) != RECORD_MAGIC',
        "False",
        redundant="the CRC covers the generation and the sequence, and only a record has both right",
    ),
    plant(
        "replay goes on behind a bad record",
        _RECORDS,
        "        self.require_no_later_record()\n            return\n",
        "        self._tail += PAGE\n            continue\n",
        redundant="a record is durable before the next one is stored, so nothing valid stands behind a bad one",
    ),
    plant("replay applies no words", Journal._replay, "self.array[indexes] = values", "pass", "write-logged"),
    plant("replay applies no blocks", Journal._replay, "pages[blocks] = contents", "pass", "write-logged"),
    plant("replay forgets which words to move home", Journal._replay, "[indexes // _WORDS_PER_PAGE, blocks]", "[blocks]", "write-logged"),
    plant(
        "replay forgets which blocks to move home",
        Journal._replay,
        "[indexes // _WORDS_PER_PAGE, blocks]",
        "[indexes // _WORDS_PER_PAGE]",
        "write-logged",
    ),
    plant("commit forgets which words to move home", _COMMIT, "[changed // _WORDS_PER_PAGE, fresh]", "[fresh]", "write-logged"),
    plant(
        "commit forgets which fresh blocks it changed",
        _COMMIT,
        ", fresh]",
        "]",
        redundant="they went home before the record; later changes of their words are remembered as words",
    ),
    plant(
        "fresh blocks are not stored",
        _COMMIT,
        "self.store.store_bytes(first * PAGE, [self._view_bytes(first, length)])",
        "pass",
        "write-home",
    ),
    plant("logged blocks are not stored", _COMMIT, "self.store.store_logged(block * PAGE, content)", "pass", "write-logged"),
    plant("a changed word is left out of the record", Journal._changed_words, "return merged[~", "return merged[1:][~", "write-logged"),
    plant(
        "private pages are not dropped",
        _HOME,
        "    self._drop_private(pages)\n",
        "",
        "region-delete-other+checkpoint+fill+snapshot-create+write-part-of-fill",
    ),
    plant(
        "home keeps what it had", _HOME, "self.store.store_bytes(first * PAGE, [self._view_bytes(first, length)])", "pass", "write-logged"
    ),
]

REUSE = [
    plant(
        "a freed block is used before the checkpoint",
        Blocks.free,
        "self._held[blocks - self.start] = True",
        "pass",
        "snapshot-delete-oldest+fill",
    ),
    plant(
        "a replaced block is used before the checkpoint",
        Blocks.replace,
        "self._held[old - self.start], self._held[new - self.start] = True, False",
        "self._held[new - self.start] = False",
        "write-own+fill",
    ),
    plant(
        "blocks are free again at the commit",
        Blocks._after_commit,
        "self._dropped_before_commit.clear()",
        "self._dropped_before_commit.clear()\n    self._after_checkpoint()",
        "snapshot-delete-oldest+fill",
    ),
    plant(
        "a freed slot is used before the checkpoint",
        Slots.take,
        "*self._dropped, *self._dropped_before_commit, ",
        "",
        "recall+purge-pointers",
    ),
    plant(
        "a slot is punched before the commit",
        Slots.drop_refs,
        "self._dropped_before_commit.append(freed)",
        "self.mass.punch(freed)",
        "recall",
    ),
    plant(
        "a slot is punched at the commit",
        Slots._after_commit,
        "self._dropped_before_commit.clear()",
        "self._dropped_before_commit.clear()\n    self._after_checkpoint()",
        "recall",
    ),
    plant("slots are not punched", Slots._after_checkpoint, "self.mass.punch(slots)", "pass", "recall"),
    plant("the store is changed before the image knows", Pairing.begin, "        self._journal.commit()\n", "", "purge-pointers"),
    plant(
        "the tag before is forgotten",
        Pairing.announce,
        'self.mass.tag if self.mass is not None else self._root.get("mass_tag")',
        "0",
        "purge-pointers",
    ),
    plant("a purge is not announced", purge.purge, "device.slots.pairing.begin()", "pass", "purge-pointers"),
    plant("freeing slots is not announced", Slots.drop_refs, "        self.pairing.announce()\n", "", "recall"),
    plant(
        "the tag is not shown before punching",
        Slots._after_checkpoint,
        "        self.pairing.begin()\n",
        "",
        "recall",
        redundant="for this image the freeing commit announced it; the tag in the store is for copies of the image, which are not enumerated",
    ),
    plant("what a killed process left in free slots stays", Device.resume, "not self.slots.pairing.is_settled", "False", "purge-pointers"),
    plant("an orderly end is not noted", Device._settle, "        self.slots.pairing.settle()\n", "", "purge-pointers"),
]

COUNTS = [
    plant("count forgotten: block references added", Blocks.add_refs, " + times.astype(np.uint64)", "", "snapshot-create"),
    plant(
        "count forgotten: block references dropped", Blocks.drop_refs, "after = before - drops", "after = before", "snapshot-delete-oldest"
    ),
    plant("count forgotten: used blocks, named", Blocks.name, "    self._add_used(blocks, 1)\n", "", "write-home"),
    plant("count forgotten: used blocks, freed", Blocks.free, "        self._add_used(blocks, -1)\n", "", "snapshot-delete-oldest"),
    plant("count forgotten: replaced block", Blocks.replace, "    self._journal.set_word(at + old, 0)\n", "", "write-own"),
    plant("count forgotten: used slots", Slots.name, "    self._add_used(slots, 1)\n", "", "purge-pointers"),
    plant("count forgotten: slot references dropped", Slots.drop_refs, "(counts - drops)[kept]", "counts[kept]", "discard"),
    plant(
        "count forgotten: slot freed",
        Slots.drop_refs,
        "        self._journal.set_words(indexes[~kept], np.zeros(len(freed), np.uint64))\n",
        "",
        "recall",
    ),
    plant("count forgotten: entry references", Virtblocks.add_refs, "counts + 1", "counts", "snapshot-create"),
    plant("count forgotten: entries of an array block", Virtblocks.free, "        self._add_live(addresses, -1)\n", "", "region-delete"),
    plant(
        "count forgotten: shared table copied",
        PageMap._copy,
        "    self._blocks.drop_refs(np.array([table]), word.TABLE)\n",
        "",
        "write-home",
    ),
    plant("count forgotten: mapped blocks", PageMap.map, "mapped=int((kinds == 0).sum()),", "", "write-logged-few"),
]

STEPS = [
    plant("data are not stored", Region._write_blocks, "self.device.journal.store_data(start, [data[done:end]])", "pass", "write-home"),
    plant(
        "logged data are left out of the record",
        Region._map,
        "self.device.journal.add_data(self._pending[index], data[index])",
        "pass",
        "write-logged",
    ),
    plant("recalled data are not stored", recall._copy_from_mass, "device.journal.store_data(start, [view[done:end]])", "pass", "recall"),
    plant(
        "a transaction ends without a commit", ImageFile.transaction, "        self.journal.commit()\n", "        pass\n", "snapshot-create"
    ),
    plant(
        "half a purge commits: slots named first",
        purge_virtblock._apply,
        "    region.pages.virtblocks.point(",
        "    device.journal.commit()\n    region.pages.virtblocks.point(",
        "purge-virtblock",
    ),
    plant(
        "half a purge commits: pointers first",
        purge_pointers._apply,
        "    freed = pages.drop_refs",
        "    device.journal.commit()\n    freed = pages.drop_refs",
        "purge-pointers",
    ),
    plant(
        "half a recall commits",
        recall._apply,
        "    entries = units.kinds == word.ENTRY\n",
        "    device.journal.commit()\n    entries = units.kinds == word.ENTRY\n",
        "recall",
    ),
    plant(
        "half a snapshot commits",
        snapshots.create_snapshot,
        "        root = record",
        "        device.journal.commit()\n        root = record",
        "snapshot-create",
    ),
    plant(
        "a snapshot shares its tree uncounted",
        snapshots.create_snapshot,
        "            device.blocks.add_refs(np.array([root]), word.TABLE)\n",
        "            pass\n",
        "snapshot-create",
    ),
    plant(
        "half a revert commits",
        snapshots.run_on_from,
        "    mark_deleted(region, remains)\n",
        "    region.device.journal.commit()\n    mark_deleted(region, remains)\n",
        "snapshot-revert",
    ),
    plant(
        "half a deleted leaf commits",
        sweep.Sweep._drop_leaf,
        "        self._pages.drop_refs",
        "        self.commit()\n        self._pages.drop_refs",
        "snapshot-delete-oldest",
    ),
    plant(
        "a table is freed, its pointer stays",
        sweep.Sweep._detach,
        "    self._journal.set_words(at, np.zeros(len(at), np.uint64))\n",
        "    self.commit()\n",
        "region-delete",
    ),
    plant(
        "a deletion is not marked",
        snapshots.delete_snapshot,
        "        mark_deleted(region, record)\n",
        "        pass\n",
        "snapshot-delete-oldest",
    ),
    plant(
        "a deletion is marked in the snapshot alone",
        sweep.mark_deleted,
        "    region.record.put(",
        "    (lambda *_: None)(",
        "snapshot-delete-oldest",
    ),
    plant(
        "a snapshot's deletion is not resumed",
        sweep.finish_deletions,
        "if not flags & (lay.DELETING | lay.SWEEPING):",
        "if not flags & lay.DELETING:",
        "snapshot-delete-oldest",
    ),
    plant(
        "a region's deletion is not resumed",
        sweep.finish_deletions,
        "if not flags & (lay.DELETING | lay.SWEEPING):",
        "if not flags & lay.SWEEPING:",
        "region-delete",
    ),
    plant(
        "a handed-over array block is not linked",
        sweep.Sweep.hand_over_array,
        "            virtblocks.link(block, heir, heir_state)\n",
        "",
        "snapshot-delete-oldest",
    ),
    plant("half a conversion commits as a whole one", convert_region, "wanted | lay.CONVERTING", "wanted", "convert"),
    plant(
        "a conversion stops after its mark",
        _convert_all,
        "        words = every.select(every.kinds == old_kind)\n",
        "        words = every.select(every.kinds == 99)\n",
        "convert",
    ),
]

LENDING = [
    plant(
        "lending: the root does not count",
        lending.lend_blocks,
        'device.root.put("lent_blocks", device.lent_blocks + len(part))',
        "pass",
        "lend",
    ),
    plant("lending: half a lend commits", lending.lend_blocks, "(part, word.LENT)", "(part, word.LENT); device.journal.commit()", "lend"),
    plant("lending: blocks are named as data", lending.lend_blocks, "(part, word.LENT)", "(part, word.BLOCK)", "lend"),
    plant("lending: no tag", lending.lend_blocks, 'device.root.put("lender_tag", tag)', "pass", "lend"),
    plant("lending: the tag stays", lending._put_lent, "if count == 0:", "if False:", "lend+forget"),
    plant("lending: what is taken back stays", lending._free, "device.blocks.free(part)", "pass", "lend+take-back"),
    plant(
        "lending: half a return commits",
        lending._free,
        "device.blocks.free(part)",
        "device.blocks.free(part); device.journal.commit()",
        "lend+take-back",
    ),
]

BUGS = [*FENCES, *LOG, *REUSE, *COUNTS, *STEPS, *LENDING, *RECEIVING]
