"""The documents agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nvmtool.errors import exit_code_table
from nvmtool.host import layout as host_layout
from nvmtool.media import word
from nvmtool.media.journal import LOG_RECORD
from nvmtool.region import layout
from nvmtool.sched.classes import DEFAULT_FRAMES
from nvmtool.sched.reasons import REASONS
from nvmtool.sched.settings import Settings
from nvmtool.swap import layout as swap_layout
from nvmtool.swap.stamps_layout import STAMPS_HEADER

ROOT = Path(__file__).parent.parent
FORMAT = (ROOT / "docs" / "format.md").read_text()


def _table_fields(first_row: str) -> list[str]:
    """Return the names in the first column of the table whose first row of names starts so."""
    rows = FORMAT[FORMAT.index(f"| {first_row}") :].split("\n\n")[0].splitlines()
    cells = [re.sub(r"\(.*?\)", "", row.split("|")[1]) for row in rows]
    return [name.strip() for cell in cells for name in cell.split(",")]


@pytest.mark.parametrize(
    ("dtype", "first_row"),
    [
        (layout.HEADER, "magic | 8 bytes | `NVMTOOL"),
        (layout.ROOT, "region_table |"),
        (layout.REGION_RECORD, "id | RECORD, number"),
        (swap_layout.SWAP_HEADER, "magic | 8 bytes | `NVMSWAP"),
        (swap_layout.SWAP_ROOT, "working |"),
        (swap_layout.RESERVATION_HEADER, "magic | 8 bytes | `NVMRSRV"),
        (swap_layout.RESERVATION_ROOT, "nblocks | number of blocks"),
        (swap_layout.LENDER_RECORD, "promise | RECORD"),
        (STAMPS_HEADER, "magic | 8 bytes | `NVMSTMP"),
        (host_layout.HOST_HEADER, "magic | 8 bytes | `NVMHOST"),
        (host_layout.HOST_ROOT, "life | how often"),
        (host_layout.POOL_RECORD, "id | RECORD, the pool's number + 1"),
        (host_layout.VM_RECORD, "id | RECORD, number of its record + 1"),
        (host_layout.MAP_HEADER, "magic | 8 bytes | `NVMVMAP"),
        (host_layout.MEMORY_HEADER, "magic | 8 bytes | `NVMRAM"),
        (host_layout.FRAMES_HEAD, "life | of this life |\n| working | 1 while a process changes"),
        (host_layout.VM_HEAD, "life | of this life |\n| working | 1 while a process has"),
        (LOG_RECORD, "magic | 8 bytes | `NVMLOGR"),
    ],
)
def test_format_document_names_every_field_in_disk_order(dtype, first_row: str) -> None:
    assert _table_fields(first_row) == list(dtype.names)


def test_snapshot_record_is_documented() -> None:
    assert sorted(_table_fields("id | RECORD, state id")) == sorted(layout.SNAPSHOT_RECORD.names or ())


def test_place_codes_are_documented() -> None:
    for name in ("ENTRY", "HOME", "ARRAY", "COUNT", "GROUP", "REGIONS", "REGION_LEAF", "SNAPSHOTS", "SNAPSHOT_LEAF", "ROOT"):
        assert_documented(name, getattr(layout, f"{name}_PLACE"))
    for name in ("FRAME", "STORAGE", "SWAP_ROOT", "LENDER", "RESERVED", "RESERVATION_ROOT"):
        assert_documented(name, getattr(swap_layout, f"{name}_PLACE"))
    for name in ("HOST_ROOT", "POOL", "VM", "MAP"):
        assert_documented(name, getattr(host_layout, f"{name}_PLACE"))


def assert_documented(name: str, code: int) -> None:
    assert re.search(rf"\| `{name}` \| 0x{code:02x} \|", FORMAT), name


def test_kinds_are_documented() -> None:
    for code, name in enumerate(word.KIND_NAMES[1:], 1):
        assert re.search(rf"\| `{name}` \| {code} \|", FORMAT), name


def test_readme_has_every_exit_code() -> None:
    readme = (ROOT / "README.md").read_text()
    for code, meaning in exit_code_table():
        assert re.search(rf"\| {code} \| {re.escape(meaning)}", readme), (code, meaning)


def test_every_reason_of_the_scheduler_is_documented() -> None:
    document = (ROOT / "docs" / "sched.md").read_text()
    for name, meaning in REASONS.items():
        assert f"| `{name}` | {meaning} |" in document, name


def test_the_schedulers_defaults_are_as_documented() -> None:
    document, settings = (ROOT / "docs" / "sched.md").read_text(), Settings()
    for name, value in (
        ("Tax", settings.tax),
        ("Deadband", settings.deadband),
        ("Largest step", settings.largest_step),
        ("Headroom", settings.headroom),
    ):
        assert f"**{name} {value * 100:g} %**" in document, name
    for name, seconds in (("Cool-down", settings.cool_down_s), ("Stuck after", settings.stuck_after_s)):
        assert f"**{name} {seconds:g} s**" in document, name
    for name, share in (("soft", settings.soft), ("hard", settings.hard), ("low", settings.low)):
        assert re.search(rf"\| {name} \| {share * 100:g} %", document), name
    assert f"**The default is {DEFAULT_FRAMES} frames.**" in document


@pytest.mark.parametrize(("nframes", "slots"), [(1, 16), (512, 16), (100_000, 256), (1 << 28, 256), (1 << 32, 4096)])
def test_areas_of_a_swap_file_are_as_documented(nframes: int, slots: int) -> None:
    areas = swap_layout.swap_areas(nframes, slots)
    assert areas["log_blocks"] == max(64, min(nframes // 256, 512))
    assert areas["frame_start"] == areas["log_start"] + areas["log_blocks"] == 3 + areas["log_blocks"]
    assert areas["frame_blocks"] == -(-nframes // 512)
    assert areas["nblocks"] == -(-nframes // slots) + 1
    assert areas["storage_start"] == areas["frame_start"] + areas["frame_blocks"]
    behind = areas["storage_start"] + areas["storage_blocks"]
    assert areas["data_start"] % slots == 0
    assert behind <= areas["data_start"] < behind + slots


@pytest.mark.parametrize("slots", [16, 256, 4096])
def test_areas_of_a_reservation_are_as_documented(slots: int) -> None:
    areas = swap_layout.reservation_areas(slots)
    assert (areas["log_blocks"], areas["lender_blocks"], areas["block_blocks"]) == (64, 256, 32_768)
    assert areas["lender_start"] == 3 + 64
    assert areas["block_start"] == areas["lender_start"] + 256
    behind = areas["block_start"] + 32_768
    assert areas["data_start"] % slots == 0
    assert behind <= areas["data_start"] < behind + slots
