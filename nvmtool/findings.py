"""What a check of any of our files says: the findings, and whether repair mended them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One broken rule. Severity `leak`: space is lost, nothing else; `error`: anything worse."""

    severity: str
    structure: str
    where: str
    what: str


@dataclass(frozen=True)
class CheckResult:
    """What a check found; `repaired` counts the findings that repair mended."""

    clean: bool
    findings: list[Finding]
    leaked_blocks: int
    repaired: int
