"""Manners: man pages without a warning, completion in real shells, progress for programs."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from nvmtool.cli.group import group
from nvmtool.cli.manual import iter_commands, page
from nvmtool.errors import exit_code_table
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.snapshots import create_snapshot

ALL = dict(iter_commands(group))
ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def need(command: str) -> str:
    found = shutil.which(command)
    if found is None:
        pytest.skip(f"{command} is not installed")
    return found


# --- man pages


def test_every_man_page_is_troff_without_a_warning(tmp_path: Path) -> None:
    groff = need("groff")
    pages = []
    for words, command in ALL.items():
        path = tmp_path / f"{'-'.join(('nvmtool', *words))}.1"
        path.write_text(page(words, command))
        pages.append(path)
    done = subprocess.run([groff, "-mandoc", "-ww", "-Tutf8", *pages], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_man_page_says_what_the_help_says(tmp_path: Path) -> None:
    man = need("man")
    path = tmp_path / "nvmtool-purge.1"
    path.write_text(page(("purge",), ALL[("purge",)]))
    environment = {**os.environ, "MANWIDTH": "200", "MAN_KEEP_FORMATTING": ""}
    done = subprocess.run([man, "--warnings", "-l", path], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"):
        assert f"\n{section}\n" in done.stdout
    assert "--free-target" in done.stdout and "nvmtool purge disk.nvm" in done.stdout
    for _, meaning in exit_code_table():
        assert meaning.split(";")[0] in done.stdout


# --- completion


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A folder for PATH in which nvmtool is."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "nvmtool"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m nvmtool "$@"\n')
    tool.chmod(0o755)
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image whose region vm1 has snapshots monday and tuesday."""
    path = tmp_path / "disk.nvm"
    format_device(path, size_bytes=4 * MIB, mass=tmp_path / "disk.mass")
    with Device.open(path, writable=True) as device:
        region = device.create_region("vm1", MIB)
        for name in ("monday", "tuesday"):
            create_snapshot(region, name)
    return path


def lines_to_complete(image: Path) -> Iterator[tuple[str, set[str]]]:
    """Yield what is typed, and what must be offered for its last word."""
    yield "nvmtool snapsh", {"snapshot"}
    yield "nvmtool snapshot re", {"revert"}
    yield "nvmtool purge --max", {"--max-bytes", "--max-seconds"}
    yield "nvmtool purge --mode v", {"virtblock"}
    yield f"nvmtool snapshot delete {image} ", {"monday", "tuesday"}
    yield f"nvmtool export {image} --snapshot tu", {"tuesday"}
    yield f"nvmtool info {image.parent / 'none'} --re", set()


def environment(bin_folder: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def script(bin_folder: Path, shell: str) -> str:
    command = ["nvmtool", "completion", shell]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment(bin_folder)).stdout


def test_bash_completes(bin_folder: Path, image: Path, tmp_path: Path) -> None:
    bash = need("bash")
    (tmp_path / "script").write_text(script(bin_folder, "bash"))
    for line, wanted in lines_to_complete(image):
        words = line.split(" ")
        typed = " ".join(f"'{word}'" for word in words)
        driver = (
            f"source {tmp_path / 'script'}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; "
            f"complete -p nvmtool >/dev/null && _nvmtool_completion nvmtool; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run([bash, "-c", driver], capture_output=True, text=True, check=True, env=environment(bin_folder))
        assert (set(done.stdout.split()), done.stderr) == (wanted, ""), line


def test_fish_completes(bin_folder: Path, image: Path, tmp_path: Path) -> None:
    fish = need("fish")
    (tmp_path / "script").write_text(script(bin_folder, "fish"))
    home = {**environment(bin_folder), "HOME": str(tmp_path)}
    for line, wanted in lines_to_complete(image):
        command = [fish, "--no-config", "-c", f"source {tmp_path / 'script'}; complete -C '{line}'"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=home)
        offered = {each.split("\t")[0] for each in done.stdout.splitlines()}
        assert (offered == wanted) if wanted else not offered & {"--region"}, (line, done.stdout, done.stderr)


def test_zsh_completes(bin_folder: Path, image: Path, tmp_path: Path) -> None:
    zsh = need("zsh")
    functions = tmp_path / "functions"
    functions.mkdir()
    (functions / "_nvmtool").write_text(script(bin_folder, "zsh"))
    main, child = pty.openpty()
    termios.tcsetwinsize(child, (50, 1000))  # the line is not to be cut
    shell = {**environment(bin_folder), "HOME": str(tmp_path), "PS1": "ready> ", "TERM": "dumb", "ZDOTDIR": str(tmp_path)}
    setup = f"fpath=({functions} $fpath); autoload -U compinit; compinit -u -d {tmp_path}/dump; PS1='ready> '\n"
    (tmp_path / ".zshrc").write_text(setup)
    process = subprocess.Popen([zsh, "-i"], stdin=child, stdout=child, stderr=child, env=shell, start_new_session=True)
    os.close(child)
    try:
        said = _read_until(main, "ready> ")
        os.write(main, b"nvmtool snapsh\t")
        said = _read_until(main, "snapshot")
        os.write(main, f"delete {image} mon\t".encode())
        said += _read_until(main, "monday")
        assert "monday" in said
    finally:
        process.kill()
        process.wait()
        os.close(main)


def _read_until(fd: int, wanted: str) -> str:
    said, deadline = "", time.monotonic() + 30
    while wanted not in said:
        assert time.monotonic() < deadline, said
        if select.select([fd], [], [], 1.0)[0]:
            said += os.read(fd, 65536).decode(errors="replace")
    return said


def test_completing_commands_and_options_loads_neither_numpy_nor_rich() -> None:
    code = (
        "import sys\nfrom nvmtool.cli import main\n"
        "try: main([])\nexcept SystemExit: pass\nprint(*{'numpy', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    variables = {**os.environ, "_NVMTOOL_COMPLETE": "bash_complete", "COMP_WORDS": "nvmtool snapsh", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables)
    assert done.stdout.split(",")[1].strip() == "snapshot"
    assert done.stderr.split() == []


def test_make_installs_pages_and_completion_where_they_are_looked_for_and_takes_them_away(bin_folder: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "with a space" / "prefix"
    other = tmp_path / "with" / "lib" / "nvmtool"  # what rm would see without quotes
    other.mkdir(parents=True)
    (tmp_path / "with" / "precious").touch()
    make = [need("make"), "-C", str(ROOT), f"PREFIX={prefix}", f"NVMTOOL={bin_folder / 'nvmtool'}"]
    subprocess.run([*make, "install-manners"], check=True, capture_output=True, env=environment(bin_folder))
    share = prefix / "share"
    assert len(list((share / "man" / "man1").glob("nvmtool*.1"))) == len(ALL)
    for place in ("bash-completion/completions/nvmtool", "zsh/site-functions/_nvmtool", "fish/vendor_completions.d/nvmtool.fish"):
        assert "_NVMTOOL_COMPLETE" in (share / place).read_text()
    subprocess.run([*make, "uninstall"], check=True, capture_output=True, env=environment(bin_folder))
    assert not [path for path in prefix.rglob("*") if path.is_file()]
    assert (tmp_path / "with" / "precious").exists()


# --- progress

WITHOUT_PROGRESS = {
    ("read",): "the bytes go to stdout as fast as they are taken",
    ("serve",): "runs until it is told to stop",
    ("mount",): "runs until it is told to stop",
    ("completion",): "is done at once",
    ("manual",): "is done at once",
}


def test_every_command_tells_programs_how_far_it_is() -> None:
    leaves = {words: command for words, command in ALL.items() if not isinstance(command, click.Group)}
    without = {words for words, command in leaves.items() if not any("--progress" in param.opts for param in command.params)}
    assert without == set(WITHOUT_PROGRESS)


def test_progress_lines_are_json_and_reach_the_end(tmp_path: Path) -> None:
    def run(*args: object) -> list[dict[str, object]]:
        command = [sys.executable, "-m", "nvmtool", *map(str, args), "--progress", "json", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert isinstance(json.loads(done.stdout), dict), "the result stays one object"
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        assert all(set(line) == {"done", "total", "unit", "seconds"} for line in lines)
        for unit in {line["unit"] for line in lines}:  # a check goes through one kind of thing after the other
            done_so_far = [line["done"] for line in lines if line["unit"] == unit]
            assert done_so_far == sorted(done_so_far)
        return lines

    (tmp_path / "raw").write_bytes(os.urandom(24 * MIB))
    run("format", "disk.nvm", "--size", "96M", "--mass", "disk.mass")
    run("region", "create", "disk.nvm", "vm1", "--size", "24M")
    for command in (
        ("import", "disk.nvm", "raw"),
        ("export", "disk.nvm", "copy"),
        ("snapshot", "create", "disk.nvm", "s"),
        ("discard", "disk.nvm", "--offset", "0", "--length", "24M"),
        ("purge", "disk.nvm", "--mode", "virtblock"),
        ("check", "disk.nvm", "--scrub"),
        ("send", "disk.nvm", "--snapshot", "s", "s.nvms"),
        ("receive", "disk.nvm", "s.nvms", "--region", "vm2"),
        ("recall", "disk.nvm", "--snapshot", "s", "--region", "vm1"),
        ("snapshot", "delete", "disk.nvm", "s", "--region", "vm1"),
    ):
        lines = run(*command)
        if command[:2] != ("snapshot", "create"):
            assert lines and lines[-1]["done"] == lines[-1]["total"], command
