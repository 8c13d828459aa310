"""NVM as RAM: lent, used, called back always; the device image's data are the same before, during and after."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from nvmtool.errors import NoSpaceError, NotFoundError
from nvmtool.host import layout as lay
from nvmtool.host.accounting import account
from nvmtool.host.balance import balance
from nvmtool.host.create import create_vm
from nvmtool.host.host import Host
from nvmtool.host.lending import give_back, lend
from nvmtool.host.power import power_off, power_on, settle
from nvmtool.host.sharing import share
from nvmtool.host.suspend import restart, resume, suspend
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.lending import lendable_blocks
from nvmtool.region.snapshots import create_snapshot

from .ground import MIB, PAGE, expected, make_host, memory_of, mpns_of, require_sound, write

RAM = 64
LIVE_BLOCKS = 200


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A host of 64 pages whose image of 4 MiB holds live data and a snapshot; VMs a and b of 64 pages may swap all of theirs."""
    path = make_host(tmp_path, ram=RAM, nvm_bytes=4 * MIB)
    with Device.open(tmp_path / "disk.nvm", writable=True) as device:
        device.create_region("data", size_bytes=2 * MIB)
        region = device.region("data")
        region.write(0, random.Random(1).randbytes(LIVE_BLOCKS * PAGE))
        region.flush()
        create_snapshot(region, "before")
        region.write(0, random.Random(2).randbytes(20 * PAGE))
        region.flush()
    with Host.open(path, writable=True) as host:
        for name in "ab":
            create_vm(host, name, memory_bytes=RAM * PAGE)
            power_on(host, name)
            settle(host, name)
    return path


def _live(path: Path) -> str:
    """Return the hash of all live data of the image, and insist that it checks clean."""
    image = path.parent / "disk.nvm"
    digest = hashlib.sha256()
    with Device.open(image) as device:
        for snapshot in (None, "before"):
            digest.update(device.region("data").read(0, 2 * MIB, snapshot))
    result = check_device(image)
    assert result.clean, result.findings
    return digest.hexdigest()


HOLD: dict[str, dict[int, object]] = {name: {ppn: f"{name}{ppn}" for ppn in range(48)} for name in "ab"}


def test_live_data_of_the_image_are_the_same_before_during_and_after(path: Path) -> None:
    before = _live(path)
    with Host.open(path, writable=True) as host:
        assert lend(host, 64) == 64
        for name, pages in HOLD.items():
            write(host, name, pages)
        used = [mpn for name in "ab" for mpn in mpns_of(host, name) if mpn >= RAM]
        assert len(used) == 96 - RAM
        assert account(host).lent_in_use_pages == len(used)
    assert _live(path) == before
    with Device.open(path.parent / "disk.nvm", writable=True) as device:
        # The image's owner goes on writing meanwhile, and gets none of the lent blocks.
        region = device.region("data")
        region.write(MIB, random.Random(3).randbytes(100 * PAGE))
        region.flush()
    during = _live(path)
    with Host.open(path, writable=True) as host:
        assert [memory_of(host, name) == expected(HOLD[name], RAM) for name in "ab"] == [True, True]
        assert give_back(host, 64).pages == 64
        assert [memory_of(host, name) == expected(HOLD[name], RAM) for name in "ab"] == [True, True]
    assert _live(path) == during
    require_sound(path)


def test_free_pages_go_back_first_then_contents_move_to_ram_then_they_are_swapped(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        lend(host, 64)
        for name, pages in HOLD.items():
            write(host, name, pages)
        first = give_back(host, 32)
        assert (first.pages, first.free_pages, first.moved_pages, first.swapped_pages) == (32, 32, 0, 0)
        power_off(host, "b")
        assert host.frames.free_ram > 0
        second = give_back(host, 16)
        assert (second.pages, second.swapped_pages) == (16, 0)
        power_on(host, "b")
        settle(host, "b")
        write(host, "b", {ppn: HOLD["b"][ppn] for ppn in range(31)})
        third = give_back(host, 16)
        assert third.pages == 16
        assert third.swapped_pages > 0
        assert host.frames.get("lent") == 0
        assert memory_of(host, "a") == expected(HOLD["a"], RAM)
        assert memory_of(host, "b") == expected({ppn: HOLD["b"][ppn] for ppn in range(31)}, RAM)
    require_sound(path)


def test_lent_pages_that_suspended_vms_share_go_back_too(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        lend(host, 64)
        write(host, "a", {**HOLD["a"], 50: "common", 51: "common"})
        write(host, "b", {**HOLD["b"], 50: "common"})
        share(host)
        suspend(host, "a")
        suspend(host, "b", batch=8, most_batches=2)
        assert give_back(host, 64).pages == 64
        suspend(host, "b")
        restart(host)
    with Host.open(path, writable=True) as host:
        assert account(host).lent_pages == 0
        for name in "ba":
            resume(host, name)
        assert memory_of(host, "a") == expected({**HOLD["a"], 50: "common", 51: "common"}, RAM)
        assert memory_of(host, "b") == expected({**HOLD["b"], 50: "common"}, RAM)
    require_sound(path)


def test_a_suspended_vm_keeps_its_lent_frames_over_a_restart(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        lend(host, 64)
        for name, pages in HOLD.items():
            write(host, name, pages)
        mpns = {name: mpns_of(host, name) for name in "ab"}
        for name in "ab":
            suspend(host, name)
        restart(host)
    with Host.open(path, writable=True) as host:
        for name in "ab":
            resume(host, name)
        assert {name: mpns_of(host, name) for name in "ab"} == mpns
        assert give_back(host, 1000).pages == 64
        assert [memory_of(host, name) == expected(HOLD[name], RAM) for name in "ab"] == [True, True]
    require_sound(path)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_asked_back_comes_back(seed: int, path: Path) -> None:
    rng = random.Random(seed)
    hold: dict[str, dict[int, object]] = {"a": {}, "b": {}}
    lent = 0
    before = _live(path)
    with Host.open(path, writable=True) as host:
        for _ in range(8):
            more = rng.randrange(1, 40)
            lent += lend(host, more)
            name = rng.choice("ab")
            room = host.frames.free_pages
            pages: dict[int, object] = {
                ppn: rng.choice(["x", "y", f"{name}{ppn}{rng.random()}"]) for ppn in rng.sample(range(RAM), min(room, 30))
            }
            write(host, name, pages)
            hold[name] |= pages
            if rng.random() < 0.5:
                share(host)
            asked = rng.randrange(1, lent + 10)
            found = give_back(host, asked)
            assert found.pages == min(asked, lent)
            lent -= found.pages
            assert host.frames.get("lent") == lent
        assert [memory_of(host, name) == expected(hold[name], RAM) for name in "ab"] == [True, True]
    require_sound(path)
    assert _live(path) == before


def test_after_the_machine_was_restarted_lent_pages_are_simply_free(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _live(path)
    with Host.open(path, writable=True) as host:
        lend(host, 64)
        for name, pages in HOLD.items():
            write(host, name, pages)
    other_boot = path.parent / "boot_id"
    other_boot.write_text("8f0c5e0e-6a5b-4ab3-9d0d-1d8f1e0c7a11\n")
    monkeypatch.setattr(lay, "_BOOT_ID", other_boot)
    with Host.open(path, writable=True, lost=True) as host:
        restart(host, force=True)
        assert account(host).lent_pages == 0
        assert lend(host, 32) == 32
        assert give_back(host, 32).pages == 32
    assert _live(path) == before
    with Device.open(path.parent / "disk.nvm") as device:
        assert device.lent_blocks == 0
    require_sound(path)


def test_balance_borrows_when_memory_is_short_and_swaps_when_the_image_is(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        write(host, "a", {ppn: f"a{ppn}" for ppn in range(63)})
        found = balance(host, chunk_pages=16)
        assert (found.state_before, found.state, found.lent_pages, found.swapped_pages) == ("low", "high", 16, 0)
        # The image fills up: it has nothing to lend, and soon needs its own.
    with Device.open(path.parent / "disk.nvm", writable=True) as device:
        room = lendable_blocks(device)
        device.create_region("more", size_bytes=4 * MIB)
        region = device.region("more")
        region.write(0, random.Random(4).randbytes((room + 64) * PAGE))
        region.flush()
    with Host.open(path, writable=True) as host:
        found = balance(host, chunk_pages=16)
        assert (found.returned_pages, found.lent_pages) == (16, 0)
        assert host.frames.get("lent") == 0
        write(host, "a", {63: "one more"})
        found = balance(host, chunk_pages=16)
        assert found.lent_pages == 0
        assert found.swapped_pages > 0
        assert found.state == "high"
        assert memory_of(host, "a") == expected({**{ppn: f"a{ppn}" for ppn in range(63)}, 63: "one more"}, RAM)
    require_sound(path)


def test_more_than_the_image_has_is_refused_and_nothing_is_lent(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        with pytest.raises(NoSpaceError, match="device full"):
            lend(host, 10_000)
        assert host.frames.get("lent") == 0
    require_sound(path)


def test_a_host_without_an_image_says_so(tmp_path: Path) -> None:
    path = make_host(tmp_path)
    with Host.open(path, writable=True) as host, pytest.raises(NotFoundError, match="nvmtool host init --nvm"):
        lend(host, 1)
