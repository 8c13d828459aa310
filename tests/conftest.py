"""What tests stand on: file systems, real guests; and a skipped test is a failed one where NVMTOOL_NO_SKIP promises all they need."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.guest import why_no_guests

MEMORY = Path("/dev/shm")
# Far more than tests have at a time: what a test leaves goes with it (`tmp_path_retention_policy`).
_MEMORY_BYTES = 6 << 30
# A file system in memory does not tell where a file's blocks lie (FIEMAP), and a command may be over there before it is interrupted.
_ON_DISK = (
    "contract/test_reservation.py",
    "contract/test_swap.py",
    "crash/test_interrupt.py",
    "faults/*",
    "integration/*",
    "media/*",
    "swap/*",
)
_BUT_NOT = ("swap/test_stamps.py", "swap/test_vm.py")
_LONG = ("test_session.py", "test_nbd_guest.py", "test_guests.py", "test_kill.py")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let scratch files lie in memory where there is room: most tests are not about the disk, and those that are take `disk_path`."""
    if hasattr(config, "workerinput") or config.option.basetemp is not None:
        return
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > _MEMORY_BYTES:
        folder = tempfile.mkdtemp(prefix="nvmtool-", dir=MEMORY)
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        config.option.basetemp = f"{folder}/pytest"
        # For folders that tests make themselves, and for their processes.
        os.environ["TMPDIR"] = folder
        tempfile.tempdir = None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest tests come first: then what is left at the end is short, and nobody waits long for the last one."""
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture
def disk_path() -> Generator[Path, None, None]:
    """A folder as `tmp_path`, on a disk."""
    with tempfile.TemporaryDirectory(prefix="nvmtool-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder for the test's files: on a disk where the tests need one, else in memory."""
    on_disk = any(map(request.path.match, _ON_DISK)) and not any(map(request.path.match, _BUT_NOT))
    found: Path = request.getfixturevalue("disk_path") if on_disk else tmp_path
    return found


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
