"""Printing a result: one JSON object, or text for people."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..text import count_of, printable
from .progress import Progress, make_progress

if TYPE_CHECKING:
    from rich.console import Console

_BATCH = 65536
_WIDE = 100_000


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows of text under headers; the first `nleft` columns are set to the left, the others to the right."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    nleft: int = 1


@dataclass(frozen=True, slots=True)
class Output:
    """How this command is to speak: --json, --quiet, --progress."""

    as_json: bool
    quiet: bool
    progress_style: str

    def progress(self) -> Progress:
        """Return a context manager; what it gives is passed to the library as `progress`."""
        return make_progress(self.progress_style, silent=self.quiet, bars=not self.as_json)

    def result(self, facts: Mapping[str, object], *parts: str | Grid) -> None:
        """Print what was asked for: the facts as JSON, or the parts as text."""
        if self.as_json:
            print_json(facts)
            return
        for part in parts:
            if isinstance(part, Grid):
                _print_grid(part)
            else:
                _print_line(part)

    def done(self, facts: Mapping[str, object], *lines: str, to_stderr: bool = False) -> None:
        """Print what was done; to stderr where stdout carries the data."""
        stream = sys.stderr if to_stderr else sys.stdout
        if self.as_json:
            stream.write(json.dumps(facts) + "\n")
        elif not self.quiet:
            stream.writelines(printable(line) + "\n" for line in lines)


def print_json(facts: Mapping[str, object]) -> None:
    """Print one JSON object."""
    sys.stdout.write(json.dumps(facts) + "\n")


def print_json_rows(facts: Mapping[str, object], key: str, **columns: Sequence[int] | Sequence[str]) -> None:
    """Print one JSON object whose last key holds a long list of objects, given by columns; strings must need no escapes.

    A million rows through json.dumps take five times as long.
    """
    write = sys.stdout.write
    write(f"{json.dumps(facts)[:-1]}, {json.dumps(key)}: [")
    nrows = len(next(iter(columns.values())))
    row = ", ".join(f'"{name}": ' + ('"%s"' if nrows and isinstance(column[0], str) else "%d") for name, column in columns.items())
    for start in range(0, nrows, _BATCH):
        parts = [column[start : start + _BATCH] for column in columns.values()]
        text = ", ".join(["{" + row + "}"] * len(parts[0])) % tuple(itertools.chain.from_iterable(zip(*parts, strict=True)))
        write(f", {text}" if start else text)
    write("]}\n")


def change_line(subject: str, verb: str, facts: Mapping[str, Any]) -> str:
    """Return the line about a Change of the library, or about what it would be (`dry_run`)."""
    verb = f"would be {verb}" if facts["dry_run"] else verb
    blocks, slots = facts["blocks_freed"], count_of(facts["slots_freed"], "slot")
    nvm = f"{count_of(blocks, 'block')} of NVM and {slots} of mass storage freed"
    if blocks < 0:  # page tables that a snapshot shared had to be copied, and it keeps the rest
        nvm = f"{slots} of mass storage freed, {count_of(-blocks, 'block')} of NVM taken for page tables"
    return f"{subject}: {verb}; {nvm}, {count_of(facts['pointers_updated'], 'pointer')} changed"


def _print_line(line: str) -> None:
    sys.stdout.write(printable(line) + "\n")


def make_console(width: int | None = None) -> Console:
    """Return rich's console on stdout; a closed pipe is an error like any other there, not an exit with 1."""
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            raise

    return PipeConsole(highlight=False, emoji=False, width=width)


def _print_grid(grid: Grid) -> None:
    from rich.table import Table
    from rich.text import Text

    console = make_console()
    if not console.is_terminal:
        # Whoever reads a pipe wants whole names and one line a row.
        console = make_console(_WIDE)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, header in enumerate(grid.headers):
        table.add_column(header, justify="left" if index < grid.nleft else "right", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)
