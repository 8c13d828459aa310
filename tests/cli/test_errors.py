"""Errors become one line and an exit code, whatever they are."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from nvmtool import errors
from nvmtool.cli.group import INTERNAL_ERROR, group


def run_raising(monkeypatch: pytest.MonkeyPatch, error: BaseException, *options: str) -> Result:
    """Run a command that raises."""

    @click.command("boom")
    @click.option("--debug", is_flag=True, expose_value=False)
    def boom() -> None:
        raise error

    monkeypatch.setattr(type(group), "get_command", lambda *_: boom)
    return CliRunner().invoke(group, ["boom", *options])


def classes(root: type[errors.NvmtoolError] = errors.NvmtoolError) -> list[type[errors.NvmtoolError]]:
    return [root, *(c for child in root.__subclasses__() for c in classes(child))]


@pytest.mark.parametrize("error_class", classes(), ids=lambda c: c.__name__)
def test_each_class_owns_its_exit_code(error_class: type[errors.NvmtoolError], monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_raising(monkeypatch, error_class("disk.nvm: what\nand where"))
    assert (result.exit_code, result.stderr) == (error_class.exit_code, "nvmtool: disk.nvm: what and where\n")
    assert result.exit_code in dict(errors.exit_code_table())


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "a.raw"), 7, "nvmtool: a.raw: No such file\n"),
        (OSError(errno.ENOSPC, "No space left", "a.raw"), 5, "nvmtool: a.raw: No space left\n"),
        (OSError(errno.EDQUOT, "Quota exceeded", b"a.raw"), 5, "nvmtool: a.raw: Quota exceeded\n"),
        (OSError("odd"), 7, "nvmtool: odd\n"),
        (OSError(), 7, "nvmtool: OSError\n"),
        (OSError(errno.EIO, "bad", "a\x1b[2J\n"), 7, "nvmtool: a\\x1b[2J : bad\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 7, ""),
    ],
)
def test_errors_of_the_system(error: OSError, code: int, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_raising(monkeypatch, error)
    assert (result.exit_code, result.stderr) == (code, line)


def test_interrupt_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_raising(monkeypatch, KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr.startswith("nvmtool: interrupted; ")
    assert result.stderr.count("\n") == 1


def test_a_fault_of_nvmtool_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_raising(monkeypatch, IndexError("odd"))
    assert result.exit_code == INTERNAL_ERROR
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("nvmtool: internal error: IndexError: odd\n")


def test_debug_shows_the_traceback_and_keeps_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_raising(monkeypatch, errors.BusyError("held"), "--debug")
    assert result.exit_code == 6
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("nvmtool: held\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "Missing command"),
        (["no-such"], "No such command 'no-such'"),
        (["region"], "Missing command"),
        (["purge", "disk.nvm"], "Missing option '--mode'"),
        (["purge", "disk.nvm", "--mode", "magic"], "'magic' is not one of"),
        (["region", "create", "disk.nvm", "a", "--size", "2^70"], "'2^70' is not a size"),
        (["info", "disk.nvm", "--nope"], "No such option"),
        (["info"], "Missing argument 'IMAGE'"),
    ],
)
def test_usage_errors_are_one_line(args: list[str], said: str) -> None:
    result = CliRunner().invoke(group, args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.startswith("nvmtool: ")
    assert result.stderr.endswith(" -h explains)\n")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def nvmtool(*args: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "nvmtool", *args], stderr=subprocess.PIPE, **options)


def test_closed_pipe_is_silent() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = nvmtool("--debug", "-h", stdout=write_end)
    os.close(write_end)
    _, stderr = process.communicate()
    assert b"Exception ignored" not in stderr
    assert process.returncode == 7


def test_full_stdout_is_no_space() -> None:
    with Path("/dev/full").open("wb") as full:
        process = nvmtool("purge", "-h", stdout=full)
    _, stderr = process.communicate()
    assert (process.returncode, stderr.count(b"\n")) == (5, 1)


def test_ctrl_c_is_a_line_and_130() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import time, nvmtool.region.device as d\n"
         "d.Device.open = lambda *a, **k: (print('ready', flush=True), time.sleep(60))\n"
         "from nvmtool.cli import main; main(['info', 'disk.nvm'])"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.decode().startswith("nvmtool: interrupted; ")


def test_the_table_of_exit_codes_is_the_contract() -> None:
    assert [code for code, _ in errors.exit_code_table()] == [*range(10), 70, 130]
