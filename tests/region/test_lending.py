"""Free blocks lent to a host as memory: never both lent and data, counted right, and free again when they are taken back or forgotten."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from nvmtool.errors import NoSpaceError, RefusedError, UsageError
from nvmtool.media import sysio, word
from nvmtool.media.journal import Journal, runs
from nvmtool.region import layout as lay
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.info import device_info
from nvmtool.region.lending import forget_lent, lend_blocks, lendable_blocks, lent_block_numbers, take_back
from nvmtool.region.purge import purge
from nvmtool.region.snapshots import create_snapshot, delete_snapshot

BLOCK = 4096
TAG, OTHER = 0x1234, 0x5678
NBLOCKS = 300


class Image:
    """An image of 16 MiB whose region's blocks are a snapshot's and the running point's; `data` is what both must read."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disk.nvm"
        rng = random.Random(5)
        self.data = {"s": rng.randbytes(NBLOCKS * BLOCK), None: rng.randbytes(NBLOCKS * BLOCK)}
        format_device(self.path, size_bytes=16 << 20, mass=folder / "disk.mass", sparse=True)
        with self.open() as device:
            region = device.create_region("vm", 64 << 20)
            region.write(0, self.data["s"])
            create_snapshot(region, "s")
            region.write(0, self.data[None])

    def open(self) -> Device:
        return Device.open(self.path, writable=True)

    def scribble(self, blocks: np.ndarray) -> None:
        """Store to blocks as a host does: behind the back of whoever has the image open."""
        with self.path.open("r+b") as file:
            for block in blocks.tolist():
                file.seek(block * BLOCK)
                file.write(b"\xa5" * BLOCK)

    def assert_intact(self) -> None:
        assert check_device(self.path, scrub=True).findings == []
        with Device.open(self.path) as device:
            for name, data in self.data.items():
                if name is None or device.region("vm").snapshots.find(name):
                    assert device.region("vm").read(0, len(data), name) == data, name


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


def _lend(image: Image, count: int, tag: int = TAG) -> np.ndarray:
    with image.open() as device:
        return lend_blocks(device, count, tag=tag)


def test_lent_blocks_are_counted_and_named_after_every_open(image: Image) -> None:
    blocks = _lend(image, 700)
    assert len(np.unique(blocks)) == 700
    with Device.open(image.path) as device:
        facts = device_info(device)
        assert (device.lent_blocks, device.lender_tag) == (700, TAG)
        assert lent_block_numbers(device).tolist() == blocks.tolist()
    assert facts["lent_bytes"] == 700 * BLOCK
    assert facts["used_bytes"] + facts["free_bytes"] == facts["size_bytes"]
    image.assert_intact()


def test_lending_changes_what_is_free_and_not_what_is_metadata(image: Image) -> None:
    with image.open() as device:
        before = device_info(device)
        blocks = lend_blocks(device, 100, tag=TAG)
        lent = device_info(device)
        take_back(device, blocks)
        after = device_info(device)
    assert before["free_bytes"] - lent["free_bytes"] == 100 * BLOCK
    assert lent["metadata_bytes"] == before["metadata_bytes"]
    assert {**after, "log_records": 0} == {**before, "log_records": 0}


def test_data_are_untouched_by_stores_to_lent_blocks_and_by_all_that_the_image_does_meanwhile(image: Image) -> None:
    blocks = _lend(image, 1500)
    image.scribble(blocks)
    image.assert_intact()
    with image.open() as device:
        region = device.region("vm")
        image.data[None] = random.Random(6).randbytes(NBLOCKS * BLOCK)
        region.write(0, image.data[None])
        region.flush()
        purge(device, mode="virtblock")
        device.create_region("other", 1 << 20).write(0, b"y" * BLOCK)
        image.scribble(blocks)
        delete_snapshot(region, "s")
    image.assert_intact()
    with image.path.open("rb") as file:
        for block in blocks.tolist():
            file.seek(block * BLOCK)
            assert file.read(BLOCK) == b"\xa5" * BLOCK
    with image.open() as device:
        take_back(device, blocks)
        region = device.region("vm")
        image.data[None] = random.Random(7).randbytes(2000 * BLOCK)
        region.write(0, image.data[None])
    image.assert_intact()


def test_what_is_taken_back_can_be_lent_and_written_again(image: Image) -> None:
    with image.open() as device:
        most = device.blocks.available
        blocks = lend_blocks(device, most, tag=TAG)
        with pytest.raises(NoSpaceError, match="device full"):
            lend_blocks(device, 1, tag=TAG)
        with pytest.raises(NoSpaceError, match="device full"):
            device.region("vm").write(40 << 20, b"x" * BLOCK)
        take_back(device, blocks[::2])
        assert lent_block_numbers(device).tolist() == blocks[1::2].tolist()
        again = lend_blocks(device, len(blocks[::2]), tag=TAG)
        assert again.tolist() == blocks[::2].tolist()
        take_back(device, blocks)
        assert (device.lent_blocks, device.lender_tag) == (0, 0)
        device.region("vm").write(40 << 20, b"x" * BLOCK)
    image.assert_intact()


def test_more_than_is_free_lends_nothing(image: Image) -> None:
    with image.open() as device:
        free = device.blocks.free_blocks
        with pytest.raises(NoSpaceError, match="device full"):
            lend_blocks(device, free, tag=TAG)
        assert (device.lent_blocks, device.blocks.free_blocks) == (0, free)
        device.region("vm").write(0, image.data[None])
    image.assert_intact()


def test_only_the_host_that_has_blocks_gets_more(image: Image) -> None:
    _lend(image, 10)
    with image.open() as device:
        with pytest.raises(RefusedError, match=r"disk\.nvm: 40 KiB are lent to another host \(tag 000000001234, not 000000005678\)"):
            lend_blocks(device, 1, tag=OTHER)
        assert len(lend_blocks(device, 5, tag=TAG)) == 5
        assert forget_lent(device) == 15
        assert device.lender_tag == 0
        assert len(lend_blocks(device, 1500, tag=OTHER)) == 1500
        assert device.lender_tag == OTHER
    image.assert_intact()


@pytest.mark.parametrize("tag", [0, -1, 1 << 48])
def test_a_tag_out_of_range_is_refused(image: Image, tag: int) -> None:
    with image.open() as device, pytest.raises(UsageError, match="lender tag"):
        lend_blocks(device, 1, tag=tag)


def test_only_lent_blocks_are_taken_back(image: Image) -> None:
    with image.open() as device:
        blocks = lend_blocks(device, 20, tag=TAG)
        used = int(next(device.blocks.iter_of_kind(word.BLOCK))[0])
        for wrong in (used, int(blocks[-1]) + 1, 2, device.blocks.end):
            with pytest.raises(RefusedError, match=f"block {wrong} is not lent"):
                take_back(device, np.array([*blocks.tolist(), wrong]))
        assert device.lent_blocks == 20
        take_back(device, np.concatenate([blocks, blocks]))
        with pytest.raises(RefusedError, match="is not lent"):
            take_back(device, blocks[:1])
    image.assert_intact()


def test_forgetting_frees_all_and_nothing_else(image: Image) -> None:
    with image.open() as device:
        free = device.blocks.free_blocks
        assert forget_lent(device) == 0
    _lend(image, 333)
    _lend(image, 444)
    with image.open() as device:
        assert forget_lent(device) == 777
        assert device.blocks.free_blocks == free
    image.assert_intact()


def test_a_device_opened_for_reading_lends_nothing(image: Image) -> None:
    with Device.open(image.path) as device:
        for change in (lambda: lend_blocks(device, 1, tag=TAG), lambda: take_back(device, np.array([9])), lambda: forget_lent(device)):
            with pytest.raises(RefusedError, match="opened for reading"):
                change()


def test_the_low_water_mark_stays_free(image: Image) -> None:
    with image.open() as device:
        blocks = device.blocks
        assert lendable_blocks(device, 0.0) == blocks.available
        count = lendable_blocks(device, 0.25)
        lend_blocks(device, count, tag=TAG)
        assert blocks.free_blocks - 1 < blocks.nblocks * 0.25 <= blocks.free_blocks
        assert lendable_blocks(device, 0.25) == lendable_blocks(device, 0.9) == 0


def test_long_runs_are_lent_first(image: Image) -> None:
    with image.open() as device:
        # Every other block of the first part is used.
        scattered = device.blocks.take(1000)
        with device.transaction():
            device.blocks.name(scattered[::2], word.BLOCK)
        device.blocks.give_back(scattered[1::2])
        blocks = lend_blocks(device, 1200, tag=TAG)
        assert len(list(runs(blocks))) < 10
        assert blocks.min() > scattered[-600]


def test_lent_blocks_of_a_sparse_image_have_storage(disk_path: Path) -> None:
    image = Image(disk_path)
    with image.open() as device:
        blocks = lend_blocks(device, 600, tag=TAG)
    with image.path.open("rb") as file:
        fd = file.fileno()
        extents = [extent for first, count in runs(blocks) for extent in sysio.iter_extents(fd, first * BLOCK, count * BLOCK)]
    assert sum(extent.length for extent in extents) == 600 * BLOCK


def test_lending_more_than_a_transaction_can_change_takes_several(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "max_words", 200)
    with image.open() as device:
        before = device.journal.sequence
        blocks = lend_blocks(device, 500, tag=TAG)
        assert device.journal.sequence - before == 6
        assert device.lent_blocks == 500
        assert lent_block_numbers(device).tolist() == blocks.tolist()
    image.assert_intact()
    with image.open() as device:
        before = device.journal.sequence
        take_back(device, blocks[100:])
        assert device.journal.sequence - before == 5
        assert (device.lent_blocks, device.lender_tag) == (100, TAG)
        assert forget_lent(device) == 100
    image.assert_intact()


def test_an_image_from_before_lending_lends(image: Image) -> None:
    with image.open() as device:
        assert device.journal.words[lay.ROOT_BLOCK * 512 + lay.field_index(lay.ROOT, "lender_tag")] == 0
    image.assert_intact()
    blocks = _lend(image, 3)
    with image.open() as device:
        take_back(device, blocks)
        assert device.journal.words[lay.ROOT_BLOCK * 512 + lay.field_index(lay.ROOT, "lender_tag")] == 0


def _findings(image: Image) -> list[tuple[str, str, str]]:
    return [(each.severity, each.structure, each.where) for each in check_device(image.path).findings]


def _set(device: Device, name: str, value: int) -> None:
    with device.transaction():
        device.root.put(name, value)


@pytest.mark.parametrize(("count", "name", "value"), [(50, "lent_blocks", 49), (50, "lent_blocks", 51), (0, "lender_tag", TAG)])
def test_a_root_word_that_differs_from_the_count_words_is_mended(image: Image, count: int, name: str, value: int) -> None:
    blocks = _lend(image, count) if count else None
    with image.open() as device:
        _set(device, name, value)
    assert _findings(image) == [("error", "root word", name)]
    assert check_device(image.path, repair=True).clean
    with Device.open(image.path) as device:
        assert device.lent_blocks == count
        assert count == 0 or lent_block_numbers(device).tolist() == blocks.tolist()
    image.assert_intact()


@pytest.mark.parametrize("count", [0, 1])
def test_a_lent_block_whose_count_word_says_otherwise_is_not_freed_by_repair(image: Image, count: int) -> None:
    """Its host may be using it."""
    blocks = _lend(image, 50)
    with image.open() as device, device.transaction():
        counts = np.array([count], np.uint64)
        device.journal.set_words(*device.blocks.sealed_counts(blocks[7:8], counts, np.array([word.BLOCK], np.uint8)))
    assert {where for _, _, where in _findings(image)} >= {"lent_blocks"}
    before = image.path.read_bytes()
    assert not check_device(image.path, repair=True).clean
    assert image.path.read_bytes() == before


def test_lent_blocks_without_a_tag_are_found_and_can_be_forgotten(image: Image) -> None:
    _lend(image, 50)
    with image.open() as device, device.transaction():
        device.root.clear("lender_tag")
    assert _findings(image) == [("error", "root word", "lender_tag")]
    with image.open() as device:
        assert forget_lent(device) == 50
    image.assert_intact()


def test_a_lent_block_that_a_table_names_is_an_error(image: Image) -> None:
    with image.open() as device:
        block = next(device.blocks.iter_of_kind(word.BLOCK))[:1]
        at, words = device.blocks.sealed_counts(block, np.ones(1, np.uint64), np.array([word.LENT], np.uint8))
        with device.transaction():
            device.journal.set_words(at, words)
            device.root.put("lent_blocks", 1)
            device.root.put("lender_tag", TAG)
    found = check_device(image.path, repair=True)
    assert not found.clean
    assert "kind is LENT, named as BLOCK" in {each.what for each in found.findings}


def test_a_lent_block_that_counts_more_than_once_is_mended(image: Image) -> None:
    blocks = _lend(image, 50)
    with image.open() as device, device.transaction():
        device.blocks.add_refs(blocks[3:4], word.LENT)
    assert _findings(image) == [("leak", "count word", f"block {blocks[3]}")]
    assert check_device(image.path, repair=True).clean
    with Device.open(image.path) as device:
        assert lent_block_numbers(device).tolist() == blocks.tolist()
    image.assert_intact()


def test_a_reader_holds_up_no_more_than_the_reuse_of_blocks(image: Image) -> None:
    with Device.open(image.path) as reader:
        blocks = _lend(image, 200)
        image.scribble(blocks)
        for name, data in image.data.items():
            assert reader.region().read(0, len(data), name) == data
        with image.open() as device:
            take_back(device, blocks)
    image.assert_intact()
