"""What the commands do, over real files."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

BLOCK = 4096
MIB = 1 << 20


def states(changed: Any) -> dict[str | None, bytes]:
    return {name: changed.bytes_of(name) for name in (None, "monday", "tuesday")}


def test_import_and_export_are_exact_and_keep_holes(tool: Any) -> None:
    tool.run("export", "disk.nvm", "out")
    assert Path("out").read_bytes() == Path("raw").read_bytes()
    assert Path("out").stat().st_blocks * 512 <= 2 * MIB + 64 * 1024


def test_import_from_stdin_at_an_offset(tool: Any) -> None:
    data = random.Random(2).randbytes(3 * BLOCK + 5)
    tool.process("import", "disk.nvm", "-", "--offset", "5M", input=data)
    assert tool.bytes_of()[5 * MIB :][: len(data)] == data


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_import_of_qcow2(tool: Any) -> None:
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "raw", "raw.qcow2"], check=True)
    tool.run("region", "create", "disk.nvm", "q", "--size", "8M")
    facts = tool.json("import", "disk.nvm", "raw.qcow2", "--region", "q")
    assert tool.bytes_of(region="q") == Path("raw").read_bytes()
    assert facts["bytes_written"] <= 3 * MIB


def test_export_to_a_pipe(changed: Any) -> None:
    done = changed.process("export", "disk.nvm", "-", "--snapshot", "monday")
    assert done.stdout == Path("raw").read_bytes()
    assert changed.process("export", "disk.nvm", "-", "--quiet").stderr == b""


def test_read_and_write_any_bytes(tool: Any) -> None:
    model = bytearray(Path("raw").read_bytes())
    rng = random.Random(3)
    for _ in range(12):
        offset = rng.randrange(8 * MIB)
        data = rng.randbytes(min(rng.choice((1, 511, 4096, 70000)), 8 * MIB - offset))
        tool.run("write", "disk.nvm", "--offset", str(offset), input=data)
        model[offset : offset + len(data)] = data
    assert tool.process("read", "disk.nvm", "--offset", "0").stdout == model
    assert tool.process("read", "disk.nvm", "--offset", "4095", "--length", "2").stdout == model[4095:4097]
    assert tool.process("read", "disk.nvm", "--offset", "8M").stdout == b""


def test_write_takes_at_most_length(tool: Any) -> None:
    assert tool.json("write", "disk.nvm", "--offset", "0", "--length", "3", input=b"abcdef")["bytes_written"] == 3
    assert tool.process("read", "disk.nvm", "--offset", "0", "--length", "4").stdout == b"abc" + Path("raw").read_bytes()[3:4]


def test_discard_makes_a_hole_and_snapshots_keep_theirs(changed: Any) -> None:
    before = states(changed)
    predicted = changed.json("discard", "disk.nvm", "--offset", "0", "--length", "1M", "--dry-run")
    assert states(changed) == before
    done = changed.json("discard", "disk.nvm", "--offset", "0", "--length", "1M")
    assert {**predicted, "dry_run": False} == done
    current = before[None]
    assert current is not None
    assert states(changed) == {**before, None: bytes(MIB) + current[MIB:]}
    assert changed.json("map", "disk.nvm")["extents"][0] == {"offset": 0, "length": 2 * MIB, "kind": "hole"}


@pytest.mark.parametrize("mode", ["virtblock", "pointer-elimination"])
def test_every_state_reads_the_same_after_purging_and_recalling(mode: str, changed: Any) -> None:
    before = states(changed)
    changed.run("purge", "disk.nvm", "--mode", mode)
    assert states(changed) == before
    changed.run("recall", "disk.nvm", "--snapshot", "tuesday")
    changed.run("recall", "disk.nvm")
    assert states(changed) == before
    changed.run("check", "disk.nvm", "--scrub")


@pytest.mark.parametrize("mode", ["virtblock", "pointer-elimination"])
@pytest.mark.parametrize("limit", [(), ("--max-bytes", "64K"), ("--snapshot", "tuesday")], ids=str)
def test_dry_run_of_purge_predicts_the_real_one(mode: str, limit: tuple[str, ...], changed: Any) -> None:
    predicted = changed.json("purge", "disk.nvm", "--mode", mode, "--dry-run", *limit)
    done = changed.json("purge", "disk.nvm", "--mode", mode, *limit)
    assert done["blocks_purged"] > 0
    for facts in (predicted, done):
        del facts["seconds"], facts["dry_run"]
    assert predicted == done


def test_free_target_purges_no_more_than_needed(changed: Any) -> None:
    assert changed.json("purge", "disk.nvm", "--mode", "virtblock", "--free-target", "1%")["blocks_purged"] == 0
    facts = changed.json("purge", "disk.nvm", "--mode", "virtblock", "--free-target", "100%")
    assert facts["blocks_purged"] == 96


def test_max_seconds_0_stops_at_once(changed: Any) -> None:
    facts = changed.json("purge", "disk.nvm", "--mode", "virtblock", "--max-seconds", "0")
    assert facts["blocks_purged"] + facts["blocks_remaining"] == 96


def test_dry_run_of_recall_predicts_the_real_one(changed: Any) -> None:
    changed.run("purge", "disk.nvm", "--mode", "virtblock")
    predicted = changed.json("recall", "disk.nvm", "--snapshot", "monday", "--max-bytes", "100K", "--dry-run")
    done = changed.json("recall", "disk.nvm", "--snapshot", "monday", "--max-bytes", "100K")
    for facts in (predicted, done):
        del facts["seconds"], facts["dry_run"]
    assert predicted == done
    assert done["blocks_recalled"] == 25


@pytest.mark.parametrize("purged", [False, True])
def test_revert_across_purged_blocks(purged: bool, changed: Any) -> None:
    before = states(changed)
    if purged:
        changed.run("purge", "disk.nvm", "--mode", "virtblock")
    predicted = changed.json("snapshot", "revert", "disk.nvm", "monday", "--dry-run")
    assert states(changed) == before
    done = changed.json("snapshot", "revert", "disk.nvm", "monday")
    assert {**predicted, "dry_run": False} == done
    assert states(changed) == {**before, None: before["monday"]}
    changed.run("check", "disk.nvm", "--scrub")


@pytest.mark.parametrize("order", [("monday", "tuesday"), ("tuesday", "monday")])
@pytest.mark.parametrize("mode", [None, "virtblock", "pointer-elimination"])
def test_deleting_in_any_order_frees_what_nobody_names(order: tuple[str, str], mode: str | None, changed: Any) -> None:
    before = states(changed)
    if mode:
        changed.run("purge", "disk.nvm", "--mode", mode)
    predicted = changed.json("snapshot", "delete", "disk.nvm", order[0], "--dry-run")["deleted"]
    assert changed.json("snapshot", "delete", "disk.nvm", order[0])["deleted"] == predicted
    assert changed.bytes_of(order[1]) == before[order[1]]
    changed.run("snapshot", "delete", "disk.nvm", order[1])
    assert changed.bytes_of() == before[None]
    (region,) = changed.json("info", "disk.nvm")["regions"]
    assert (region["non_active_bytes"], region["purged_bytes"], region["snapshots"]) == (0, 0, 0)
    assert changed.json("info", "disk.nvm")["mass"]["used_bytes"] == 0
    changed.run("check", "disk.nvm")


def test_space_of_the_mass_store_comes_back(changed: Any) -> None:
    empty_blocks = Path("disk.mass").stat().st_blocks
    changed.run("purge", "disk.nvm", "--mode", "virtblock")
    assert Path("disk.mass").stat().st_blocks - empty_blocks >= 96 * 8
    changed.run("snapshot", "delete", "disk.nvm", "monday", "tuesday")
    assert Path("disk.mass").stat().st_blocks - empty_blocks < 96 * 8


def test_convert_both_ways(changed: Any) -> None:
    before = states(changed)
    for mapping in ("direct", "virtblock"):
        predicted = changed.json("region", "convert", "disk.nvm", "vm1", "--mapping", mapping, "--dry-run")
        done = changed.json("region", "convert", "disk.nvm", "vm1", "--mapping", mapping)
        assert {**predicted, "dry_run": False} == done
        assert changed.json("region", "list", "disk.nvm")["regions"][0]["mapping"] == mapping
        assert states(changed) == before
        changed.run("check", "disk.nvm")
    assert changed.json("purge", "disk.nvm", "--mode", "virtblock")["blocks_purged"] == 96


def test_deleting_a_region_frees_everything(changed: Any) -> None:
    changed.run("purge", "disk.nvm", "--mode", "virtblock")
    predicted = changed.json("region", "delete", "disk.nvm", "vm1", "--dry-run")
    assert changed.json("region", "delete", "disk.nvm", "vm1") == {**predicted, "dry_run": False}
    facts = changed.json("info", "disk.nvm")
    assert facts["used_bytes"] == facts["metadata_bytes"]
    assert (facts["mass"]["used_bytes"], facts["regions"]) == (0, [])
    changed.run("check", "disk.nvm")


def test_regions_are_apart(tool: Any) -> None:
    tool.run("region", "create", "disk.nvm", "vm2", "--size", "8M", "--mapping", "direct")
    tool.run("write", "disk.nvm", "--offset", "0", "--region", "vm2", input=b"x" * BLOCK)
    assert tool.bytes_of(region="vm1") == Path("raw").read_bytes()
    assert tool.bytes_of(region="vm2") == b"x" * BLOCK + bytes(8 * MIB - BLOCK)
    assert [r["name"] for r in tool.json("region", "list", "disk.nvm")["regions"]] == ["vm1", "vm2"]


def test_files_can_move_together_and_the_mass_store_alone(changed: Any) -> None:
    changed.run("purge", "disk.nvm", "--mode", "virtblock")
    before = changed.bytes_of("monday")
    Path("new").mkdir()
    for name in ("disk.nvm", "disk.mass"):
        Path(name).rename(f"new/{name}")
    os.chdir("new")
    assert changed.bytes_of("monday") == before
    Path("disk.mass").rename("../elsewhere")
    changed.run("export", "disk.nvm", "out", "--snapshot", "monday", "--mass", "../elsewhere")
    assert Path("out").read_bytes() == before


def test_format_force_starts_again(changed: Any) -> None:
    device = changed.json("info", "disk.nvm")["uuid"]
    changed.run("format", "disk.nvm", "--size", "16M", "--mass", "disk.mass", "--force")
    facts = changed.json("info", "disk.nvm")
    assert (facts["uuid"], facts["regions"], facts["mass"]["used_bytes"]) == (device, [], 0)
    changed.run("check", "disk.nvm")


def test_sparse_image_takes_little_space(empty: Any) -> None:
    empty.run("format", "thin.nvm", "--size", "1G", "--mass", "thin.mass", "--sparse")
    assert Path("thin.nvm").stat().st_blocks * 512 < 32 * MIB
    empty.run("format", "thick.nvm", "--size", "64M", "--mass", "thick.mass")
    assert Path("thick.nvm").stat().st_blocks * 512 >= 64 * MIB


@pytest.mark.parametrize(
    "command",
    ["info", "region list", "snapshot list", "snapshot diff {} monday", "map", "check", "purge {} --mode virtblock"],
)
def test_text_and_names_reach_people(command: str, changed: Any) -> None:
    words = (command if "{}" in command else command + " {}").format("disk.nvm").split()
    assert changed.run(*words).stdout.strip()


def test_quiet_says_nothing_about_what_was_done(tool: Any) -> None:
    assert tool.run("snapshot", "create", "disk.nvm", "a", "--quiet").output == ""
    assert tool.run("purge", "disk.nvm", "--mode", "virtblock", "-q").output == ""


def test_map_as_picture(changed: Any) -> None:
    before = changed.run("map", "disk.nvm").stdout
    assert "▒" in before
    changed.run("map", "disk.nvm", "--svg", "before.svg")
    changed.run("purge", "disk.nvm", "--mode", "virtblock")
    after = changed.run("map", "disk.nvm").stdout
    assert "▒▒▒" not in after.split("active", 1)[0]
    changed.run("map", "disk.nvm", "--svg", "after.svg")
    assert Path("before.svg").read_bytes() != Path("after.svg").read_bytes()
    for name in ("before.svg", "after.svg"):
        titles = [e.text for e in ElementTree.parse(name).iter("{http://www.w3.org/2000/svg}title")]
        assert titles[0] == "disk.nvm: region vm1, 8 MiB, virtblock mapping"
        assert [str(t).split(":")[0] for t in titles[1:]] == ["@current", "tuesday", "monday"]
    assert changed.run("map", "disk.nvm", "--svg", "-").stdout == Path("after.svg").read_text()


def test_map_shows_the_newest_states_unless_all(tool: Any) -> None:
    names = [f"s{i:02}" for i in range(30)]
    tool.run("snapshot", "create", "disk.nvm", *names)
    facts = tool.json("map", "disk.nvm")
    assert [s["name"] for s in facts["states"]] == ["@current", *names[:-16:-1]]
    assert len(tool.json("map", "disk.nvm", "--all")["states"]) == 31
    assert "and 15 older; --all shows them" in tool.run("map", "disk.nvm").stdout


def test_map_where_the_terminal_knows_no_utf8(changed: Any) -> None:
    text = changed.process("map", "disk.nvm", PYTHONIOENCODING="ascii", PYTHONUTF8="0").stdout
    assert text.isascii()
    assert b"####" in text


def test_names_are_any_utf8(tool: Any) -> None:
    name = "größer 雪 [red]\x1b[2J"
    tool.run("snapshot", "create", "disk.nvm", name)
    assert tool.json("snapshot", "list", "disk.nvm")["snapshots"][0]["name"] == name
    text = tool.run("snapshot", "list", "disk.nvm").stdout
    assert "größer 雪 [red]\\x1b[2J" in text
    assert "\x1b" not in tool.run("map", "disk.nvm").stdout


def test_export_follows_links_and_keeps_the_mode_of_what_it_replaces(tool: Any) -> None:
    Path("link").symlink_to("target")
    tool.run("export", "disk.nvm", "link")
    assert Path("link").is_symlink()
    Path("target").chmod(0o600)
    tool.run("export", "disk.nvm", "link")
    assert Path("target").stat().st_mode & 0o777 == 0o600
    assert Path("target").read_bytes() == Path("raw").read_bytes()


def test_export_and_import_through_named_pipes(tool: Any) -> None:
    os.mkfifo("pipe")
    with subprocess.Popen(["sha256sum", "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        tool.process("export", "disk.nvm", "pipe")
        assert reader.stdout is not None
        assert reader.stdout.read().split()[0] == hashlib.sha256(Path("raw").read_bytes()).hexdigest()
    tool.run("region", "create", "disk.nvm", "copy", "--size", "8M")
    with subprocess.Popen(["dd", "if=raw", "of=pipe", "bs=1M", "status=none"]):
        tool.process("import", "disk.nvm", "pipe", "--region", "copy")
    assert tool.bytes_of(region="copy") == Path("raw").read_bytes()


@pytest.mark.parametrize(("offset", "length"), [(1, 1), (100, 9000), (4096, 8192), (0, 1 << 20)])
def test_discard_predicts_what_it_frees_where_snapshots_share(changed: Any, offset: int, length: int) -> None:
    command = ("discard", "disk.nvm", "--offset", str(offset), "--length", str(length))
    predicted = changed.json(*command, "--dry-run")
    assert {**changed.json(*command), "dry_run": True} == predicted


def test_an_image_reached_through_a_link_finds_its_mass_store(changed: Any) -> None:
    Path("folder").mkdir()
    Path("folder/link.nvm").symlink_to("../disk.nvm")
    assert changed.json("check", "folder/link.nvm", "--scrub")["clean"]
