"""A stream on its way is seen by no reader: not when its receiver was killed, not while it is at work, not when it failed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nvmtool.errors import BusyError, StorageError
from nvmtool.region import layout as lay
from nvmtool.region.access import Access
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.extents import iter_extents
from nvmtool.region.format import format_device
from nvmtool.region.info import device_info
from nvmtool.region.purge import purge
from nvmtool.region.receive import receive
from nvmtool.region.send import send_snapshot
from nvmtool.region.snapshots import create_snapshot, delete_snapshot, diff_states, list_snapshots, revert_region
from nvmtool.region.transfer import export_file
from tests.faults.seam import Seam, failing
from tests.host.ground import killed_at, lines_of

BLOCK, MIB = 4096, 1 << 20
SIZE = 4 * MIB
KILLS = 10
SEEN_OF_A_REGION = ("name", "size_bytes", "mapping", "converting", "snapshots", "active_bytes", "active_purged_bytes", "purged_bytes")


@dataclass
class Ground:
    """An image, and a stream that it may receive: a region, or the next snapshot of one."""

    path: Path
    stream: Path
    force: bool

    def receive(self, progress: Callable[..., None] | None = None) -> None:
        """Take in the stream as the command does."""
        with Device.open(self.path, writable=True) as device:
            receive(device, str(self.stream), force=self.force, progress=progress)

    def copy(self, name: str) -> Ground:
        """Return the same in a folder of its own."""
        folder = self.path.parent / name
        folder.mkdir()
        # The storage of free slots was given back: the copy has holes there too.
        subprocess.run(["cp", "--sparse=always", self.path, self.path.with_suffix(".mass"), folder], check=True)
        return Ground(folder / self.path.name, self.stream, self.force)

    def seen(self) -> dict[Any, Any]:
        """Return what readers see, and insist on a clean check."""
        return seen(self.path)


def seen(path: Path) -> dict[Any, Any]:
    """Return what info, snapshot list, read, export, map, diff, send and the exports of a server show, with a clean check."""
    result = check_device(path, scrub=True)
    assert result.clean, result.findings
    with Device.open(path) as device:
        return seen_of(device)


def seen_of(device: Device) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    found["info"] = [{key: each[key] for key in SEEN_OF_A_REGION} for each in device_info(device)["regions"]]
    access = Access(device)
    found["served"] = {name: access.export(name).read_bytes(0, access.export(name).size_bytes) for name in access.names()}
    access.close()
    with tempfile.TemporaryDirectory(dir=device.path.parent) as folder:
        out = Path(folder) / "out"
        for region in device.regions():
            snapshots = [(each.name, each.created, each.owned_bytes, each.purged_bytes) for each in list_snapshots(region)]
            found[region.name] = snapshots
            for name in (None, *(each[0] for each in snapshots)):
                export_file(region, str(out), name)
                found[region.name, name] = region.read(0, region.size_bytes, name), out.read_bytes(), list(iter_extents(region, name))
                if name is not None:
                    send_snapshot(region, name, str(out))
                    found[region.name, name, "sent"] = out.read_bytes()
                    found[region.name, name, "diff"] = list(diff_states(region, name, None))
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, where there is one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(params=["a region", "what changed", "what changed, by force"])
def what(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["virtblock", "direct"])
def ground(what: str, request: pytest.FixtureRequest, folder: Path) -> Ground:
    """An image with monday, some of it purged, whose running point is monday's or went on, or without the region."""
    path, rng = folder / "disk.nvm", random.Random(7)
    format_device(path, size_bytes=24 * MIB, mass=path.with_suffix(".mass"))
    with Device.open(path, writable=True) as device:
        region = device.create_region("vm1", SIZE, request.param)
        region.write(0, rng.randbytes(MIB))
        region.write(SIZE - 5 * BLOCK, rng.randbytes(5 * BLOCK))
        create_snapshot(region, "monday")
        region.write(BLOCK, rng.randbytes(30 * BLOCK))
        region.flush()
        purge(device, mode="virtblock" if request.param == "virtblock" else "pointer-elimination", max_bytes=10 * BLOCK)
        region.write(MIB // 2, rng.randbytes(MIB))
        region.discard(20 * BLOCK, 40 * BLOCK)
        create_snapshot(region, "tuesday")
        send_snapshot(region, "tuesday", str(folder / "stream"), None if what == "a region" else "monday")
        if what == "a region":
            device.delete_region("vm1")
        else:
            revert_region(region, "monday")
            delete_snapshot(region, "tuesday")
        if what == "what changed, by force":
            region.write(10 * BLOCK, rng.randbytes(90 * BLOCK))
            region.discard(SIZE - 2 * BLOCK, BLOCK)
    return Ground(path, folder / "stream", what.endswith("by force"))


def after(ground: Ground) -> dict[Any, Any]:
    """Return what readers see of a copy that received the stream undisturbed."""
    copy = ground.copy("received")
    copy.receive()
    return copy.seen()


def test_killed_at_any_line_it_is_seen_by_no_reader(ground: Ground) -> None:
    before, received = ground.seen(), after(ground)
    nlines = lines_of(ground.copy("counted").receive)
    unseen = 0
    for number, line in enumerate(random.Random(1).sample(range(1, nlines), KILLS)):
        copy = ground.copy(f"killed-{number}")
        killed_at(copy.receive, line)
        found = copy.seen()
        assert found in (before, received), f"line {line} of {nlines}"
        unseen += found == before
        with Device.open(copy.path, writable=True):
            pass
        assert copy.seen() == found, f"line {line} of {nlines}: the next writer changed something"
        if found == before:
            copy.receive()
            assert copy.seen() == received, f"line {line} of {nlines}: again"
        shutil.rmtree(copy.path.parent)
    assert unseen


def test_killed_and_received_again_it_takes_no_more_space(ground: Ground) -> None:
    def free(path: Path) -> int:
        with Device.open(path) as device:
            return device.blocks.free_blocks

    once, twice = ground.copy("once"), ground.copy("twice")
    nlines = lines_of(once.receive)
    assert killed_at(twice.receive, nlines * 3 // 4)
    twice.receive()
    assert free(twice.path) == free(once.path)


def test_while_it_arrives_readers_see_what_was_before(ground: Ground) -> None:
    before, received = ground.seen(), after(ground)
    looks: list[int] = []
    held: list[Device] = []

    def look(done: int, *_: object) -> None:
        looks.append(done)
        if len(looks) % 2 == 0:
            assert ground.seen() == before
        if not held and len(looks) > 2:
            held.append(Device.open(ground.path))

    ground.receive(progress=look)
    assert len(looks) > 3
    # Who began to read before it was complete reads on in what was before.
    with held[0] as device:
        assert seen_of(device) == before
    assert ground.seen() == received


@pytest.mark.parametrize("what", ["what changed, by force"], indirect=True)
def test_failed_at_any_store_it_is_seen_by_no_reader(ground: Ground) -> None:
    before, received = ground.seen(), after(ground)
    with failing(Seam()) as counted:
        ground.copy("counted").receive()
    unseen = 0
    for at in random.Random(2).sample(range(1, counted.calls + 1), KILLS):
        copy = ground.copy(f"failed-{at}")
        with failing(Seam(at, once=at % 2 == 0)), pytest.raises(StorageError):
            copy.receive()
        found = copy.seen()
        assert found in (before, received), f"store {at} of {counted.calls}"
        unseen += found == before
    assert unseen


@pytest.mark.parametrize("what", ["what changed, by force"], indirect=True)
def test_beside_a_reader_that_keeps_the_log_from_going_home_it_has_happened_or_not(ground: Ground) -> None:
    with Device.open(ground.path, writable=True) as device:
        device.create_region("other", BLOCK).write(0, bytes(BLOCK))
    before, received = ground.seen(), after(ground)
    outcomes = set()
    for ncommits in range(12, 27):  # so much of the log is in use before
        copy = ground.copy(f"full-{ncommits}")
        with Device.open(copy.path, writable=True) as device:
            device.evict_readers_after(3600)
            with Device.open(copy.path):
                try:
                    for _ in range(ncommits):
                        device.region("other").write(0, bytes(BLOCK))
                        device.region("other").flush()
                    receive(device, str(copy.stream), force=True)
                    happened = True
                except BusyError:
                    happened = False
            left = any(region.record.get("flags") & lay.SWEEPING for region in device.regions())
            assert copy.seen() == (received if happened else before), ncommits
            if not happened:  # the reader has gone, and what could not be taken apart is still there
                receive(device, str(copy.stream), force=True)
        assert copy.seen() == received, ncommits
        with Device.open(copy.path, writable=True) as device:
            assert not any(region.record.get("flags") & lay.SWEEPING for region in device.regions())
        assert copy.seen() == received, ncommits
        outcomes.add((happened, left))
        shutil.rmtree(copy.path.parent)
    assert outcomes == {(True, False), (True, True), (False, True), (False, False)}
