"""Where pictures go: the terminal, or an SVG file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..media.stream import STREAM
from .output import Output, make_console

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType


def require_one_stdout(svg: str | None, out: Output) -> None:
    """Raise UsageError when both the SVG and the JSON are to go to stdout."""
    if svg == STREAM and out.as_json:
        raise UsageError("--svg - and --json both want stdout")


def write_svg(target: str, text: str) -> None:
    """Write an SVG document to a file, or to stdout for `-`."""
    if target == STREAM:
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")


def print_picture(draw: Callable[[int, bool], RenderableType]) -> None:
    """Print what `draw` makes of the terminal's width and of whether it shows UTF-8."""
    console = make_console()
    console.print(draw(console.width, console.encoding.startswith("utf")))
