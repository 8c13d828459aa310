"""Random operations against a dict model: every state reads exactly what was put there, and the image checks clean."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from nvmtool.region.check import check_device
from nvmtool.region.convert import convert_region
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.purge import purge
from nvmtool.region.recall import recall
from nvmtool.region.snapshots import create_snapshot, delete_snapshot, diff_states, list_snapshots, revert_region

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 4096
NBLOCKS = 1300
SEEDS = int(os.environ.get("NVMTOOL_SEEDS", "5"))


class Model:
    """What each state must hold: logical block -> bytes, `None` for the running point."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.states: dict[str | None, dict[int, bytes]] = {None: {}}
        self.names = 0

    def snapshots(self) -> list[str]:
        return [name for name in self.states if name is not None]

    def step(self, device: Device) -> None:
        region = device.region()
        now = self.states[None]
        pick = self.random
        match pick.choice(
            ["write"] * 6 + ["part", "discard", "create", "create", "delete", "revert", "purge", "purge", "recall", "convert"]
        ):
            case "write":
                first = pick.randrange(NBLOCKS)
                count = min(pick.choice([1, 1, 3, 40, 700]), NBLOCKS - first)
                data = pick.randbytes(BLOCK * count)
                region.write(first * BLOCK, data)
                now.update({first + i: data[i * BLOCK : (i + 1) * BLOCK] for i in range(count)})
            case "part":
                offset = pick.randrange(NBLOCKS * BLOCK - 9000)
                data = pick.randbytes(pick.randrange(1, 9000))
                region.write(offset, data)
                for index in range(offset // BLOCK, (offset + len(data) - 1) // BLOCK + 1):
                    block = bytearray(now.get(index, bytes(BLOCK)))
                    start = max(offset, index * BLOCK)
                    end = min(offset + len(data), (index + 1) * BLOCK)
                    block[start - index * BLOCK : end - index * BLOCK] = data[start - offset : end - offset]
                    now[index] = bytes(block)
            case "discard":
                first = pick.randrange(NBLOCKS)
                count = min(pick.choice([1, 100, 1100]), NBLOCKS - first)
                region.discard(first * BLOCK, count * BLOCK)
                for index in range(first, first + count):
                    now.pop(index, None)
            case "create" if len(self.states) < 7:
                self.names += 1
                create_snapshot(region, f"s{self.names}")
                self.states[f"s{self.names}"] = dict(now)
            case "delete" if self.snapshots():
                name = pick.choice(self.snapshots())
                delete_snapshot(region, name)
                del self.states[name]
            case "revert" if self.snapshots() and pick.random() < 0.5:
                name = pick.choice(self.snapshots())
                revert_region(region, name)
                self.states[None] = dict(self.states[name])
            case "purge":
                mode = pick.choice(["virtblock", "pointer-elimination"]) if region.mapping == "virtblock" else "pointer-elimination"
                chosen = [pick.choice(self.snapshots())] if self.snapshots() and pick.random() < 0.3 else []
                purge(device, mode=mode, snapshots=chosen, max_bytes=pick.choice([None, None, 50 * BLOCK]))
            case "recall":
                recall(device, snapshot=pick.choice([None, *self.snapshots()]), max_bytes=pick.choice([None, 30 * BLOCK]))
            case "convert" if pick.random() < 0.4:
                convert_region(region, pick.choice(["virtblock", "direct"]))

    def compare(self, path: Path) -> None:
        with Device.open(path) as device:
            region = device.region()
            for name, blocks in self.states.items():
                found = region.read(0, NBLOCKS * BLOCK, name)
                for index in range(NBLOCKS):
                    assert found[index * BLOCK : (index + 1) * BLOCK] == blocks.get(index, bytes(BLOCK)), (name, index)
            for name in self.snapshots():
                changed = {offset // BLOCK + i for offset, length in diff_states(region, name, None) for i in range(length // BLOCK)}
                truly = {i for i in range(NBLOCKS) if self.states[name].get(i) is not self.states[None].get(i)}
                wrong = {i for i in truly - changed if self.states[name].get(i) != self.states[None].get(i)}
                assert not wrong
            assert [info.name for info in list_snapshots(region)] == sorted(self.snapshots(), key=lambda each: int(each[1:]))
        result = check_device(path, scrub=True)
        assert result.findings == []


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_state_reads_what_was_put_there(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "disk.nvm"
    format_device(path, size_bytes=48 << 20, mass=tmp_path / "disk.mass")
    model = Model(seed)
    with Device.open(path, writable=True) as device:
        device.create_region("vm", NBLOCKS * BLOCK, "direct" if seed % 3 == 0 else "virtblock")
    for _ in range(25):
        with Device.open(path, writable=True) as device:
            for _ in range(model.random.randrange(1, 6)):
                model.step(device)
        model.compare(path)
    with Device.open(path, writable=True) as device:
        for name in model.snapshots():
            delete_snapshot(device.region(), name)
        device.delete_region("vm")
        # The region table's own two blocks stay.
        assert device.blocks.free_blocks == device.blocks.nblocks - 2 - _slot_tables(device)
        assert device.slots.used == 0


def _slot_tables(device: Device) -> int:
    return sum(1 for _ in device.slots.iter_tables())
