"""New files appear whole or not at all, and leave nothing behind."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from nvmtool.media.newfile import NewFile

if TYPE_CHECKING:
    from pathlib import Path


def _killed_in(path: Path, call: str) -> None:
    """Publish a file in a process that is killed when it comes to a call of the os module."""
    child = os.fork()
    if child == 0:
        setattr(os, call, lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL))
        new = NewFile(path)
        os.write(new.fd, b"new")
        new.publish()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_new_file_gets_its_name_in_one_step(tmp_path: Path) -> None:
    _killed_in(tmp_path / "name", "link")
    assert list(tmp_path.iterdir()) == []
    new = NewFile(tmp_path / "name")
    new.publish()
    new.close()
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


@pytest.mark.parametrize("call", ["link", "rename"])
def test_a_file_that_is_there_stays_until_the_new_one_takes_its_place(tmp_path: Path, call: str) -> None:
    (tmp_path / "name").write_bytes(b"old")
    _killed_in(tmp_path / "name", call)
    assert (tmp_path / "name").read_bytes() == b"old"
    new = NewFile(tmp_path / "name")
    os.write(new.fd, b"newer")
    new.publish()
    new.close()
    assert (tmp_path / "name").read_bytes() == b"newer"
