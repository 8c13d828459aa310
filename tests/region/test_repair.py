"""Repair mends what a walk proves, however much of it there is; anything else leaves both files byte-identical."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nvmtool.errors import BusyError
from nvmtool.media import word
from nvmtool.region import layout as lay
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.purge import purge
from nvmtool.region.snapshots import create_snapshot, delete_snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from nvmtool.region.region import Region

BLOCK = 4096
# More than a check lists of one kind of damage (check_counts.py), with the one that matters behind those listed.
NDAMAGED, LATE = 150, 140
NBLOCKS = 200


class Image:
    """A region whose 200 blocks were written anew since its snapshot s; `contents` is what both states must read."""

    def __init__(self, folder: Path, mapping: str = "virtblock", *, purged: bool = False) -> None:
        self.path, self.mass = folder / "disk.nvm", folder / "disk.mass"
        rng = random.Random(1)
        self.contents = {"s": rng.randbytes(NBLOCKS * BLOCK), None: rng.randbytes(NBLOCKS * BLOCK)}
        format_device(self.path, size_bytes=16 << 20, mass=self.mass)
        with Device.open(self.path, writable=True) as device:
            region = device.create_region("vm", 4 << 20, mapping)
            region.write(0, self.contents["s"])
            create_snapshot(region, "s")
            region.write(0, self.contents[None])
            region.flush()
            if purged:
                purge(device, mode="virtblock")

    def files(self) -> tuple[bytes, bytes]:
        return self.path.read_bytes(), self.mass.read_bytes()

    def assert_intact(self) -> None:
        assert check_device(self.path, scrub=True).findings == []
        with Device.open(self.path) as device:
            for name, data in self.contents.items():
                assert device.region().read(0, NBLOCKS * BLOCK, name) == data, name
        # Counts that were lowered too far would free what is still named.
        with Device.open(self.path, writable=True) as device:
            delete_snapshot(device.region(), "s")
            device.region().write(2 << 20, bytes(BLOCK - 1) + b"x")
            assert device.region().read(0, NBLOCKS * BLOCK) == self.contents[None]
        assert check_device(self.path, scrub=True).findings == []

    def assert_refused(self) -> None:
        before = self.files()
        result = check_device(self.path, repair=True)
        assert (result.clean, result.repaired) == (False, 0)
        assert self.files() == before


def _named(region: Region) -> tuple[np.ndarray, np.ndarray]:
    """Return the kinds and values of the words with which the running point names its blocks."""
    indexes = np.arange(NBLOCKS)
    return region.pages.tables.decode(region.pages.tables.lookup(region.root_of(None), indexes), indexes)


def _raise_entry_counts(device: Device) -> None:
    with device.transaction():
        device.region().pages.virtblocks.add_refs(np.sort(_named(device.region())[1])[:NDAMAGED])


def _raise_slot_counts(device: Device) -> None:
    with device.transaction():
        device.slots.add_refs(np.arange(1, NDAMAGED + 1))


def _raise_block_counts(device: Device) -> None:
    with device.transaction():
        device.blocks.add_refs(np.sort(_named(device.region())[1])[:NDAMAGED], word.BLOCK)


def _leak_blocks(device: Device) -> None:
    with device.transaction():
        device.blocks.name(device.blocks.take(NDAMAGED), word.BLOCK)


@pytest.mark.parametrize(
    ("mapping", "purged", "damage", "structure"),
    [
        ("virtblock", False, _leak_blocks, "count word"),
        ("virtblock", False, _raise_entry_counts, "virtblock entry"),
        ("virtblock", True, _raise_slot_counts, "slot word"),
        ("direct", False, _raise_block_counts, "count word"),
    ],
)
def test_more_too_high_counts_than_are_listed_are_all_mended(tmp_path: Path, mapping, purged, damage, structure) -> None:
    image = Image(tmp_path, mapping, purged=purged)
    with Device.open(image.path) as device:
        free = device.blocks.free_blocks
    with Device.open(image.path, writable=True) as device:
        damage(device)
    found = check_device(image.path)
    assert {(finding.severity, finding.structure) for finding in found.findings} == {("leak", structure)}
    assert found.leaked_blocks == (NDAMAGED if damage is _leak_blocks else 0)
    assert check_device(image.path, repair=True).clean
    with Device.open(image.path) as device:
        assert device.blocks.free_blocks == free
    image.assert_intact()


def test_an_unnamed_entry_behind_the_listed_ones_is_refused(tmp_path: Path) -> None:
    image = Image(tmp_path)
    with Device.open(image.path, writable=True) as device:
        _raise_entry_counts(device)
        region = device.region()
        addresses = _named(region)[1]
        index = int(np.argsort(addresses)[LATE])
        leaf = int(region.pages.private_leaves(np.array([0]))[0])
        with device.transaction():
            device.journal.set_word(leaf * 512 + index, 0)
    image.assert_refused()


def test_an_unnamed_slot_behind_the_listed_ones_is_refused(tmp_path: Path) -> None:
    image = Image(tmp_path, purged=True)
    with Device.open(image.path, writable=True) as device:
        _raise_slot_counts(device)
        device.slots.pairing.begin()
        slot = device.slots.take(1)
        assert device.mass is not None
        device.mass.write(slot, [bytes(BLOCK)])
        with device.transaction():
            device.slots.name(slot, np.zeros(1, np.uint32), np.ones(1, np.uint64))
    image.assert_refused()


@pytest.mark.parametrize("damage", ["too low", "of another kind"])
def test_a_wrong_block_count_behind_the_listed_leaks_is_refused(tmp_path: Path, damage: str) -> None:
    image = Image(tmp_path, "direct")
    with Device.open(image.path, writable=True) as device:
        blocks = np.sort(_named(device.region())[1])
        with device.transaction():
            device.blocks.add_refs(blocks[:LATE], word.BLOCK)
            kind, count = (word.BLOCK, 0) if damage == "too low" else (word.TABLE, 1)
            late = device.blocks.sealed_counts(blocks[LATE : LATE + 1], np.array([count], np.uint64), np.array([kind], np.uint8))
            device.journal.set_words(*late)
    image.assert_refused()


def test_repair_empties_free_slots_and_leaves_the_used_ones_between_them(tmp_path: Path) -> None:
    image = Image(tmp_path)
    with Device.open(image.path, writable=True) as device:
        region = device.region()
        create_snapshot(region, "t")
        for index in range(0, NBLOCKS, 2):
            region.write(index * BLOCK, bytes([index + 1]) * BLOCK)
        create_snapshot(region, "u")
        region.write(0, image.contents[None])
        purge(device, mode="virtblock")
        # Of t's slots every other one stays, because u reads it.
        delete_snapshot(region, "t")
        read = {name: region.read(0, NBLOCKS * BLOCK, name) for name in ("s", "u", None)}
    slots = image.mass.read_bytes()
    free = [slot for slot in range(1, len(slots) // BLOCK) if not any(slots[slot * BLOCK : (slot + 1) * BLOCK])]
    assert len(free) == NBLOCKS // 2
    # What a kill before the checkpoint leaves, or a file system without holes: a free slot keeps its bytes.
    with image.mass.open("r+b") as mass:
        for slot in free:
            mass.seek(slot * BLOCK)
            mass.write(b"z" * BLOCK)
    found = check_device(image.path, scrub=True).findings
    assert {(finding.severity, finding.structure) for finding in found} == {("leak", "mass store")}
    assert check_device(image.path, repair=True, scrub=True).clean
    assert image.mass.read_bytes()[BLOCK:] == slots[BLOCK:]
    with Device.open(image.path) as device:
        assert {name: device.region().read(0, NBLOCKS * BLOCK, name) for name in read} == read


def test_repair_of_an_image_that_is_being_written_is_refused(tmp_path: Path) -> None:
    image = Image(tmp_path)
    with Device.open(image.path, writable=True) as device:
        _leak_blocks(device)
    with Device.open(image.path, writable=True):
        before = image.files()
        with pytest.raises(BusyError):
            check_device(image.path, repair=True)
        assert image.files() == before


@pytest.mark.parametrize("late", ["snapshot", "purge"])
def test_repair_counts_what_was_written_while_it_looked(tmp_path: Path, late: str) -> None:
    image = Image(tmp_path)
    with Device.open(image.path, writable=True) as device:
        _raise_entry_counts(device)
    written = []

    def write(done: int, total: int, unit: str) -> None:
        if not written:
            written.append(unit)
            # Its changes stay in the log, as those of a writer that was killed: closing would wait for the check to end.
            device = Device.open(image.path, writable=True)
            if late == "snapshot":
                create_snapshot(device.region(), "t")
                device.region().write(NBLOCKS * BLOCK, b"n" * BLOCK)
                device.region().flush()
            else:
                purge(device, mode="virtblock")
            device.close(flush=False)

    check_device(image.path, repair=True, scrub=True, progress=write)
    assert written
    image.assert_intact()


def test_words_behind_the_logs_generation_are_mended_without_a_log_record(tmp_path: Path) -> None:
    image = Image(tmp_path)
    with open(image.path, "r+b") as file:
        file.seek(3 * BLOCK + 8)
        file.write(b"unused")
    # A reader keeps the log from going home: no record in it may name the log, or nobody could open the image any more.
    with Device.open(image.path):
        assert check_device(image.path, repair=True).clean
        assert check_device(image.path).clean
    image.assert_intact()


@pytest.mark.parametrize("mapping", ["virtblock", "direct"])
def test_words_of_the_other_mapping_are_found_unless_a_conversion_is_under_way(tmp_path: Path, mapping: str) -> None:
    image = Image(tmp_path, mapping)
    for mark, found in ((lay.CONVERTING, False), (0, True)):
        with Device.open(image.path, writable=True) as device, device.transaction():
            record = device.region().record
            flags = lay.VIRTBLOCK_MAPPING if mapping == "direct" else 0
            record.put("flags", flags | mark)
        findings = check_device(image.path).findings
        assert any("mapping" in finding.what for finding in findings) == found
