"""How sizes, counts and names are shown to people."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def human(size_bytes: int) -> str:
    """Return a size for people: `4 KiB`, `1.5 GiB`."""
    size, unit = float(size_bytes), 0
    # What would round to 1024.0 is shown as 1 of the next unit.
    while size >= 1023.95 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    number = f"{size:.2f}".rstrip("0").rstrip(".") if size < 10 else f"{size:.1f}".removesuffix(".0")
    return f"{number} {_UNITS[unit]}"


def count_of(count: int, noun: str) -> str:
    """Return `1 block`, `2 blocks`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def printable(text: str) -> str:
    """Escape what would move a terminal's cursor, break a line or not be XML: names come from images."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
