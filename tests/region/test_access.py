"""The access layer against a model: bytes at any offset, many at once, beside snapshots, purges, recalls and a full device."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nvmtool.errors import DamagedError, NoSpaceError, NotFoundError, RefusedError, UsageError
from nvmtool.region.access import Access, Export
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.purge import purge
from nvmtool.region.recall import recall
from nvmtool.region.snapshots import create_snapshot, revert_region

BLOCK, MIB = 4096, 1 << 20
SIZE = 5 * MIB


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    format_device(tmp_path / "disk.nvm", size_bytes=32 * MIB, mass=tmp_path / "disk.mass")
    with Device.open(tmp_path / "disk.nvm", writable=True) as opened:
        opened.create_region("vm1", SIZE)
        yield opened


def content(export: Export) -> bytes:
    return export.read_bytes(0, export.size_bytes)


@pytest.mark.parametrize("mapping", ["virtblock", "direct"])
@pytest.mark.parametrize("seed", range(3))
def test_every_state_reads_as_the_model_says(seed: int, mapping: str, tmp_path: Path) -> None:
    rng = random.Random(seed)
    format_device(tmp_path / "disk.nvm", size_bytes=64 * MIB, mass=tmp_path / "disk.mass")
    with Device.open(tmp_path / "disk.nvm", writable=True) as device:
        device.create_region("vm1", SIZE, mapping)
        access = Access(device)
        running = access.export("vm1")
        model, kept = bytearray(SIZE), dict[str, bytes]()
        mode = "virtblock" if mapping == "virtblock" else "pointer-elimination"
        for step in range(80):
            extents = [_extent(rng) for _ in range(rng.choice((1, 3, 16, 40)))]
            match rng.randrange(12):
                case 0:
                    name = f"s{step}"
                    create_snapshot(running.region, name)
                    kept[name] = bytes(model)
                case 1:
                    access.flush()
                case 2:
                    purge(device, mode=mode, max_bytes=rng.choice((None, MIB)))
                case 3:
                    recall(device, max_bytes=MIB)
                case 4:
                    offset, length = extents[0]
                    running.write_zeroes(offset, length, keep_allocated=rng.random() < 0.5)
                    model[offset : offset + length] = bytes(length)
                case 5:
                    offset, length = extents[0]
                    running.trim(offset, length)
                    first, end = -(-offset // BLOCK) * BLOCK, (offset + length) // BLOCK * BLOCK
                    model[first:end] = bytes(max(end - first, 0))
                case 6 if kept:
                    name = rng.choice(list(kept))
                    revert_region(running.region, name)
                    model[:] = kept[name]
                case _:
                    data = [rng.randbytes(length) for _, length in extents]
                    if rng.random() < 0.5:  # whole blocks, as file systems write them
                        extents = [(offset // BLOCK * BLOCK, BLOCK) for offset, _ in extents]
                        data = [rng.randbytes(BLOCK) for _ in extents]
                    answers = running.write([(offset, memoryview(each)) for (offset, _), each in zip(extents, data, strict=True)])
                    assert answers == [None] * len(extents)
                    for (offset, length), each in zip(extents, data, strict=True):
                        model[offset : offset + length] = each
            _compare(running, model, [_extent(rng) for _ in range(20)])
            if kept:
                name = rng.choice(list(kept))
                _compare(access.export(f"vm1@{name}"), kept[name], [_extent(rng) for _ in range(5)])
        assert content(running) == model
        assert _zeros_where_status_says(running, model)
        for name, expected in kept.items():
            assert content(access.export(f"vm1@{name}")) == expected
        access.close()
    assert check_device(tmp_path / "disk.nvm", scrub=True).clean


def _extent(rng: random.Random) -> tuple[int, int]:
    length = rng.choice((1, 100, BLOCK, 2 * BLOCK, 5000, 64 << 10, 300 << 10))
    offset = rng.randrange(SIZE - length)
    return (offset // BLOCK * BLOCK if rng.random() < 0.5 else offset), length


def _compare(export: Export, model: bytes | bytearray, extents: list[tuple[int, int]]) -> None:
    for (offset, length), answer in zip(extents, export.read(extents), strict=True):
        assert answer is None or isinstance(answer, list), answer
        found = bytes(length) if answer is None else b"".join(answer)
        assert found == model[offset : offset + length], (offset, length)


def _zeros_where_status_says(export: Export, model: bytes | bytearray) -> bool:
    behind = 0
    for offset, length, data in export.status(0, export.size_bytes):
        assert offset == behind and length > 0
        assert data or not any(model[offset : offset + length])
        behind = offset + length
    return behind == export.size_bytes


def test_status_sees_what_is_not_flushed_yet(device: Device) -> None:
    running = Access(device).export("")
    running.write([(3 * MIB, memoryview(bytes(range(256)) * 64)), (0, memoryview(b"x" * BLOCK))])
    expected = [(0, BLOCK, True), (BLOCK, 3 * MIB - BLOCK, False), (3 * MIB, 16384, True), (3 * MIB + 16384, 2 * MIB - 16384, False)]
    assert list(running.status(0, SIZE)) == expected
    device.flush()
    assert list(running.status(0, SIZE)) == expected
    assert list(running.status(100, 50)) == [(100, 50, True)]
    assert list(running.status(3 * MIB - 10, 20)) == [(3 * MIB - 10, 10, False), (3 * MIB, 10, True)]


def test_a_request_past_the_end_fails_alone(device: Device) -> None:
    running = Access(device).export("vm1")
    answers = running.write([(SIZE - 1, memoryview(b"ab")), (0, memoryview(b"c"))])
    assert isinstance(answers[0], UsageError) and answers[1] is None
    past, before, fine = running.read([(SIZE, 1), (-4096, 1), (0, 2)])
    assert isinstance(past, UsageError) and isinstance(before, UsageError)
    assert fine is not None and not isinstance(fine, Exception) and b"".join(fine) == b"c\0"


def test_a_full_device_fails_what_does_not_fit_and_loses_nothing(tmp_path: Path) -> None:
    format_device(tmp_path / "small.nvm", size_bytes=4 * MIB, mass=tmp_path / "small.mass")
    rng = random.Random(7)
    with Device.open(tmp_path / "small.nvm", writable=True) as device:
        device.create_region("vm1", 64 * MIB)
        access = Access(device)
        running, written = access.export("vm1"), dict[int, bytes]()
        for _ in range(400):
            batch = [(rng.randrange(64 * MIB // BLOCK) * BLOCK, rng.randbytes(BLOCK)) for _ in range(16)]
            answers = running.write([(offset, memoryview(data)) for offset, data in batch])
            written.update({offset: data for (offset, data), error in zip(batch, answers, strict=True) if error is None})
            if any(answers):
                break
        assert all(error is None or isinstance(error, NoSpaceError) for error in answers)
        assert isinstance(answers[-1], NoSpaceError)
        access.flush()
        assert all(running.read_bytes(offset, BLOCK) == data for offset, data in written.items())
        access.close()
    assert check_device(tmp_path / "small.nvm").clean


def test_a_damaged_purged_block_fails_its_own_request_alone(device: Device, tmp_path: Path) -> None:
    access = Access(device)
    running = access.export("vm1")
    running.write([(0, memoryview(random.Random(1).randbytes(MIB)))])
    create_snapshot(running.region, "monday")
    expected = content(running)
    running.write([(0, memoryview(bytes(MIB)))])
    access.flush()
    purge(device, mode="virtblock")
    with (tmp_path / "disk.mass").open("r+b") as file:
        file.seek(10 * BLOCK + 5)
        file.write(b"damage")
    monday = access.export("vm1@monday")
    answers = monday.read([(index * BLOCK, BLOCK) for index in range(256)])
    damaged = [number for number, answer in enumerate(answers) if isinstance(answer, DamagedError)]
    assert len(damaged) == 1
    for number, answer in enumerate(answers):
        if number != damaged[0]:
            assert isinstance(answer, list) and b"".join(answer) == expected[number * BLOCK :][:BLOCK]


def test_a_damaged_table_word_fails_its_own_block_alone(device: Device) -> None:
    access = Access(device)
    running = access.export("vm1")
    running.write([(index * BLOCK, memoryview(bytes([index + 1]) * BLOCK)) for index in range(64)])
    access.flush()
    (leaf,) = running.region.pages.tables.find_leaves(running.region.root_of(None), np.array([0])).tolist()
    device.journal.words[leaf * 512 + 5] ^= 1 << 20
    access.forget()
    answers = running.read([(index * BLOCK, BLOCK) for index in range(64)])
    assert [number for number, answer in enumerate(answers) if isinstance(answer, DamagedError)] == [5]
    device.journal.words[leaf * 512 + 5] ^= 1 << 20


def test_exports_are_named_and_snapshots_are_read_only(device: Device) -> None:
    access = Access(device)
    create_snapshot(access.export("").region, "monday")
    assert access.names() == ["vm1", "vm1@monday"]
    (error,) = access.export("@monday").write([(0, memoryview(b"x"))])
    assert isinstance(error, RefusedError)
    with pytest.raises(RefusedError):
        access.export("vm1@monday").trim(0, BLOCK)
    for wrong in ("vm2", "vm1@tuesday", "vm1@"):
        with pytest.raises(NotFoundError):
            access.export(wrong)
    device.create_region("vm2", BLOCK)
    with pytest.raises(UsageError):
        access.export("")


def test_a_failed_store_leaves_no_block_taken(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access(device)
    running = access.export("vm1")
    running.write([(0, memoryview(bytes(64 * BLOCK)))])
    access.flush()
    before = device.blocks.available

    def fails(*_: object) -> None:
        raise NoSpaceError("injected")

    with monkeypatch.context() as patched:
        patched.setattr(device.store, "store_bytes", fails)
        answers = running.write([(BLOCK, memoryview(b"x" * 32 * BLOCK))])
    assert isinstance(answers[0], NoSpaceError)
    assert device.blocks.available == before
    assert not any(running.read_bytes(0, 64 * BLOCK))
