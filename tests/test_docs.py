"""The documents agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nvmtool.errors import exit_code_table
from nvmtool.media.journal import LOG_RECORD
from nvmtool.region import layout

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
        (LOG_RECORD, "magic | 8 bytes | `NVMLOGR"),
    ],
)
def test_format_document_names_every_field_in_disk_order(dtype, first_row: str) -> None:
    assert _table_fields(first_row) == list(dtype.names)


def test_snapshot_record_is_documented() -> None:
    assert sorted(_table_fields("id | RECORD, state id")) == sorted(layout.SNAPSHOT_RECORD.names or ())


def test_place_codes_are_documented() -> None:
    for name in ("ENTRY", "HOME", "ARRAY", "COUNT", "GROUP", "REGIONS", "REGION_LEAF", "SNAPSHOTS", "SNAPSHOT_LEAF", "ROOT"):
        code = getattr(layout, f"{name}_PLACE")
        assert re.search(rf"\| `{name}` \| 0x{code:02x} \|", FORMAT), name


def test_readme_has_every_exit_code() -> None:
    readme = (ROOT / "README.md").read_text()
    for code, meaning in exit_code_table():
        assert re.search(rf"\| {code} \| {re.escape(meaning)}", readme), (code, meaning)
