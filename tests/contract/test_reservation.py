"""`nvmtool reservation`: its keys, its texts, and one line and an exit code for what cannot be."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from nvmtool.swap.reservation import join

MIB = 1 << 20


@pytest.fixture
def pool(empty: Any) -> Any:
    """The same folder with pool.rsv of 8 MiB, of which a.swap was promised 5."""
    empty.run("reservation", "create", "pool.rsv", "--size", "8M")
    join(Path("pool.rsv"), uuid.uuid4().bytes, Path("a.swap"), 5)
    return empty


def test_info_has_the_keys_of_the_contract(pool: Any) -> None:
    facts = pool.json("reservation", "info", "pool.rsv")
    assert facts["size_bytes"] == facts["held_bytes"] == 8 * MIB
    assert (facts["lent_bytes"], facts["promised_bytes"], facts["block_size"]) == (0, 5 * MIB, MIB)
    assert facts["block_move"] in ("clone", "allocate")
    assert facts["lent_to"] == [{"swap_file": str(Path("a.swap").resolve()), "bytes": 0, "promise_bytes": 5 * MIB}]
    assert facts["allocated_bytes"] == os.stat("pool.rsv").st_blocks * 512 >= 8 * MIB
    assert facts["format_version"] == 1
    uuid.UUID(facts["uuid"])


def test_info_as_text_names_the_swap_files(pool: Any) -> None:
    text = pool.run("reservation", "info", "pool.rsv").stdout
    assert "promised     5 MiB" in text
    assert "a.swap" in text


def test_create_says_how_blocks_move_and_shows_progress(empty: Any) -> None:
    facts = empty.json("reservation", "create", "b.rsv", "--size", "1M", "--block-size", "64K")
    assert (facts["size_bytes"], facts["block_size"]) == (MIB, 64 << 10)
    lines = empty.run("reservation", "create", "c.rsv", "--size", "40M", "--progress", "json").stderr.splitlines()
    assert json.loads(lines[-1])["done"] == json.loads(lines[-1])["total"] == 40 * MIB
    assert os.stat("c.rsv").st_mode & 0o777 == 0o600


def test_resize(pool: Any) -> None:
    facts = pool.json("reservation", "resize", "pool.rsv", "--size", "20M")
    assert (facts["size_bytes_before"], facts["size_bytes"]) == (8 * MIB, 20 * MIB)
    assert pool.json("reservation", "info", "pool.rsv")["held_bytes"] == 20 * MIB
    pool.run("reservation", "resize", "pool.rsv", "--size", "5M")
    assert pool.json("reservation", "info", "pool.rsv")["size_bytes"] == 5 * MIB


def test_check_finds_a_swap_file_that_is_gone_and_repair_forgets_it(pool: Any) -> None:
    facts = pool.json("reservation", "check", "pool.rsv", code=1)
    assert not facts["clean"]
    assert set(facts["findings"][0]) == {"severity", "structure", "where", "what"}
    assert pool.json("reservation", "check", "pool.rsv", "--repair")["repaired"] == 1
    facts = pool.json("reservation", "check", "pool.rsv")
    assert (facts["clean"], facts["findings"], facts["leaked_blocks"], facts["repaired"]) == (True, [], 0, 0)


def test_forget(pool: Any) -> None:
    predicted = pool.json("reservation", "forget", "pool.rsv", "a.swap", "--dry-run")
    assert pool.json("reservation", "info", "pool.rsv")["promised_bytes"] == 5 * MIB
    assert {**predicted, "dry_run": False} == pool.json("reservation", "forget", "pool.rsv", "a.swap")
    assert pool.json("reservation", "info", "pool.rsv")["promised_bytes"] == 0


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (2, "create new.rsv --size 0"),
        (2, "create new.rsv --size 1000"),
        (2, "create new.rsv --size 32M --block-size 4K"),
        (2, "create new.rsv --size 32M --block-size 32M"),
        (2, "create new.rsv --size 96K --block-size 96K"),
        (5, "create new.rsv --size 100T --block-size 16M"),
        (9, "create pool.rsv --size 8M"),
        (9, "create no/such/folder/new.rsv --size 8M"),
        (9, "info new.rsv"),
        (3, "info disk.nvm"),
        (3, "check disk.mass"),
        (7, "info ."),
        (2, "resize pool.rsv --size 1000"),
        (2, "resize pool.rsv --size 1P"),
        (8, "resize pool.rsv --size 4M"),
        (5, "resize pool.rsv --size 15T"),
        (3, "resize disk.nvm --size 4M"),
        (9, "forget pool.rsv b.swap"),
        (9, "forget new.rsv b.swap"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(pool: Any, code: int, command: str) -> None:
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    pool.run("reservation", *command.split(), code=code)
    after = {path.name: path.read_bytes() for path in Path().iterdir()}
    assert after.keys() == before.keys()
    assert len(after["pool.rsv"]) == len(before["pool.rsv"])
    assert pool.json("reservation", "info", "pool.rsv")["size_bytes"] == 8 * MIB


@pytest.mark.parametrize("cut", [0, 1, 4095, 8192, 1 << 20])
def test_a_truncated_reservation_is_one_line(pool: Any, cut: int) -> None:
    Path("cut.rsv").write_bytes(Path("pool.rsv").read_bytes()[:cut])
    for command in ("info", "check", "resize"):
        extra = ["--size", "16M"] if command == "resize" else []
        pool.run("reservation", command, "cut.rsv", *extra, code=3 if cut < 128 else 4)
