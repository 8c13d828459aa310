"""Values on the command line."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmtool.cli.params import MAX_SIZE_BYTES, OFFSET, PERCENT, SECONDS, SIZE
from nvmtool.text import human


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("64K", 64 << 10),
        ("64k", 64 << 10),
        ("4KiB", 4096),
        ("1G", 1 << 30),
        ("1.5GiB", 3 << 29),
        ("0.5K", 512),
        ("16T", 1 << 44),
        ("2PiB", 1 << 51),
        ("7E", 7 << 60),
        (str(MAX_SIZE_BYTES), MAX_SIZE_BYTES),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert SIZE.convert(text, None, None) == size_bytes
    assert OFFSET.convert(text, None, None) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-1",
        "1.5",
        "1e3",
        "4 K",
        "4KB",
        "K",
        "0x10",
        "1..5K",
        "1.K",
        "٤",
        "8E",
        str(2**63),
        str(2**70),
        "9" * 5000,
        "nan",
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        SIZE.convert(text, None, None)


@given(st.integers(0, MAX_SIZE_BYTES))
def test_plain_numbers_are_exact(size_bytes: int) -> None:
    assert SIZE.convert(str(size_bytes), None, None) == size_bytes


@given(st.integers(0, MAX_SIZE_BYTES))
def test_sizes_are_shown_within_a_percent(size_bytes: int) -> None:
    number, unit = human(size_bytes).split()
    assert float(number) < 1024
    assert float(number) * 1024 ** (["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].index(unit)) == pytest.approx(size_bytes, rel=0.01)


@pytest.mark.parametrize(("text", "share"), [("25%", 0.25), ("0%", 0), ("100%", 1), ("12.5%", 0.125)])
def test_shares(text: str, share: float) -> None:
    assert PERCENT.convert(text, None, None) == share


@pytest.mark.parametrize("text", ["25", "0.25", "101%", "-1%", "%", "1000%", "nan%"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        PERCENT.convert(text, None, None)


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1m", ""])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        SECONDS.convert(text, None, None)
    assert SECONDS.convert("0.5", None, None) == 0.5
