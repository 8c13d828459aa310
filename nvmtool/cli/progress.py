"""Progress on stderr: a bar for people, JSON lines for programs."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    Report = Callable[[int, int, str], None]

BAR_AFTER_SECONDS = 1.0
BAR_EVERY_SECONDS = 0.1
LINE_EVERY_SECONDS = 0.25


class Progress:
    """Shows nothing, and so tells the library that nobody listens."""

    def __enter__(self) -> Report | None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the display."""


class JsonProgress(Progress):
    """Writes a JSON line now and then, and always for the end."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._next = 0.0

    def __enter__(self) -> Report:
        return self._report

    def _report(self, done: int, total: int, unit: str) -> None:
        seconds = time.monotonic() - self._start
        if seconds < self._next and done < total:
            return
        self._next = seconds + LINE_EVERY_SECONDS
        line = json.dumps({"done": done, "total": total, "unit": unit, "seconds": round(seconds, 3)})
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


class BarProgress(Progress):
    """Draws a bar once the work has taken a second, from the thread that works."""

    def __init__(self) -> None:
        self._next = time.monotonic() + BAR_AFTER_SECONDS
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Report:
        return self._report

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()

    def _report(self, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + BAR_EVERY_SECONDS
        if self._bar is None or self._task is None:
            self._bar = _make_bar(unit)
            self._task = self._bar.add_task("", total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, refresh=True)


def make_progress(style: str, *, silent: bool, bars: bool) -> Progress:
    """Return the display for a style of --progress: `auto` is a bar if stderr is a terminal, else nothing."""
    if silent or style == "none":
        return Progress()
    if style == "json":
        return JsonProgress()
    return BarProgress() if bars and sys.stderr.isatty() else Progress()


def _make_bar(unit: str) -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    if unit == "bytes":
        return RichProgress(
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            auto_refresh=False,
        )
    return RichProgress(
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + unit),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,
    )
