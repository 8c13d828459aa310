"""The damage tool makes images that check then names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nvmtool.region.check import check_device

ROOT = Path(__file__).resolve().parents[2]


def _tool(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "tests.damage", *arguments], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_the_tool_builds_lists_and_damages(tmp_path: Path) -> None:
    folder = str(tmp_path / "image")
    _tool("build", "virtblock", folder)
    assert check_device(tmp_path / "image" / "disk.nvm", scrub=True).clean
    index = next(line.split()[0] for line in _tool("words", folder, "region record").splitlines() if "nvm_blocks" in line)
    assert "swapped: " in _tool("cases", folder, "swapped")
    _tool("set", folder, index, "77")
    findings = check_device(tmp_path / "image" / "disk.nvm").findings
    assert [finding.what for finding in findings] == ["nvm_blocks is 77, counted 6"]
