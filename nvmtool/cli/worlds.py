"""The worlds that `nvmtool sched` governs, and the options that choose them and the policy's settings."""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..sched.loop import Governor
from ..sched.recorder import Recorder
from ..sched.settings import Settings, Terms
from .params import PERCENT, SECONDS, SIZE

if TYPE_CHECKING:
    from ..sched.world import World

_TERMS = {"min": "minimum_bytes", "reservation": "reservation_bytes", "limit": "limit_bytes", "shares": "shares"}


@dataclass(frozen=True, slots=True)
class Choice:
    """What the options chose: one world, what differs from the default settings, the VMs' terms."""

    host: str | None
    qmp: tuple[str, ...]
    changes: Mapping[str, Any]
    terms: Mapping[str, Terms]

    @property
    def names_a_world(self) -> bool:
        """Return whether the command line names one."""
        return bool(self.qmp or self.host)

    @property
    def settings(self) -> Settings:
        """Return the settings for a world that has none of its own."""
        return Settings(**self.changes)

    @property
    def _folder(self) -> str | None:
        # QEMU guests on the command line are meant, also where scripts live with NVMTOOL_HOST.
        return self.host or (None if self.qmp else os.environ.get("NVMTOOL_HOST"))

    @contextmanager
    def governor(self, *, record: str | None = None) -> Iterator[Governor]:
        """Open the world, and let go of it at the end."""
        world = self._open()
        try:
            if record is None:
                yield Governor(world, self.settings, terms=self.terms)
                return
            recorder = Recorder(record, self.settings)
            try:
                yield Governor(world, self.settings, terms=self.terms, record=recorder.add)
            finally:
                recorder.close()
        finally:
            world.close()

    def _open(self) -> World:
        if self.qmp and self.host:
            raise UsageError("--host and --qmp are two worlds; name one")
        if self.qmp:
            return _load("--qmp", "..live.world", "QemuWorld")(_sockets(self.qmp))
        if self._folder:
            return _load("--host", "..host.world", "HostWorld")(self._folder)
        raise UsageError("name the host (--host DIR, or NVMTOOL_HOST) or its guests (--qmp NAME=SOCKET)")


def _load(option: str, module: str, name: str) -> Callable[..., World]:
    """Load a world when it is asked for: each needs much that the other does not."""
    try:
        loaded: Callable[..., World] = getattr(importlib.import_module(module, __package__), name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{option} needs {error.name}, which is not installed: pip install 'nvmtool[live]'") from error
    return loaded


def _sockets(pairs: Sequence[str]) -> dict[str, str]:
    sockets: dict[str, str] = {}
    for pair in pairs:
        name, equals, socket = pair.partition("=")
        if not (name and equals and socket):
            raise UsageError(f"--qmp {pair}: write NAME=SOCKET")
        if name in sockets:
            raise UsageError(f"--qmp {pair}: {name} is there already")
        sockets[name] = socket
    return sockets


def _terms(texts: Sequence[str]) -> dict[str, Terms]:
    """Return the terms of `NAME:KEY=VALUE,...`; sizes as everywhere."""
    found: dict[str, Terms] = {}
    for text in texts:
        name, colon, rest = text.rpartition(":")
        pairs = [part.partition("=") for part in rest.split(",")]
        if not (name and colon) or any(key not in _TERMS or not value for key, _, value in pairs):
            raise UsageError(f"--vm {text}: write NAME:KEY=VALUE,... with {', '.join(_TERMS)}")
        found[name] = Terms(**{_TERMS[key]: _term(text, key, value) for key, _, value in pairs})
    return found


def _term(text: str, key: str, value: str) -> int:
    if key != "shares":
        return SIZE.convert(value, None, None)
    if not re.fullmatch(r"[1-9][0-9]{0,8}", value):
        raise UsageError(f"--vm {text}: {value} is not a number of shares")
    return int(value)


def policy_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the policy's settings; the command gets those that were given as `changes`, by their names in Settings."""

    @click.option("--tax", type=PERCENT, help="The idle-memory tax; 75% unless said.")
    @click.option("--free-target", type=PERCENT, help="Keep this share of the host's memory free; else the thresholds decide.")
    @click.option("--deadband", type=PERCENT, help="So far from the target nothing is done; 0.5% unless said.")
    @click.option("--largest-step", type=PERCENT, help="Take at most this share of what a VM holds in one interval; 50% unless said.")
    @click.option("--headroom", type=PERCENT, help="Leave so much of a VM's free and file pages; 3% of its memory unless said.")
    @click.option("--cool-down", type=SECONDS, help="Wait so long before changing a VM the other way; 30 unless said.")
    @click.option("--below-minimum", is_flag=True, help="Go below the VMs' minimum, never below their reservation.")
    @click.option("--guest-swaps", is_flag=True, help="Let balloons take anonymous pages where the host cannot swap.")
    @click.option("--no-swap", is_flag=True, help="Never swap on the host.")
    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in ("tax", "free_target", "deadband", "largest_step", "headroom")}
        given["cool_down_s"] = kwargs.pop("cool_down")
        flags = {name: True for name in ("below_minimum", "guest_swaps") if kwargs.pop(name)}
        if kwargs.pop("no_swap"):
            flags["may_swap"] = False
        changes = {**{name: value for name, value in given.items() if value is not None}, **flags}
        return function(*args, changes=changes, **kwargs)

    return command


def world_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what names a world and the policy's settings; the command gets a Choice as `choice`."""

    @click.option("--host", type=click.Path(), metavar="DIR", help="Govern this host; NVMTOOL_HOST unless said.")
    @click.option("--qmp", multiple=True, metavar="NAME=SOCKET", help="Govern this QEMU guest by its QMP socket; may be given again.")
    @click.option("--vm", multiple=True, metavar="NAME:KEY=VALUE,...", help="Terms of a VM: min, reservation, limit, shares.")
    @policy_options
    @functools.wraps(function)
    def command(*args: Any, host: str | None, qmp: tuple[str, ...], vm: tuple[str, ...], changes: Mapping[str, Any], **kwargs: Any) -> Any:
        return function(*args, choice=Choice(host, qmp, changes, _terms(vm)), **kwargs)

    return command
