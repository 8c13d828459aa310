"""The JSON keys of CLI.md's contract are there, of the right type, and say what is so."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from nvmtool.region.extents import KINDS

BLOCK = 4096
MIB = 1 << 20


def assert_keys(facts: dict[str, Any], keys: str) -> None:
    assert set(keys.split()) <= set(facts), set(keys.split()) - set(facts)


def test_info(changed: Any) -> None:
    facts = changed.json("info", "disk.nvm")
    assert_keys(
        facts,
        "image format_version uuid block_size size_bytes free_bytes used_bytes metadata_bytes lent_bytes mass regions flush",
    )
    assert (facts["image"], facts["format_version"], facts["block_size"]) == ("disk.nvm", 1, BLOCK)
    assert facts["size_bytes"] == 32 * MIB == Path("disk.nvm").stat().st_size
    assert facts["lent_bytes"] == 0
    assert facts["flush"]
    assert len(facts["uuid"].replace("-", "")) == 32
    assert_keys(facts["mass"], "path size_bytes used_bytes")
    assert Path(facts["mass"]["path"]).name == "disk.mass"
    assert facts["mass"]["size_bytes"] == Path("disk.mass").stat().st_size
    (region,) = facts["regions"]
    assert_keys(region, "name size_bytes mapping snapshots active_bytes non_active_bytes purged_bytes")
    assert (region["name"], region["size_bytes"], region["mapping"], region["snapshots"]) == (
        "vm1",
        8 * MIB,
        "virtblock",
        2,
    )
    assert region["active_bytes"] == 2 * MIB
    assert region["non_active_bytes"] == 96 * BLOCK
    assert region["purged_bytes"] == 0


def test_sizes_add_up(changed: Any) -> None:
    facts = changed.json("info", "disk.nvm")
    assert facts["free_bytes"] + facts["used_bytes"] == facts["size_bytes"]
    assert facts["used_bytes"] == facts["metadata_bytes"] + facts["lent_bytes"] + 2 * MIB + 96 * BLOCK


def test_info_after_purging(changed: Any) -> None:
    before = changed.json("info", "disk.nvm")
    changed.run("purge", "disk.nvm", "--mode", "virtblock")
    facts = changed.json("info", "disk.nvm")
    (region,) = facts["regions"]
    assert (region["non_active_bytes"], region["purged_bytes"]) == (0, 96 * BLOCK)
    assert facts["mass"]["used_bytes"] == 96 * BLOCK
    # The mass-slot table of four levels is new.
    assert facts["free_bytes"] == before["free_bytes"] + (96 - 4) * BLOCK


def test_snapshot_list(changed: Any) -> None:
    facts = changed.json("snapshot", "list", "disk.nvm")
    assert [s["name"] for s in facts["snapshots"]] == ["monday", "tuesday"]
    for snapshot in facts["snapshots"]:
        assert_keys(snapshot, "name created owned_bytes exclusive_bytes purged_bytes")
        datetime.fromisoformat(snapshot["created"])
    monday, tuesday = facts["snapshots"]
    assert monday["owned_bytes"] == 2 * MIB
    assert monday["exclusive_bytes"] == 64 * BLOCK
    assert tuesday["owned_bytes"] == 64 * BLOCK
    assert tuesday["exclusive_bytes"] == 32 * BLOCK
    changed.run("purge", "disk.nvm", "--mode", "virtblock", "--snapshot", "monday")
    assert changed.json("snapshot", "list", "disk.nvm")["snapshots"][0]["purged_bytes"] == 64 * BLOCK


def test_snapshot_diff(changed: Any) -> None:
    def extents(*states: str) -> list[dict[str, int]]:
        found = changed.json("snapshot", "diff", "disk.nvm", *states)["extents"]
        assert isinstance(found, list)
        return found

    assert extents("monday", "tuesday") == [{"offset": 0, "length": 64 * BLOCK}]
    assert extents("tuesday") == extents("tuesday", "@current") == [{"offset": 16 * BLOCK, "length": 32 * BLOCK}]
    assert extents("@current", "monday") == [{"offset": 0, "length": 64 * BLOCK}]
    assert extents("monday", "monday") == []


def test_purge(changed: Any) -> None:
    keys = "mode blocks_purged bytes_purged pointers_updated blocks_remaining seconds free_bytes_before free_bytes_after"
    facts = changed.json("purge", "disk.nvm", "--mode", "virtblock")
    assert_keys(facts, keys)
    assert facts["mode"] == "virtblock"
    assert facts["blocks_purged"] == facts["pointers_updated"] == 96
    assert facts["bytes_purged"] == 96 * BLOCK
    # The mass-slot table of four levels is new.
    assert facts["free_bytes_after"] - facts["free_bytes_before"] == (96 - 4) * BLOCK
    assert facts["blocks_remaining"] == 0
    assert facts["seconds"] > 0
    again = changed.json("purge", "disk.nvm", "--mode", "virtblock")
    assert (again["blocks_purged"], again["pointers_updated"]) == (0, 0)


def test_purge_by_pointer_elimination(changed: Any) -> None:
    facts = changed.json("purge", "disk.nvm", "--mode", "pointer-elimination")
    assert facts["mode"] == "pointer-elimination"
    assert facts["blocks_purged"] == 96
    # Monday's own table names 64 blocks that the running point does not, tuesday's 32.
    assert facts["pointers_updated"] == 96
    assert facts["blocks_remaining"] == 0


def test_recall(changed: Any) -> None:
    changed.run("purge", "disk.nvm", "--mode", "virtblock")
    facts = changed.json("recall", "disk.nvm", "--snapshot", "monday")
    assert_keys(facts, "blocks_recalled bytes_recalled pointers_updated seconds free_bytes_before free_bytes_after")
    assert (facts["blocks_recalled"], facts["bytes_recalled"]) == (64, 64 * BLOCK)
    assert facts["free_bytes_before"] - facts["free_bytes_after"] == 64 * BLOCK


def test_check(changed: Any) -> None:
    facts = changed.json("check", "disk.nvm", "--scrub")
    assert_keys(facts, "clean findings leaked_blocks repaired")
    assert (facts["clean"], facts["findings"], facts["leaked_blocks"], facts["repaired"]) == (True, [], 0, 0)


def test_map(changed: Any) -> None:
    changed.run("purge", "disk.nvm", "--mode", "virtblock", "--snapshot", "monday")
    facts = changed.json("map", "disk.nvm")
    assert all(set(extent) == {"offset", "length", "kind"} for extent in facts["extents"])
    assert [(e["offset"], e["length"], e["kind"]) for e in facts["extents"]] == [
        (0, MIB, "active"),
        (MIB, MIB, "hole"),
        (2 * MIB, MIB, "active"),
        (3 * MIB, 5 * MIB, "hole"),
    ]
    assert [state["name"] for state in facts["states"]] == ["@current", "tuesday", "monday"]
    sums = [[state[f"{kind.replace('-', '_')}_bytes"] for kind in KINDS] for state in facts["states"]]
    wanted = {
        "@current": {"active": 2 * MIB, "hole": 6 * MIB},
        "tuesday": {"active": 2 * MIB - 32 * BLOCK, "non-active": 32 * BLOCK, "hole": 6 * MIB},
        "monday": {"active": 2 * MIB - 64 * BLOCK, "purged": 64 * BLOCK, "hole": 6 * MIB},
    }
    assert sums == [[state.get(kind, 0) for kind in KINDS] for state in wanted.values()]


def test_map_of_a_snapshot(changed: Any) -> None:
    changed.run("purge", "disk.nvm", "--mode", "virtblock")
    facts = changed.json("map", "disk.nvm", "--snapshot", "tuesday")
    assert [(e["offset"] // BLOCK, e["length"] // BLOCK, e["kind"]) for e in facts["extents"]][:3] == [
        (0, 16, "active"),
        (16, 32, "purged"),
        (48, 208, "active"),
    ]
    assert [state["name"] for state in facts["states"]] == ["tuesday"]


def test_what_changes_an_image_says_what_it_did(empty: Any) -> None:
    assert_keys(empty.json("format", "b.nvm", "--size", "16M", "--mass", "b.mass"), "image size_bytes block_size mass")
    created = empty.json("region", "create", "disk.nvm", "r", "--size", "1G", "--mapping", "direct")
    assert created == {"image": "disk.nvm", "name": "r", "size_bytes": 1 << 30, "mapping": "direct"}
    data = b"x" * 10000
    written = empty.json("write", "disk.nvm", "--offset", "100", input=data)
    assert written == {"image": "disk.nvm", "region": "r", "offset": 100, "bytes_written": 10000}
    Path("src").write_bytes(data)
    assert_keys(empty.json("import", "disk.nvm", "src"), "bytes_read bytes_written seconds region")
    assert_keys(empty.json("export", "disk.nvm", "dst"), "bytes_total bytes_data seconds region")
    assert empty.json("snapshot", "create", "disk.nvm", "a", "b")["created"] == ["a", "b"]
    assert_keys(empty.json("region", "list", "disk.nvm")["regions"][0], "name size_bytes mapping snapshots")
    change = "blocks_freed slots_freed pointers_updated dry_run"
    assert_keys(empty.json("discard", "disk.nvm", "--offset", "0", "--length", "4K"), change)
    assert_keys(empty.json("snapshot", "revert", "disk.nvm", "a"), change)
    (deleted,) = empty.json("snapshot", "delete", "disk.nvm", "a")["deleted"]
    assert_keys(deleted, "name blocks_freed slots_freed pointers_updated")
    assert_keys(empty.json("region", "convert", "disk.nvm", "r", "--mapping", "virtblock"), "pointers_updated mapping")
    assert_keys(empty.json("region", "delete", "disk.nvm", "r"), change)


def test_export_to_stdout_keeps_its_facts_apart(tool: Any) -> None:
    result = tool.process("export", "disk.nvm", "-", "--json")
    assert result.stdout == Path("raw").read_bytes()
    assert_keys(json.loads(result.stderr), "bytes_total bytes_data seconds")


def test_progress_json_beside_the_result(changed: Any) -> None:
    result = changed.run("purge", "disk.nvm", "--mode", "virtblock", "--json", "--progress", "json")
    assert_keys(json.loads(result.stdout), "blocks_purged")
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert lines
    assert all(set(line) == {"done", "total", "unit", "seconds"} for line in lines)
    assert lines[-1]["done"] == lines[-1]["total"]
