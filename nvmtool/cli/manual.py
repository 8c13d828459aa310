"""manual: a man page for each command, made of what its help says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from .. import __version__
from ..errors import exit_code_table
from . import COMMANDS
from .options import debug_option, example
from .output import Output

_SUMMARY = "virtual machines on tiered memory"


@click.command("manual", epilog=example("nvmtool manual ~/.local/share/man/man1"))
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@debug_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, sizes in bytes.")
def manual_command(folder: str, as_json: bool) -> None:
    """Write a man page for each command.

    The pages are called nvmtool.1, nvmtool-COMMAND.1 and nvmtool-COMMAND-SUBCOMMAND.1. make install calls this.
    """
    from .group import group

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    written = []
    for words, command in iter_commands(group):
        path = place / f"{'-'.join(('nvmtool', *words))}.1"
        path.write_text(page(words, command), encoding="utf-8")
        written.append(path.name)
    out = Output(as_json, False, "none")
    out.done({"folder": folder, "pages": written}, f"{folder}: {len(written)} man pages")


def iter_commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with the words that name it, groups before what is in them."""
    yield words, command
    if isinstance(command, click.Group):
        with click.Context(command) as ctx:
            for name in command.list_commands(ctx):
                child = command.get_command(ctx, name)
                assert child is not None
                yield from iter_commands(child, (*words, name))


def page(words: tuple[str, ...], command: click.Command) -> str:
    """Return the man page of a command, in the man macros of troff."""
    title = "-".join(("nvmtool", *words))
    summary, _, rest = (command.help or "").partition("\n\n")
    lines = [f'.TH "{title.upper()}" "1" "" "nvmtool {__version__}" "nvmtool"', ".SH NAME"]
    lines.append(f"{_escaped(title)} \\- {_escaped(_one_line(summary).rstrip('.') if words else _SUMMARY)}")
    lines += [".SH SYNOPSIS", *_synopsis(words, command)]
    lines += [".SH DESCRIPTION", *_paragraphs(summary), *_paragraphs(rest)]
    if isinstance(command, click.Group):
        lines += [".SH COMMANDS"]
        for child_words, child in iter_commands(command, words):
            if len(child_words) == len(words) + 1:
                said = COMMANDS[child_words[0]][1] if not words else _one_line((child.help or "").partition("\n\n")[0])
                lines += [".TP", f"\\fB{_escaped('-'.join(('nvmtool', *child_words)))}\\fR(1)", _escaped(said)]
    options = [param for param in command.params if isinstance(param, click.Option)]
    lines += [".SH OPTIONS", *(line for option in options for line in _option(command, option))]
    lines += [".TP", "\\fB\\-h\\fR, \\fB\\-\\-help\\fR", "Show the command's help."]
    lines += [".SH EXIT STATUS"]
    for code, meaning in exit_code_table():
        lines += [".TP", f"\\fB{code}\\fR", _escaped(meaning)]
    lines += [".SH EXAMPLES", ".EX", *(_escaped(line) for line in examples(command)), ".EE"]
    lines += [".SH SEE ALSO", ",\n".join(f"\\fB{_escaped(name)}\\fR(1)" for name in _related(words, command))]
    return "\n".join(lines) + "\n"


def examples(command: click.Command) -> list[str]:
    """Return the lines of the examples that a command's help ends with."""
    text = command.epilog or "Example:\n  nvmtool format disk.nvm --size 4G --mass disk.mass"
    return [line.strip() for line in text.split("Example:\n", 1)[1].splitlines()]


def _synopsis(words: tuple[str, ...], command: click.Command) -> list[str]:
    parts = [f"\\fB{_escaped(' '.join(('nvmtool', *words)))}\\fR", "[\\fIOPTIONS\\fR]"]
    if isinstance(command, click.Group):
        parts.append("\\fICOMMAND\\fR [\\fIARGS\\fR]...")
    with click.Context(command) as ctx:
        for param in command.params:
            if isinstance(param, click.Argument):
                parts.append(f"\\fI{_escaped(param.make_metavar(ctx))}\\fR")
    return [" ".join(parts)]


def _option(command: click.Command, option: click.Option) -> list[str]:
    names = ", ".join(f"\\fB{_escaped(name)}\\fR" for name in sorted(option.opts + option.secondary_opts, key=len))
    with click.Context(command) as ctx:
        if not (option.is_flag or option.count):
            names += f" \\fI{_escaped(option.make_metavar(ctx))}\\fR"
        shown = isinstance(option.default, int | float | str) and not option.is_flag and option.default != ""
    text = _one_line(option.help or "")
    if option.required:
        text += " Required."
    if shown:
        text += f" The default is {option.default}."
    return [".TP", names, _escaped(text)]


def _related(words: tuple[str, ...], command: click.Command) -> list[str]:
    if not words:
        return [f"nvmtool-{name}" for name in COMMANDS]
    above = words[:-1]
    found = ["-".join(("nvmtool", *above))]
    if isinstance(command, click.Group):
        found += ["-".join(("nvmtool", *child)) for child, _ in iter_commands(command, words) if len(child) == len(words) + 1]
    return found


def _paragraphs(text: str) -> list[str]:
    lines = []
    for paragraph in re.split(r"\n\s*\n", text.replace("\b", "").strip()):
        if paragraph.strip():
            lines += [".PP", _escaped(_one_line(paragraph))]
    return lines


def _one_line(text: str) -> str:
    return " ".join(text.replace("\b", "").split())


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    text = text.replace("µ", "\\[mc]").replace("·", "\\[pc]").replace("×", "\\[mu]")
    return "\\&" + text if text.startswith(".") else text
