"""Help: every command has one, it ends with an example that can be typed, and asking for it loads little."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from nvmtool.cli import COMMANDS, help_text
from nvmtool.cli.group import group


def commands(command: click.Command = group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with the words that name it."""
    yield path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            child = command.get_command(click.Context(command), name)
            assert child is not None
            yield from commands(child, (*path, name))


ALL = dict(commands())


def help_of(path: tuple[str, ...], option: str = "-h") -> str:
    result = CliRunner().invoke(group, [*path, option])
    assert result.exit_code == 0, result.output
    return result.stdout


def example_lines(path: tuple[str, ...]) -> list[str]:
    return help_of(path).rsplit("Example:\n", 1)[1].splitlines()


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_h_is_help(path: tuple[str, ...]) -> None:
    assert help_of(path) == help_of(path, "--help")


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_ends_with_an_example_that_parses(path: tuple[str, ...]) -> None:
    for line in example_lines(path):
        typed = next(part for part in line.split("|") if part.split()[0] == "nvmtool")
        words = shlex.split(typed)[1:]
        named = max((p for p in ALL if tuple(words[: len(p)]) == p), key=len)
        assert named[: len(path)] == path, "the example is of this command"
        # click keeps the help option of the first context that a command gets.
        ALL[named].make_context("nvmtool", words[len(named) :], help_option_names=["-h", "--help"])


@pytest.mark.parametrize("path", [p for p in ALL if p], ids=" ".join)
def test_every_option_and_command_is_explained(path: tuple[str, ...]) -> None:
    command = ALL[path]
    assert command.help
    for param in command.params:
        assert isinstance(param, click.Argument) or getattr(param, "help", None), param.name


def test_main_help_says_what_the_commands_say() -> None:
    for name, (_, text) in COMMANDS.items():
        said = ALL[(name,)].help
        assert said is not None
        assert said.split("\n\n")[0] == text


def test_options_are_spelled_alike_everywhere() -> None:
    meanings: dict[str, set[tuple[str, str]]] = {}
    for command in ALL.values():
        for param in command.params:
            for option in param.opts if isinstance(param, click.Option) else []:
                meanings.setdefault(option, set()).add((param.type.name, param.metavar or ""))
    # A VM's is how much it is guaranteed; a swap file's is where that is kept.
    assert meanings.pop("--reservation") == {("size", ""), ("path", "RSV")}
    assert {option: m for option, m in meanings.items() if len(m) > 1} == {}


def test_every_command_that_prints_data_has_json() -> None:
    leaves = [path for path, command in ALL.items() if not isinstance(command, click.Group)]
    without = [path for path in leaves if "--json" not in help_of(path)]
    assert without == [("read",), ("completion",)], "their result is bytes, or a script, and nothing else"


@pytest.mark.parametrize(
    "path",
    [
        ("region", "delete"),
        ("region", "convert"),
        ("snapshot", "delete"),
        ("snapshot", "revert"),
        ("discard",),
        ("purge",),
        ("recall",),
        ("swap", "delete"),
    ],
    ids=" ".join,
)
def test_what_destroys_or_moves_has_dry_run(path: tuple[str, ...]) -> None:
    assert "--dry-run" in help_of(path)


def test_main_help_from_the_group_is_the_same() -> None:
    assert CliRunner().invoke(group, ["-h"]).stdout == help_text()


def loaded_by(*args: str) -> set[str]:
    code = (
        "import sys\nfrom nvmtool.cli import main\n"
        f"try: main({list(args)!r})\nexcept SystemExit: pass\n"
        "print(*{'numpy', 'rich', 'click'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("option", ["-h", "--help", "--version"])
def test_main_help_loads_nothing(option: str) -> None:
    assert loaded_by(option) == set()


def test_unknown_command_loads_neither_numpy_nor_rich() -> None:
    assert not {"numpy", "rich"} & loaded_by("no-such-command")


def test_main_help_takes_at_most_four_times_pythons_start() -> None:
    def fastest(*args: str) -> float:
        times = []
        for _ in range(9):
            start = time.perf_counter()
            subprocess.run([sys.executable, *args], stdout=subprocess.DEVNULL, check=True)
            times.append(time.perf_counter() - start)
        return min(times)

    start_up = fastest("-c", "pass")
    assert fastest("-c", "from nvmtool.cli import main; main(['--help'])") <= 4 * start_up
