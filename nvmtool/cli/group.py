"""The click group: loads a command when it is named, and turns every error into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn, TextIO

import click
from click.shell_completion import CompletionItem

from .. import __version__
from ..errors import NoSpaceError, NvmtoolError, StorageError, UsageError
from ..text import printable
from . import COMMANDS, help_text
from .options import debug_option

INTERRUPTED = 130
INTERNAL_ERROR = 70
# A shell that asks what could follow sets this (completion.py).
COMPLETION = "_NVMTOOL_COMPLETE"


class LazyGroup(click.Group):
    """Loads each command's file when the command is first asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the command's file; None for a name that is not in the table."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[cmd_name][0]}", __package__)
        command = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name, without loading any command's file."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]

    def get_help(self, ctx: click.Context) -> str:
        """Return the help that needs no command's file."""
        return help_text().rstrip()

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run the command and exit; the one place where errors become a line and a code."""
        args = sys.argv[1:] if args is None else list(args)
        debug = "--debug" in args
        # A name that the terminal cannot show must not become an error of its own.
        _escape_unencodable(sys.stdout, sys.stderr)
        try:
            code = self._run(args, prog_name or "nvmtool", **extra)
            sys.stdout.flush()
        # Every error ends here: Python itself would exit with 1 after one that nobody expected, and that code means
        # that a check found problems.
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001
            code = fail(error, debug=debug)
        sys.exit(code)

    def _run(self, args: list[str], prog_name: str, **extra: Any) -> int:
        if instruction := os.environ.get(COMPLETION):
            from click.shell_completion import shell_complete

            return shell_complete(self, {}, prog_name, COMPLETION, instruction)
        try:
            with self.make_context(prog_name, args, **extra) as ctx:
                self.invoke(ctx)
        except click.exceptions.Exit as done:
            return done.exit_code
        return 0


def explain(error: BaseException) -> tuple[str, int]:
    """Return the line about an error, without `nvmtool: `, and the exit code; an empty line means say nothing."""
    match error:
        case NvmtoolError():
            return str(error), error.exit_code
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else "nvmtool"
            return f"{error.format_message()} ({command} -h explains)", UsageError.exit_code
        case click.ClickException():
            return error.format_message(), UsageError.exit_code
        case KeyboardInterrupt() | click.Abort():
            return "interrupted; what was finished is kept, run the same command again for the rest", INTERRUPTED
        case BrokenPipeError():
            return "", StorageError.exit_code
        case OSError():
            names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
            code = NoSpaceError.exit_code if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError.exit_code
            return ": ".join([*names, error.strerror or str(error) or type(error).__name__]), code
    return f"internal error: {type(error).__name__}: {error}", INTERNAL_ERROR


def fail(error: BaseException, *, debug: bool = False) -> int:
    """Say what went wrong in one line on stderr and return the exit code."""
    line, code = explain(error)
    if debug or code == INTERNAL_ERROR:
        import traceback

        traceback.print_exception(error)
    if line:
        with suppress(OSError):  # nobody to tell
            click.echo("nvmtool: " + printable(" ".join(line.split())), err=True)
    _drop_unwritten_stdout()
    return code


def _escape_unencodable(*streams: TextIO) -> None:
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]


def _drop_unwritten_stdout() -> None:
    """Keep the interpreter from failing once more, with a code of its own, on what stdout could not take."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(
    cls=LazyGroup,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110},
)
@debug_option
@click.version_option(__version__, message="nvmtool %(version)s")
def group() -> None:
    """Virtual machines on tiered memory: device images of byte-addressable NVM, and thin swap files with reserved storage."""
