"""Saying what a check found, alike for every kind of file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ..text import count_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import click

    from ..findings import CheckResult
    from .output import Output

PROBLEMS_FOUND = 1


def report_check(ctx: click.Context, out: Output, subject: Mapping[str, str], result: CheckResult, *, repair: bool, note: str = "") -> None:
    """Print findings and a summary with a note; exits with 1 when problems are left. `subject` is the JSON key and the file's path."""
    found = [f"{f.severity}: {f.structure} at {f.where}: {f.what}" for f in result.findings]
    summary = f"{next(iter(subject.values()))}: {'clean' if result.clean else 'not clean'}"
    if result.leaked_blocks:
        summary += f", {count_of(result.leaked_blocks, 'leaked block')}"
    if repair:
        summary += f", {count_of(result.repaired, 'repair')}"
    out.result({**subject, **dataclasses.asdict(result)}, *found, summary + (f"; {note}" if note else ""))
    if not result.clean:
        ctx.exit(PROBLEMS_FOUND)
