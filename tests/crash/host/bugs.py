"""The planted bugs of hosts: order lost between maps, counts and records, frames given away too early, contents left behind.

The enumeration of the host's file cannot see most of them, for they are about memory; `scenario.py` finds them.
"""

from __future__ import annotations

from dataclasses import replace

from nvmtool.host import admission, lending, power, rebuild, suspend
from nvmtool.host import host as host_module
from nvmtool.host.frames import FrameTable
from nvmtool.host.maps import SavedMap
from nvmtool.host.space import Space

from ..planting import plant

_PLANTED = [
    plant("suspend: the words are not saved", suspend._save_batch, "saved.write(first, words)", "pass"),
    plant(
        "suspend: a frame that others shared is free", suspend._save_batch, "drop_shares(mpns, park=True)", "drop_shares(mpns, park=False)"
    ),
    plant("suspend: private frames stay private", suspend._save_batch, "frames.set_all(mpns, lay.HELD_BY_SUSPENDED, vm.number)", "pass"),
    plant("suspend: the cursor is not said", suspend._save_batch, "cursor=behind, ", ""),
    plant("saved map: the shared flag is lost", SavedMap.write, " + shared.astype(np.uint64)", ""),
    plant("resume: shared frames are not counted", suspend._restore_batch, "frames.add_shares(mpns[shared])", "pass"),
    plant("resume: the words are not entered", suspend._restore_batch, "vm_map.put_words(first, words)", "pass"),
    plant("resume: one suspended VM less is not said", suspend._restore_batch, 'frames.get("suspended") - 1', 'frames.get("suspended")'),
    plant("parked frames are swept at once", power.sweep_parked, '    if frames.get("suspended"):\n        return 0\n', ""),
    plant("restart: the same life goes on", suspend.restart, "host.life + 1", "host.life"),
    plant("share table: each name counts once", FrameTable.add_shares, "times.astype(np.uint64)", "np.uint64(1)"),
    plant("own: what a suspended VM may name is taken", Space.own, "not suspended and ", ""),
    plant("own: what a suspended VM may name is freed", Space.own, "drop_shares(old, park=suspended)", "drop_shares(old, park=False)"),
    plant("own: a copy without contents", Space.own, "self.memory.page(new)[:] = self.memory.page(mpn)", "pass"),
    plant("swap out: frames are not freed", Space.drop, "frames.set_all(mpns[~shared], lay.FREE)", "pass"),
    plant("a killed process's frames stay", Space._recover, "np.setdiff1d(owned,", "np.setdiff1d(owned[:0],"),
    plant(
        "a killed process's table is taken for sound",
        host_module.Host._sound_frames,
        'if frames.get("working") else frames',
        "if False else frames",
    ),
    plant("rebuild: what suspended VMs share is free", rebuild.rebuild, "lay.PARKED)", "lay.FREE)"),
    plant("rebuild: the number of suspended VMs", rebuild.rebuild, "sum(vm.cursor > 0 for vm in vms)", "0"),
    plant("lending: contents stay behind", lending._move_quietly, "host.memory.copy(busy, targets)", "pass"),
    plant("lending: saved maps are left as they are", lending._rename, "    if vm.cursor:", "    if False:"),
    plant("lending: counts stay behind", lending._move_quietly, "frames.copy_words(busy, targets)", "pass"),
    plant("admission: a suspended VM is guaranteed nothing", admission.guaranteed_to, "min(vm.saved_pages, vm.granted_pages)", "0"),
    plant("settle: the grant falls without a promise", power.settle, "_promise(host, vm, vm.memory_pages - granted, None)", "pass"),
]

BUGS = [replace(bug, workloads=("proof:walk",)) for bug in _PLANTED]
