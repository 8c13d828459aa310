"""How bugs are planted: a function of the product is compiled from its own source with a piece exchanged, and put back after."""

from __future__ import annotations

import ast
import inspect
import textwrap
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class SourceChangedError(Exception):
    """A planted bug no longer fits the product's source."""


@dataclass(frozen=True)
class Edit:
    """A piece of a function's source, and what stands in its place while the bug is planted."""

    function: Callable[..., Any]
    old: str
    new: str


@dataclass(frozen=True)
class Plant:
    """A planted bug. `workloads` show it, as operation names joined by +; `redundant` says why nothing can find it."""

    name: str
    edits: tuple[Edit, ...]
    workloads: tuple[str, ...] = ()
    redundant: str = ""


def plant(name: str, function: Callable[..., Any], old: str, new: str, *workloads: str, redundant: str = "") -> Plant:
    """Return a bug of one edit."""
    return Plant(name, (Edit(function, old, new),), workloads, redundant)


@contextmanager
def planted(bug: Plant) -> Iterator[None]:
    """Let the product have the bug."""
    with ExitStack() as stack:
        for edit in bug.edits:
            stack.enter_context(_edited(edit, bug.name))
        yield


@contextmanager
def _edited(edit: Edit, name: str) -> Iterator[None]:
    function: Any = inspect.unwrap(edit.function)
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(edit.old) != 1:
        raise SourceChangedError(f"planted bug {name!r}: {edit.old!r} stands {source.count(edit.old)} times in {function.__qualname__}")
    source = source.replace(edit.old, edit.new)
    while source.startswith("@"):
        source = source.split("\n", 1)[1]
    source = f"from __future__ import annotations\n{source}"
    ast.parse(source)
    found: dict[str, Any] = {}
    exec(compile(source, f"<planted {name}>", "exec"), function.__globals__, found)  # noqa: S102 - our own source
    # Exchanging the code reaches every module that holds the function under its own name.
    kept = function.__code__
    function.__code__ = found[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = kept
