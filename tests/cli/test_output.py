"""Printing: JSON or text, progress for people and for programs."""

from __future__ import annotations

import io
import json
import sys

import pytest

from nvmtool.cli import progress as progress_module
from nvmtool.cli.output import Grid, Output, print_json_rows
from nvmtool.cli.progress import make_progress
from nvmtool.text import count_of, human, printable


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (1024**2 - 1, "1 MiB"), (5 << 40, "5 TiB")],
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert human(size_bytes) == text


def test_counts_for_people() -> None:
    assert [count_of(n, "block") for n in (0, 1, 1234)] == ["0 blocks", "1 block", "1,234 blocks"]


def test_names_cannot_steer_the_terminal() -> None:
    assert printable("käse\x1b[2J\n") == "käse\\x1b[2J\\n"


def test_grid_in_a_pipe_is_one_whole_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    name = "n" * 300 + "[red]\x1b"
    Output(False, False, "none").result({}, "head", Grid(("name", "size"), [(name, "1"), ("b", "22")]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[2].split() == ["n" * 300 + "[red]\\x1b", "1"]


def test_json_replaces_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(True, False, "none")
    out.result({"a": 1}, "text")
    out.done({"b": 2}, "line")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [{"a": 1}, {"b": 2}]


def test_quiet_keeps_results_and_drops_remarks(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(False, True, "none")
    out.result({}, "result")
    out.done({}, "remark")
    assert capsys.readouterr().out == "result\n"


@pytest.mark.parametrize("count", [0, 1, 70000])
def test_long_lists_are_one_json_object(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    print_json_rows({"a": '"'}, "rows", i=list(range(count)), s=["x"] * count)
    assert json.loads(capsys.readouterr().out) == {"a": '"', "rows": [{"i": i, "s": "x"} for i in range(count)]}


def test_progress_json_is_lines_with_the_last_always_there(capsys: pytest.CaptureFixture[str]) -> None:
    with make_progress("json", silent=False, bars=False) as report:
        assert report is not None
        for done in range(101):
            report(done, 100, "blocks")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert 2 <= len(lines) < 50
    assert set(lines[0]) == {"done", "total", "unit", "seconds"}
    assert (lines[-1]["done"], lines[-1]["total"], lines[-1]["unit"]) == (100, 100, "blocks")


@pytest.mark.parametrize("unit", ["bytes", "blocks"])
def test_bar_appears_after_a_second_only(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with make_progress("auto", silent=False, bars=True) as report:
        assert report is not None
        report(1, 10, unit)
        assert terminal.getvalue() == ""
    monkeypatch.setattr(progress_module, "BAR_AFTER_SECONDS", 0.0)
    with make_progress("auto", silent=False, bars=True) as report:
        assert report is not None
        report(5, 10, unit)
    assert "5" in terminal.getvalue()


@pytest.mark.parametrize(
    ("style", "silent", "bars"),
    [("auto", True, True), ("json", True, True), ("none", False, True), ("auto", False, False)],
)
def test_nobody_listens(style: str, silent: bool, bars: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with make_progress(style, silent=silent, bars=bars) as report:
        assert report is None


def test_no_bar_where_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with make_progress("auto", silent=False, bars=True) as report:
        assert report is None
