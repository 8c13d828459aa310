"""What the swap commands do, say and refuse, over real files."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.swap.guest import Guest

from .test_exit_codes import fingerprint, opened_for_writing

MIB = 1 << 20
INFO = {
    *("swap_file", "format_version", "uuid", "memory_bytes", "block_size", "slots_per_block", "used_slots", "blocks_allocated"),
    *("blocks_optimal", "allocated_bytes", "metadata_bytes", "density", "reservation", "in_use_by"),
}
HOLD_OPEN = """
import sys
from nvmtool.swap.swapfile import SwapFile
with SwapFile.open("vm.swap", writable=True):
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def swapped(empty: Any) -> Any:
    """The folder of `empty` with vm.swap: 4 MiB of memory, blocks of 64 KiB, all of it out and two fifths of it still there."""
    guest = Guest(Path("vm.swap"))
    guest.fill(1)
    guest.close()
    return empty


def test_create_makes_a_thin_file_and_info_describes_it(empty: Any) -> None:
    made = empty.json("swap", "create", "vm.swap", "--memory", "64M")
    facts = empty.json("swap", "info", "vm.swap")
    assert made == facts
    assert set(facts) >= INFO
    assert (facts["swap_file"], facts["format_version"], facts["memory_bytes"]) == ("vm.swap", 1, 64 * MIB)
    assert (facts["block_size"], facts["slots_per_block"]) == (MIB, 256)
    assert (facts["used_slots"], facts["blocks_allocated"], facts["blocks_optimal"]) == (0, 0, 0)
    assert facts["density"] == {"deciles": [0] * 10, "empty": 0, "full": 0, "absent": 65}
    assert (facts["reservation"], facts["in_use_by"]) == (None, None)
    assert facts["allocated_bytes"] == Path("vm.swap").stat().st_blocks * 512 < 2 * MIB
    assert empty.json("swap", "create", "b.swap", "--memory", "64M", "--block-size", "256K")["slots_per_block"] == 64


def test_info_counts_what_is_swapped(swapped: Any) -> None:
    facts = swapped.json("swap", "info", "vm.swap")
    assert 300 < facts["used_slots"] < 500
    assert facts["blocks_optimal"] == -(-facts["used_slots"] // 16)
    assert sum(facts["density"]["deciles"]) == facts["blocks_allocated"] <= 64
    assert facts["allocated_bytes"] >= facts["blocks_allocated"] * 65536
    text = swapped.run("swap", "info", "vm.swap").stdout
    assert f"{facts['blocks_allocated']} blocks of 64 KiB" in text
    assert "nobody" in text


def test_check_says_clean_or_what_is_wrong(swapped: Any) -> None:
    facts = swapped.json("swap", "check", "vm.swap")
    assert (facts["swap_file"], facts["clean"], facts["findings"], facts["leaked_blocks"], facts["repaired"]) == ("vm.swap", True, [], 0, 0)
    assert facts["frames_swapped"] + facts["frames_in_memory"] + facts["frames_untouched"] == 1024
    assert facts["not_compared"] == ""
    with Path("vm.swap").open("r+b") as file:
        file.seek(44)
        file.write(b"\xff")
    (finding,) = swapped.json("swap", "check", "vm.swap", code=1)["findings"]
    assert set(finding) == {"severity", "structure", "where", "what"}
    assert finding["what"] in swapped.run("swap", "check", "vm.swap", code=1).stdout
    facts = swapped.json("swap", "check", "vm.swap", "--repair")
    assert (facts["clean"], facts["repaired"]) == (True, 1)
    assert swapped.run("swap", "check", "vm.swap").stdout == "vm.swap: clean\n"


def test_map_lists_blocks_and_draws_them(swapped: Any) -> None:
    info = swapped.json("swap", "info", "vm.swap")
    facts = swapped.json("swap", "map", "vm.swap")
    assert set(facts) >= INFO
    assert all(set(block) == {"block", "used_slots"} for block in facts["blocks"])
    assert len(facts["blocks"]) == info["blocks_allocated"]
    assert sum(block["used_slots"] for block in facts["blocks"]) == info["used_slots"]
    assert facts["nblocks"] == 65
    text = swapped.run("swap", "map", "vm.swap").stdout
    assert "▒" in text
    assert "no storage" in text
    swapped.run("swap", "map", "vm.swap", "--svg", "map.svg")
    assert ElementTree.parse("map.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert swapped.process("swap", "map", "vm.swap", "--svg", "-").stdout == Path("map.svg").read_bytes()


def test_an_empty_swap_file_is_drawn_too(empty: Any) -> None:
    empty.run("swap", "create", "vm.swap", "--memory", "1M")
    assert empty.json("swap", "map", "vm.swap")["blocks"] == []
    assert "·" in empty.run("swap", "map", "vm.swap").stdout


def test_delete_removes_the_file_and_says_what_came_back(swapped: Any) -> None:
    predicted = swapped.json("swap", "delete", "vm.swap", "--dry-run")
    assert Path("vm.swap").exists()
    assert swapped.json("swap", "delete", "vm.swap") == {**predicted, "dry_run": False}
    assert predicted["bytes_released"] > 20 * 65536
    assert not Path("vm.swap").exists()


def test_delete_follows_a_link(swapped: Any) -> None:
    Path("link").symlink_to("vm.swap")
    swapped.run("swap", "delete", "link")
    assert not Path("vm.swap").exists()
    assert not Path("link").is_symlink()


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (2, "swap create new.swap --memory 0"),
        (2, "swap create new.swap --memory 5000"),
        (2, "swap create new.swap --memory 1M --block-size 4K"),
        (2, "swap create new.swap --memory 1M --block-size 192K"),
        (2, "swap create new.swap"),
        (9, "swap create vm.swap --memory 1M"),
        (9, "swap create no/new.swap --memory 1M"),
        (9, "swap info no.swap"),
        (9, "swap check no.swap"),
        (9, "swap delete no.swap"),
        (3, "swap info disk.nvm"),
        (3, "swap check disk.nvm"),
        (3, "swap map disk.mass"),
        (3, "swap delete disk.nvm"),
        (3, "info vm.swap"),
        (2, "swap map vm.swap --svg - --json"),
        (8, "swap map vm.swap --svg vm.swap"),
        (2, "swap shrink vm.swap"),
    ],
)
def test_refused_in_one_line_and_nothing_changed(code: int, command: str, swapped: Any) -> None:
    before = fingerprint()
    swapped.run(*command.split(), code=code)
    assert fingerprint() == before


def test_a_file_taken_for_a_swap_file_is_named_for_what_it_is(swapped: Any) -> None:
    assert "a device image" in swapped.run("swap", "info", "disk.nvm", code=3).stderr
    assert "a swap file of nvmtool" in swapped.run("info", "vm.swap", code=3).stderr


def test_a_running_vm_keeps_its_file(swapped: Any) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD_OPEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        holder.stdout.readline()
        for options in ((), ("--dry-run",)):
            assert f"process {holder.pid}" in swapped.run("swap", "delete", "vm.swap", *options, code=6).stderr
        assert f"process {holder.pid}" in swapped.json("swap", "info", "vm.swap")["in_use_by"]
        assert swapped.json("swap", "check", "vm.swap")["not_compared"]
        assert "storage was not compared" in swapped.run("swap", "check", "vm.swap").stdout
        swapped.run("swap", "map", "vm.swap")
    finally:
        holder.stdin.close()
        assert holder.wait(30) == 0
        holder.stdout.close()


def test_reading_commands_never_open_for_writing(swapped: Any) -> None:
    before = fingerprint()
    for command in ("info vm.swap", "check vm.swap", "check vm.swap --repair", "map vm.swap", "delete vm.swap --dry-run"):
        with opened_for_writing() as opened:
            swapped.run("swap", *command.split())
        assert opened == [], command
    assert fingerprint() == before


def test_info_does_not_load_what_it_does_not_need() -> None:
    code = "import sys, nvmtool.cli.swap\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "nvmtool.cli.swap_map" not in loaded
