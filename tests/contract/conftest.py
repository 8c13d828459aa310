"""Drive the commands over real files in a folder of their own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nvmtool.cli.group import group

BLOCK = 4096
MIB = 1 << 20


class Tool:
    """Runs nvmtool in this process (`run`, `json`) or in another (`process`); each insists on an exit code."""

    def run(self, *args: str, input: bytes = b"", code: int = 0) -> Result:
        result = CliRunner().invoke(group, args, input=input)
        assert result.exit_code == code, f"{args}: {result.exit_code}: {result.output}"
        if code > 1:
            assert result.stderr.startswith("nvmtool: "), result.stderr
            assert result.stderr.count("\n") == 1, result.stderr
            assert result.stdout == ""
        return result

    def json(self, *args: str, code: int = 0, input: bytes = b"") -> dict[str, Any]:
        facts = json.loads(self.run(*args, "--json", code=code, input=input).stdout)
        assert isinstance(facts, dict)
        return facts

    def process(self, *args: str, input: bytes = b"", code: int = 0, **environment: str) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "nvmtool", *args],
            input=input,
            capture_output=True,
            env={**os.environ, **environment},
            check=False,
        )
        assert done.returncode == code, (args, done.returncode, done.stderr)
        return done

    def bytes_of(self, snapshot: str | None = None, region: str | None = None) -> bytes:
        """Return all of a region's running point or snapshot, by export."""
        options = (["--snapshot", snapshot] if snapshot else []) + (["--region", region] if region else [])
        self.run("export", "disk.nvm", "exported", *options)
        data = Path("exported").read_bytes()
        Path("exported").unlink()
        return data


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """A folder with disk.nvm (32 MiB), its mass store disk.mass, and no region."""
    monkeypatch.chdir(tmp_path)
    tool = Tool()
    tool.run("format", "disk.nvm", "--size", "32M", "--mass", "disk.mass")
    return tool


@pytest.fixture
def tool(empty: Tool) -> Tool:
    """The same with region vm1 of 8 MiB that holds the file raw: 1 MiB data, 1 MiB hole, 1 MiB data, hole."""
    rng = random.Random(1)
    with Path("raw").open("wb") as raw:
        for start in (0, 2 * MIB):
            raw.seek(start)
            raw.write(rng.randbytes(MIB))
        raw.truncate(8 * MIB)
    empty.run("region", "create", "disk.nvm", "vm1", "--size", "8M")
    empty.run("import", "disk.nvm", "raw")
    return empty


@pytest.fixture
def changed(tool: Tool) -> Tool:
    """The same with snapshots monday and tuesday: between and after them, 64 and 32 blocks were written."""
    for name, first, nblocks in (("monday", 0, 64), ("tuesday", 16, 32)):
        tool.run("snapshot", "create", "disk.nvm", name)
        data = random.Random(name).randbytes(nblocks * BLOCK)
        tool.run("write", "disk.nvm", "--offset", str(first * BLOCK), input=data)
    return tool
