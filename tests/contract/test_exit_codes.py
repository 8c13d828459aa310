"""Bad input: one line, the right exit code, and nothing changed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20


_watchers: list[list[str]] = []


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR):
        for opened in _watchers:
            opened.append(str(args[0]))


sys.addaudithook(_watch)  # for good: Python cannot take one away


@contextlib.contextmanager
def opened_for_writing() -> Iterator[list[str]]:
    """Collect the files that this process opens for writing meanwhile."""
    opened: list[str] = []
    _watchers.append(opened)
    yield opened
    _watchers.remove(opened)


def fingerprint() -> dict[str, tuple[int, int]]:
    """Return the size and a checksum of each file here; nobody forges one, and a quick one saves a third of a second a test."""
    contents = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    return {name: (len(data), zlib.crc32(data)) for name, data in contents.items()}


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (2, "format new.nvm --size 0 --mass new.mass"),
        (2, "format new.nvm --size 1180591620717411303424 --mass new.mass"),
        (2, "format new.nvm --size 32M --mass new.nvm"),
        (2, "format new.nvm --size 32M --mass new.mass --block-size 8K"),
        (9, "format disk.nvm --size 32M --mass new.mass"),
        (9, "format new.nvm --size 32M --mass disk.mass"),
        (2, "region create disk.nvm r --size 0"),
        (2, "region create disk.nvm r --size 1000"),
        (2, "region create disk.nvm r --size 4E"),
        (2, "region create disk.nvm a/b --size 1M"),
        (2, "region create disk.nvm @current --size 1M"),
        (2, f"region create disk.nvm {'n' * 64} --size 1M"),
        (9, "region create disk.nvm vm1 --size 1M"),
        (9, "region delete disk.nvm other"),
        (9, "region delete disk.nvm other --dry-run"),
        (9, "region convert disk.nvm other --mapping direct"),
        (9, "import disk.nvm raw --region other"),
        (2, "import disk.nvm raw --offset 1M"),
        (9, "export disk.nvm out --snapshot never"),
        (2, "read disk.nvm --offset 8M --length 1"),
        (2, "read disk.nvm --offset 9M"),
        (2, "discard disk.nvm --offset 7M --length 2M"),
        (2, "discard disk.nvm --offset 7M --length 2M --dry-run"),
        (9, "read disk.nvm --offset 0 --length 1 --snapshot never"),
        (9, "snapshot create disk.nvm tuesday"),
        (9, "snapshot create disk.nvm wednesday tuesday"),
        (2, "snapshot create disk.nvm a@b"),
        (9, "snapshot delete disk.nvm never"),
        (9, "snapshot delete disk.nvm monday never"),
        (9, "snapshot revert disk.nvm never"),
        (9, "snapshot revert disk.nvm never --dry-run"),
        (9, "snapshot diff disk.nvm monday never"),
        (9, "snapshot list disk.nvm --region other"),
        (9, "purge disk.nvm --mode virtblock --region other"),
        (9, "purge disk.nvm --mode virtblock --snapshot never"),
        (9, "recall disk.nvm --snapshot never"),
        (9, "map disk.nvm --snapshot never"),
        (3, "info raw"),
        (3, "check raw"),
        (3, "info disk.mass"),
        (3, "info disk.nvm --mass raw"),
    ],
)
def test_refused_in_one_line_and_nothing_changed(code: int, command: str, changed: Any) -> None:
    before = fingerprint()
    changed.run(*command.split(), code=code)
    assert fingerprint() == before


def test_write_past_the_end(tool: Any) -> None:
    before = fingerprint()
    tool.run("write", "disk.nvm", "--offset", str(8 * MIB - 1), input=b"ab", code=2)
    assert fingerprint() == before


@pytest.mark.parametrize("command", ["info no.nvm", "import disk.nvm no.raw", "export disk.nvm no/folder"])
def test_missing_files_name_themselves(command: str, tool: Any) -> None:
    result = subprocess.run([sys.executable, "-m", "nvmtool", *command.split()], capture_output=True, text=True, check=False)
    assert result.returncode in (7, 9)
    assert result.stderr.startswith(f"nvmtool: {command.split()[-1]}")
    assert result.stderr.count("\n") == 1


def test_no_region_yet_says_how_to_create_one(empty: Any) -> None:
    Path("raw").write_bytes(b"x" * 4096)
    assert "nvmtool region create" in empty.run("import", "disk.nvm", "raw", code=9).stderr


def test_several_regions_must_be_named(tool: Any) -> None:
    tool.run("region", "create", "disk.nvm", "vm2", "--size", "1M")
    assert "vm1, vm2" in tool.run("snapshot", "create", "disk.nvm", "s", code=2).stderr
    tool.run("snapshot", "create", "disk.nvm", "s", "--region", "vm2")


def test_virtblock_purge_of_a_direct_region_names_convert(empty: Any) -> None:
    empty.run("region", "create", "disk.nvm", "r", "--size", "1M", "--mapping", "direct")
    result = empty.run("purge", "disk.nvm", "--mode", "virtblock", "--region", "r", code=2)
    assert "nvmtool region convert" in result.stderr


def test_newer_version(tool: Any) -> None:
    with Path("disk.nvm").open("r+b") as image:
        for copy in (0, 4096):
            image.seek(copy + 8)
            image.write((2).to_bytes(4, "little"))
    assert tool.run("info", "disk.nvm", code=3)


@pytest.mark.parametrize("size", [0, 100, 4096, 5000, 20 * MIB, 32 * MIB - 1])
def test_truncated_image(size: int, tool: Any) -> None:
    os.truncate("disk.nvm", size)
    result = subprocess.run([sys.executable, "-m", "nvmtool", "info", "disk.nvm"], capture_output=True, text=True, check=False)
    assert result.returncode in (3, 4), result.stderr
    assert result.stderr.startswith("nvmtool: disk.nvm: ")
    assert result.stderr.count("\n") == 1


def test_damaged_structure(tool: Any) -> None:
    with Path("disk.nvm").open("r+b") as image:
        image.seek(2 * 4096 + 5)
        byte = image.read(1)[0]
        image.seek(2 * 4096 + 5)
        image.write(bytes([byte ^ 0x10]))
    tool.run("info", "disk.nvm", code=4)
    tool.run("import", "disk.nvm", "raw", code=4)


def test_missing_mass_store(tool: Any) -> None:
    Path("disk.mass").rename("moved.mass")
    result = subprocess.run([sys.executable, "-m", "nvmtool", "info", "disk.nvm"], capture_output=True, text=True, check=False)
    assert result.returncode in (3, 7, 9)
    assert "disk.mass" in result.stderr
    assert result.stderr.count("\n") == 1
    tool.run("info", "disk.nvm", "--mass", "moved.mass")


def test_foreign_mass_store(tool: Any) -> None:
    tool.run("format", "other.nvm", "--size", "16M", "--mass", "other.mass")
    tool.run("info", "disk.nvm", "--mass", "other.mass", code=3)
    Path("other.mass").replace("disk.mass")
    tool.run("info", "disk.nvm", code=3)


def test_truncated_mass_store(changed: Any) -> None:
    changed.run("purge", "disk.nvm", "--mode", "virtblock")
    os.truncate("disk.mass", 4096)
    changed.run("info", "disk.nvm", code=4)


def test_full_device(empty: Any) -> None:
    empty.run("region", "create", "disk.nvm", "r", "--size", "64M")
    Path("big").write_bytes(os.urandom(40 * MIB))
    empty.run("import", "disk.nvm", "big", code=5)
    empty.run("check", "disk.nvm")
    # Space for the rest of this test comes back: what could not be finished is not in the way.
    empty.run("region", "delete", "disk.nvm", "r")
    empty.run("check", "disk.nvm")


def test_busy_in_another_process(tool: Any) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-m", "nvmtool", "write", "disk.nvm", "--offset", "0"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert holder.stdin is not None
    try:
        # A pipe's buffer is smaller than this, so all of it is gone only when the writer has the image open and reads.
        holder.stdin.write(b"x" * MIB)
        holder.stdin.flush()
        result = tool.run("snapshot", "create", "disk.nvm", "s", code=6)
        assert str(holder.pid) in result.stderr
        tool.run("info", "disk.nvm")
    finally:
        holder.stdin.close()
        assert holder.wait(timeout=30) == 0
    tool.run("snapshot", "create", "disk.nvm", "s")


def test_check_finds_what_is_damaged_and_exits_with_1(changed: Any) -> None:
    changed.run("purge", "disk.nvm", "--mode", "virtblock")
    with Path("disk.mass").open("r+b") as mass:
        mass.seek(4096 + 7)
        byte = mass.read(1)[0]
        mass.seek(4096 + 7)
        mass.write(bytes([byte ^ 1]))
    changed.run("check", "disk.nvm")
    facts = changed.json("check", "disk.nvm", "--scrub", code=1)
    assert facts["clean"] is False
    (finding,) = facts["findings"]
    assert set(finding) >= {"severity", "structure", "where", "what"}
    assert finding["severity"] == "error"
    text = changed.run("check", "disk.nvm", "--scrub", code=1).stdout
    assert finding["what"] in text


def test_reading_commands_never_open_for_writing(changed: Any) -> None:
    changed.run("purge", "disk.nvm", "--mode", "virtblock", "--max-bytes", "64K")
    before = fingerprint()
    for command in (
        "info disk.nvm",
        "check disk.nvm --scrub",
        "region list disk.nvm",
        "snapshot list disk.nvm",
        "snapshot diff disk.nvm monday",
        "map disk.nvm --all",
        "read disk.nvm --offset 0 --length 1M",
        "read disk.nvm --offset 0 --length 1M --snapshot monday",
        "purge disk.nvm --mode virtblock --dry-run",
        "recall disk.nvm --snapshot monday --dry-run",
        "snapshot delete disk.nvm monday --dry-run",
        "snapshot revert disk.nvm monday --dry-run",
        "discard disk.nvm --offset 0 --length 8M --dry-run",
        "region delete disk.nvm vm1 --dry-run",
        "region convert disk.nvm vm1 --mapping direct --dry-run",
    ):
        with opened_for_writing() as opened:
            changed.run(*command.split())
        assert opened == [], command
    assert fingerprint() == before


@pytest.mark.parametrize(
    "command",
    [
        "export disk.nvm disk.nvm",
        "export disk.nvm disk.mass --snapshot monday",
        "export disk.nvm link",
        "map disk.nvm --svg disk.mass",
        "import disk.nvm disk.mass",
        "format other.nvm --size 32M --mass disk.mass --force",
    ],
)
def test_no_command_writes_over_the_image_or_its_mass_store(changed: Any, command: str) -> None:
    Path("link").symlink_to("disk.nvm")
    before = fingerprint()
    changed.run(*command.split(), code=8)
    assert fingerprint() == before


def test_closed_standard_streams_are_errors_and_never_the_image(changed: Any) -> None:
    before = fingerprint()
    for command, code in (
        ("import disk.nvm - <&-", 7),
        ("write disk.nvm --offset 0 <&-", 7),
        ("info disk.nvm >&-", 7),
        ("info disk.nvm 2>&- >/dev/null", 0),
        ("info never.nvm 2>&-", 9),
        ("--help >/dev/full", 5),
    ):
        done = subprocess.run(["sh", "-c", f"{sys.executable} -m nvmtool {command}"], capture_output=True, text=True, check=False)
        assert done.returncode == code, (command, done)
        assert done.stderr.count("\n") == (code != 0 and "2>&-" not in command), done.stderr
    assert {name: before[name] for name in ("disk.nvm", "raw")} == {name: fingerprint()[name] for name in ("disk.nvm", "raw")}


@pytest.mark.parametrize("command", ["--help", "info disk.nvm", "map disk.nvm", "snapshot list disk.nvm"])
def test_a_reader_that_goes_away_is_an_error_of_storage(changed: Any, command: str) -> None:
    with subprocess.Popen([sys.executable, "-m", "nvmtool", *command.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 7


def test_input_that_is_too_long_says_what_it_wrote(changed: Any) -> None:
    for command in ("import disk.nvm -", "write disk.nvm --offset 0"):
        assert "its first" in changed.process(*command.split(), input=bytes(9 * MIB), code=2).stderr.decode()
    assert changed.json("check", "disk.nvm", "--scrub")["clean"]


def test_a_qcow2_image_in_a_pipe_is_not_taken_for_raw_data(changed: Any) -> None:
    assert "qcow2" in changed.process("import", "disk.nvm", "-", input=b"QFI\xfb" + bytes(8192), code=3).stderr.decode()


def test_what_looks_like_a_hole_but_is_counted_as_mapped_is_damage(changed: Any) -> None:
    from nvmtool.region.device import Device

    with Device.open("disk.nvm") as device:
        leaf = next(device.region().pages.tables.iter_leaf_groups([device.region().root_of("monday")]))[1][0]
    with open("disk.nvm", "r+b") as image:
        image.seek(int(leaf) * 4096)
        image.write(bytes(4096))
    changed.run("export", "disk.nvm", "out", "--snapshot", "monday", code=4)
    before = fingerprint()
    assert not changed.json("check", "disk.nvm", "--repair", code=1)["clean"]
    assert fingerprint() == before, "nobody can prove what the table held"
