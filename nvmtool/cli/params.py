"""Values on the command line: sizes, offsets, shares and durations."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import click

MAX_SIZE_BYTES = 2**63 - 1
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?)(?:([KMGTPE])(?:iB)?|B)?", re.IGNORECASE)
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)%")


class Size(click.ParamType[int]):
    """Bytes: `4096`, `64K`, `4KiB`, `1G`, `1.5GiB`; K is KiB is 1024."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes; fail on a fraction of a byte and on 2^63 or more."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is not a size; write 4096, 64K, 4KiB, 1G or 1.5GiB", param, ctx)
        size = Fraction(match[1]) * 1024 ** (" KMGTPE".index(match[2].upper()) if match[2] else 0)
        if size.denominator != 1:
            self.fail(f"{value!r} is not a whole number of bytes", param, ctx)
        if size > MAX_SIZE_BYTES:
            self.fail(f"{value!r} is more than {MAX_SIZE_BYTES} bytes", param, ctx)
        return int(size)


class Offset(Size):
    """Bytes from the beginning, written like a size."""

    name = "offset"


class Percent(click.ParamType[float]):
    """A share: `25%`, `12.5%`."""

    name = "percent"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the share as 0 to 1."""
        if isinstance(value, float):
            return value
        match = _PERCENT.fullmatch(value)
        if match is None or float(match[1]) > 100:
            self.fail(f"{value!r} is not a share; write 25%, at most 100%", param, ctx)
        return float(match[1]) / 100


class Seconds(click.ParamType[float]):
    """A duration in seconds: `30`, `0.5`, `5s`."""

    name = "seconds"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds; fail on what is negative, endless or no number."""
        try:
            seconds = float(value.removesuffix("s") if isinstance(value, str) else value)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < math.inf:
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


SIZE = Size()
OFFSET = Offset()
PERCENT = Percent()
SECONDS = Seconds()
