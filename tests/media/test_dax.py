"""The store for DAX: what it writes through libpmem, the ordinary store reads back.

Only a DAX device grants MAP_SYNC, so these tests ask for a plain shared mapping in its place: all of the store's own code and
libpmem's flushing run. What they cannot show is that a real medium grants MAP_SYNC, and that what was flushed survives power loss.
"""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from nvmtool.cli.group import group
from nvmtool.errors import StorageError
from nvmtool.media import pmem, store
from nvmtool.media.store import DaxStore, FileStore, open_store
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.info import device_info
from nvmtool.region.purge import purge
from nvmtool.region.recall import recall
from nvmtool.region.snapshots import create_snapshot, delete_snapshot, revert_region

BLOCK = 4096
SIZE = 64 * BLOCK

needs_libpmem = pytest.mark.skipif(pmem.find_libpmem() is None, reason="libpmem.so.1 is not installed")


@pytest.fixture
def granted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file grants what otherwise only a file on DAX does."""
    for module in (pmem, store):
        monkeypatch.setattr(module, "_MAP_SHARED_VALIDATE_SYNC", mmap.MAP_SHARED)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file of zeros."""
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


def test_a_file_that_is_not_on_dax_is_flushed_with_fdatasync(fd: int, tmp_path: Path) -> None:
    assert not pmem.can_map_sync(fd)
    opened = open_store(tmp_path / "image", fd, SIZE, writable=True)
    assert (type(opened), opened.fence_kind) == (FileStore, "fdatasync")
    opened.close()


def test_a_missing_libpmem_is_named_with_its_package(fd: int, tmp_path: Path, granted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pmem.ctypes, "CDLL", _no_library)
    pmem.find_libpmem.cache_clear()
    try:
        assert type(open_store(tmp_path / "image", fd, SIZE, writable=True)) is FileStore
        with pytest.raises(StorageError, match="libpmem1"):
            pmem.load_libpmem()
    finally:
        pmem.find_libpmem.cache_clear()


def _no_library(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


@needs_libpmem
def test_every_kind_of_store_is_read_back_by_the_ordinary_store(fd: int, tmp_path: Path, granted: None) -> None:
    path = tmp_path / "image"
    rng = random.Random(1)
    expected = bytearray(SIZE)
    opened = open_store(path, fd, SIZE, writable=True)
    assert (type(opened), opened.fence_kind) == (DaxStore, "libpmem")
    for number in range(200):
        offset = rng.randrange(0, SIZE - 3 * BLOCK)
        # Odd lengths, so that flushed lines begin and end anywhere; chunks of each type that the callers pass.
        chunks = [rng.randbytes(rng.randrange(300)), bytearray(rng.randbytes(BLOCK)), memoryview(rng.randbytes(77))]
        match number % 3:
            case 0:
                opened.store_bytes(offset, chunks)
            case 1:
                opened.store_durable(offset, chunks)
            case 2:
                offset = offset // 8 * 8
                chunks = [rng.randbytes(8)]
                opened.store_word(offset, int.from_bytes(chunks[0], "little"))
        data = b"".join(chunks)
        expected[offset : offset + len(data)] = data
        if number % 7 == 0:
            opened.fence()
    # The private view shows what went to the medium, as it does with the ordinary store.
    assert opened.view.tobytes() == expected
    opened.fence()
    opened.close()
    again = FileStore(path, fd, SIZE, writable=False)
    assert again.view.tobytes() == expected
    assert path.read_bytes() == expected


@needs_libpmem
def test_private_changes_stay_private_and_can_be_dropped(fd: int, tmp_path: Path, granted: None) -> None:
    opened = open_store(tmp_path / "image", fd, SIZE, writable=True)
    opened.view[BLOCK : 2 * BLOCK] = 7
    opened.store_bytes(BLOCK, [b"x" * BLOCK])
    assert opened.view[BLOCK] == 7
    opened.drop_private(BLOCK, BLOCK)
    assert opened.view[BLOCK : 2 * BLOCK].tobytes() == b"x" * BLOCK
    opened.close()


@needs_libpmem
def test_a_reader_maps_nothing_that_it_could_store_to(fd: int, tmp_path: Path, granted: None) -> None:
    opened = open_store(tmp_path / "image", fd, SIZE, writable=False)
    assert type(opened) is DaxStore
    with pytest.raises(AssertionError):
        opened.store_word(0, 1)
    opened.close()


@needs_libpmem
def test_a_device_written_through_libpmem_is_whole_for_the_ordinary_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk.nvm"
    rng = random.Random(2)
    states: dict[str | None, bytes] = {}
    with monkeypatch.context() as patched:
        for module in (pmem, store):
            patched.setattr(module, "_MAP_SHARED_VALIDATE_SYNC", mmap.MAP_SHARED)
        format_device(path, size_bytes=16 << 20, mass=tmp_path / "disk.mass")
        with Device.open(path, writable=True) as device:
            assert device_info(device)["flush"] == "libpmem"
            region = device.create_region("vm", 2 << 20)
            for name in ("a", "b", "c"):
                region.write(0, rng.randbytes(300 * BLOCK))
                region.write(301 * BLOCK + 5, rng.randbytes(99))
                create_snapshot(region, name)
                states[name] = region.read(0, region.size_bytes)
            region.write(0, rng.randbytes(100 * BLOCK))
            purge(device, mode="virtblock", snapshots=["a"])
            purge(device, mode="pointer-elimination")
            recall(device, snapshot="c")
            delete_snapshot(region, "a")
            del states["a"]
            revert_region(region, "b")
            region.write(7 * BLOCK, rng.randbytes(BLOCK))
            states[None] = region.read(0, region.size_bytes)
        result = CliRunner().invoke(group, ["info", str(path)])
        assert "flush       libpmem" in result.stdout
    assert check_device(path, scrub=True).findings == []
    with Device.open(path) as device:
        assert device_info(device)["flush"] == "fdatasync"
        assert {name: device.region().read(0, 2 << 20, name) for name in states} == states
