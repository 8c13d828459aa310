"""Planted bugs of receiving streams, and what must find each of them."""

from __future__ import annotations

from nvmtool.region import arriving, snapshots

from ..planting import Edit, Plant, plant

_BEGIN, _COMPLETE = arriving.NextSnapshot.__init__, arriving.NextSnapshot.complete

RECEIVING = [
    plant("receiving: a region shows before it is complete", arriving.NewRegion.__init__, "hidden=True", "hidden=False", "receive"),
    plant(
        "receiving: a region shows before its snapshot",
        snapshots.create_snapshot,
        '            record.put("flags", record.get("flags") & ~unmark)\n',
        '            record.put("flags", record.get("flags") & ~unmark); device.journal.commit()\n',
        "receive",
    ),
    plant("receiving: what is on its way is not marked", _BEGIN, "        mark_deleted(region, self._record)\n", "", "receive-next"),
    plant("receiving: the base's tree is shared uncounted", _BEGIN, "        if root:", "        if False:", "receive-next"),
    plant("receiving: the state's id can be taken again", _BEGIN, "take_state(region)", 'region.record.get("next_state")', "receive-next"),
    plant(
        "receiving: the running point is written to",
        _BEGIN,
        "_FillingRecord(region.record, self._record, device)",
        "region.record",
        "snapshot-receive",
    ),
    plant(
        "receiving: the running point's mapped blocks change",
        arriving._FillingRecord._holder,
        '"root", "array", "mapped"',
        '"root", "array"',
        "snapshot-receive",
    ),
    plant(
        "receiving: entries are made in the running point's array",
        arriving._FillingRecord._holder,
        '"root", "array", "mapped"',
        '"root", "mapped"',
        "receive-next",
    ),
    Plant(
        "receiving: the running point's count of purged blocks changes",
        (
            Edit(arriving._FillingRecord.get, 'if field == "mapped_purged"', "if False"),
            Edit(arriving._FillingRecord.put, 'if field == "mapped_purged"', "if False"),
        ),
        ("receive-next",),
    ),
    plant("receiving: the last writes are not there", _COMPLETE, "    self.region.flush()\n", "", "receive-next"),
    plant(
        "receiving: the snapshot shows before the running point goes on from it",
        _COMPLETE,
        "        remains = ",
        "        region.device.journal.commit()\n        remains = ",
        "receive-next",
    ),
    plant(
        "receiving: the mark stays",
        _COMPLETE,
        '        record.put("parent", record.get("parent") & ~lay.SNAPSHOT_DELETING)\n',
        "",
        "receive-next",
    ),
    plant("receiving: the snapshot has no name", _COMPLETE, "        record.name = snapshot\n", "", "receive-next"),
    plant(
        "receiving: the running point takes a root uncounted",
        snapshots.run_on_from,
        "        region.device.blocks.add_refs(np.array([root]), word.TABLE)\n",
        "        pass\n",
        "receive-next",
    ),
]
