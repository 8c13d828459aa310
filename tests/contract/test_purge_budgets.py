"""Budgets of a purge: where it stops, what it says, and that the next run does the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nvmtool.region.device import Device

BLOCK = 4096
MIB = 1 << 20
# How many blocks the fixture's two snapshots alone name.
NON_ACTIVE = 96
MODES = ("virtblock", "pointer-elimination")


def _states(tool: Any) -> dict[str | None, bytes]:
    return {name: tool.bytes_of(name) for name in (None, "monday", "tuesday")}


def _purge(tool: Any, mode: str, *options: str) -> dict[str, Any]:
    """Purge, hold what it reports against what the image says, and return it."""
    before = tool.json("info", "disk.nvm")["regions"][0]
    facts: dict[str, Any] = tool.json("purge", "disk.nvm", "--mode", mode, *options)
    info = tool.json("info", "disk.nvm")
    after = info["regions"][0]
    assert facts["bytes_purged"] == facts["blocks_purged"] * BLOCK
    assert before["non_active_bytes"] - after["non_active_bytes"] == facts["bytes_purged"]
    assert after["purged_bytes"] - before["purged_bytes"] == facts["bytes_purged"] == info["mass"]["used_bytes"] - before["purged_bytes"]
    assert facts["blocks_remaining"] * BLOCK == after["non_active_bytes"]
    assert facts["free_bytes_after"] == info["free_bytes"]
    return facts


def _assert_all_is_purged(tool: Any, states: dict[str | None, bytes]) -> None:
    (region,) = tool.json("info", "disk.nvm")["regions"]
    assert (region["non_active_bytes"], region["purged_bytes"]) == (0, NON_ACTIVE * BLOCK)
    assert _states(tool) == states
    tool.run("check", "disk.nvm", "--scrub")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "nblocks"), [("0", 0), ("4095", 0), ("4K", 1), ("10000", 2), ("256K", 64), ("1G", NON_ACTIVE)])
def test_max_bytes_moves_the_whole_blocks_that_fit_and_the_next_run_the_rest(mode: str, size: str, nblocks: int, changed: Any) -> None:
    states = _states(changed)
    facts = _purge(changed, mode, "--max-bytes", size)
    assert (facts["blocks_purged"], facts["blocks_remaining"]) == (nblocks, NON_ACTIVE - nblocks)
    assert _states(changed) == states
    assert _purge(changed, mode)["blocks_purged"] == NON_ACTIVE - nblocks
    _assert_all_is_purged(changed, states)


@pytest.mark.parametrize("mode", MODES)
def test_max_bytes_again_and_again_comes_to_the_end(mode: str, changed: Any) -> None:
    states = _states(changed)
    purged = [_purge(changed, mode, "--max-bytes", "100K")["blocks_purged"] for _ in range(5)]
    assert purged == [25, 25, 25, 21, 0]
    _assert_all_is_purged(changed, states)


def test_one_budget_is_for_all_regions_together(changed: Any) -> None:
    changed.run("region", "create", "disk.nvm", "vm2", "--size", "1M")
    changed.run("write", "disk.nvm", "--offset", "0", "--region", "vm2", input=b"a" * 10 * BLOCK)
    changed.run("snapshot", "create", "disk.nvm", "s", "--region", "vm2")
    changed.run("discard", "disk.nvm", "--offset", "0", "--length", "1M", "--region", "vm2")
    facts = changed.json("purge", "disk.nvm", "--mode", "virtblock", "--max-bytes", str((NON_ACTIVE + 4) * BLOCK))
    assert (facts["blocks_purged"], facts["blocks_remaining"]) == (NON_ACTIVE + 4, 6)
    assert changed.json("purge", "disk.nvm", "--mode", "virtblock")["blocks_purged"] == 6


@pytest.mark.parametrize("mode", MODES)
def test_free_target_stops_at_the_first_block_that_reaches_it_and_a_higher_one_goes_on(mode: str, changed: Any) -> None:
    states = _states(changed)
    with Device.open("disk.nvm") as device:
        nblocks, free = device.blocks.nblocks, device.blocks.free_blocks
    for blocks_more in (20, 60):
        # Half a block less than a whole number: rounded up, it is that number.
        share = (free + blocks_more - 0.5) / nblocks * 100
        facts = _purge(changed, mode, "--free-target", f"{share:.6f}%")
        with Device.open("disk.nvm") as device:
            assert device.blocks.free_blocks == free + blocks_more
        assert facts["blocks_remaining"] > 0
        assert _purge(changed, mode, "--free-target", f"{share:.6f}%")["blocks_purged"] == 0
    # More than there is: all is purged, and that it was not enough is no error.
    assert _purge(changed, mode, "--free-target", "100%")["blocks_remaining"] == 0
    _assert_all_is_purged(changed, states)


@pytest.mark.parametrize("mode", MODES)
def test_max_seconds_0_moves_nothing_and_the_next_run_does_all(mode: str, changed: Any) -> None:
    states = _states(changed)
    facts = _purge(changed, mode, "--max-seconds", "0")
    assert (facts["blocks_purged"], facts["blocks_remaining"]) == (0, NON_ACTIVE)
    assert facts["free_bytes_after"] == facts["free_bytes_before"]
    assert "purged 0 blocks" in changed.run("purge", "disk.nvm", "--mode", mode, "--max-seconds", "0").stdout
    assert _purge(changed, mode, "--max-seconds", "1000")["blocks_purged"] == NON_ACTIVE
    _assert_all_is_purged(changed, states)


@pytest.mark.parametrize("mode", MODES)
def test_max_seconds_stops_between_two_batches_and_the_next_run_does_the_rest(mode: str, empty: Any) -> None:
    # A batch is a quarter of the device, so that these 12 MiB of 32 are two.
    total = 12 * MIB // BLOCK
    old = Path("old")
    old.write_bytes(b"".join(number.to_bytes(4, "little") * 1024 for number in range(1, total + 1)))
    empty.run("region", "create", "disk.nvm", "vm1", "--size", "12M")
    empty.run("import", "disk.nvm", "old")
    empty.run("snapshot", "create", "disk.nvm", "monday")
    empty.run("discard", "disk.nvm", "--offset", "0", "--length", "12M")
    seconds = 0.001
    # The shortest time that lets the first batch begin ends during it, however slow the machine is.
    while (facts := _purge(empty, mode, "--max-seconds", str(seconds)))["blocks_purged"] == 0:
        seconds *= 1.5
    assert 0 < facts["blocks_remaining"] < total
    assert empty.bytes_of("monday") == old.read_bytes()
    assert _purge(empty, mode)["blocks_purged"] == facts["blocks_remaining"]
    assert empty.bytes_of("monday") == old.read_bytes()
    empty.run("check", "disk.nvm", "--scrub")
