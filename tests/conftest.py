"""What tests stand on: file systems, real guests; and a skipped test is a failed one where NVMTOOL_NO_SKIP promises all they need."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.guest import why_no_guests


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    # An expected failure is reported as skipped too, and is none.
    if os.environ.get("NVMTOOL_NO_SKIP") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: skipped although NVMTOOL_NO_SKIP is set: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report: Any = yield
    _refuse_skip(report)
    return report


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Generator[Path, None, None]:
    """A file system of 8 MiB, mounted for the test."""
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def guests() -> None:
    """Let a test start real guests (tests/guest/guest.py); it is skipped where they cannot run, with what is missing."""
    reason = why_no_guests()
    if reason is not None:
        pytest.skip(f"no real guests here: {reason}")
