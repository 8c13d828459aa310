"""Scenarios: what a host and its VMs were like at some moments, as JSON lines. Written by hand, or recorded; docs/sched.md has the keys.

A line may leave out what has not changed. Sizes are bytes.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import UsageError
from .facts import CLASS_NAMES, Balloon, Classes, Estimate, Facts, HostFacts, VmFacts
from .settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_INTERVAL_S = 10.0

# What a size means is checked where facts are (doubts.py), for all sources alike.
_LINE_KEYS = {"t", "host", "vms", "interval_s", "settings"}
_HOST_KEYS = {"total", "own", "free", "free_target", "swap_room"}
_SIZE_KEYS = {"memory", "min", "reservation", "limit", "balloon", "balloon_target", "balloon_max", "balloon_rate", "swapped", "swap_room"}
_SIZE_KEYS |= {"sharable", "resident"}
_VM_KEYS = {"name", "shares", "balloon_driver", "classes", "classes_low", "classes_high", "source", "sampled", "gone", *_SIZE_KEYS}
_NULLABLE = {"limit", "balloon_target", "balloon_max", "balloon_rate", "swap_room", "resident", "classes", "free_target"}


@dataclass(frozen=True)
class Moment:
    """What is so from a time on: the host's and the VMs' values by key, those of earlier lines included; VMs by name, in order."""

    t: float
    host: Mapping[str, Any]
    vms: Mapping[str, Mapping[str, Any]]

    @property
    def held_bytes(self) -> int:
        """Return what the VMs hold, as recorded."""
        return sum(vm_facts(name, vm).held_bytes for name, vm in self.vms.items())

    @property
    def own_bytes(self) -> int:
        """Return what the host uses itself: as given, or what is neither free nor the VMs'."""
        if "own" in self.host or "free" not in self.host:
            return int(self.host.get("own", 0))
        return max(0, int(self.host["total"]) - int(self.host["free"]) - self.held_bytes)


@dataclass(frozen=True)
class Scenario:
    """Moments in order of time, and how they are replayed."""

    moments: tuple[Moment, ...]
    interval_s: float = DEFAULT_INTERVAL_S
    settings: Settings = dataclasses.field(default_factory=Settings)


def read_scenario(path: str | Path, text: str | None = None) -> Scenario:
    """Read a scenario from a file; raises UsageError, which names file, line and key, on what is not one."""
    text = Path(path).read_text(encoding="utf-8", errors="replace") if text is None else text
    reader = _Reader(str(path))
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            reader.read(number, line)
    if not reader.moments:
        raise UsageError(f"{path}: no moment in it")
    return Scenario(tuple(reader.moments), reader.interval_s, reader.settings)


class _Reader:
    """Reads lines and keeps what earlier ones said."""

    def __init__(self, path: str) -> None:
        self.moments: list[Moment] = []
        self.interval_s = DEFAULT_INTERVAL_S
        self.settings = Settings()
        self._where = self._path = path
        self._host: dict[str, Any] = {}
        self._vms: dict[str, dict[str, Any]] = {}

    def read(self, number: int, line: str) -> None:
        """Read one line."""
        self._where = f"{self._path}: line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{self._where}: not JSON: {error}") from error
        self._object(values, "", _LINE_KEYS)
        t = self._number(values, "t", "t", least=self.moments[-1].t if self.moments else 0)
        if (values.keys() & {"interval_s", "settings"}) and self.moments:
            self._refuse("interval_s and settings belong into the first line")
        self._read_run(values)
        self._read_host(values.get("host", {}))
        vms = values.get("vms", [])
        if not isinstance(vms, list):
            self._refuse("vms: not a list")
        for index, vm in enumerate(vms):
            self._read_vm(f"vms[{index}]", vm)
        self.moments.append(Moment(t, copy.deepcopy(self._host), copy.deepcopy(self._vms)))

    def _read_run(self, values: dict[str, Any]) -> None:
        if "interval_s" in values:
            self.interval_s = self._number(values, "interval_s", "interval_s", least=0.001)
        if "settings" in values:
            given = values["settings"]
            defaults = dataclasses.asdict(self.settings)
            self._object(given, "settings", set(defaults))
            for name, value in given.items():
                if value is None and name == "free_target":
                    continue
                if isinstance(value, bool) != isinstance(defaults[name], bool) or not isinstance(value, bool | int | float):
                    self._refuse(f"settings.{name}: {value!r} is not of its kind")
            try:
                self.settings = Settings(**{**defaults, **given})
            except UsageError as error:
                self._refuse(f"settings: {error}")

    def _read_host(self, host: Any) -> None:
        self._object(host, "host", _HOST_KEYS)
        for key in host:
            if key == "free_target":
                self._number(host, key, f"host.{key}", least=0)
            else:
                self._size(host, key, f"host.{key}")
        self._host |= host
        if not self._host.get("total"):
            self._refuse("host.total: the host needs memory")

    def _read_vm(self, where: str, vm: Any) -> None:
        self._object(vm, where, _VM_KEYS)
        name = vm.get("name")
        if not isinstance(name, str) or not name:
            self._refuse(f"{where}.name: a VM needs one")
        if vm.get("gone"):
            self._vms.pop(name, None)
            return
        known = self._vms.setdefault(name, {})
        for key in vm.keys() & (_SIZE_KEYS | {"shares", "sampled"}):
            self._size(vm, key, f"{where}.{key}")
        for key in vm.keys() & {"classes", "classes_low", "classes_high"}:
            self._read_classes(vm, key, f"{where}.{key}", known)
        if not isinstance(vm.get("balloon_driver", True), bool):
            self._refuse(f"{where}.balloon_driver: {vm['balloon_driver']!r} is neither true nor false")
        if not isinstance(vm.get("source", ""), str):
            self._refuse(f"{where}.source: not a word")
        known |= {key: value for key, value in vm.items() if key not in ("name", "gone", "classes", "classes_low", "classes_high")}
        if not known.get("memory"):
            self._refuse(f"{where}.memory: {name} needs memory")

    def _read_classes(self, vm: dict[str, Any], key: str, where: str, known: dict[str, Any]) -> None:
        if vm[key] is None:
            known[key] = None
            return
        self._object(vm[key], where, set(CLASS_NAMES))
        for name in vm[key]:
            self._size(vm[key], name, f"{where}.{name}")
        known[key] = {**(known.get(key) or {}), **vm[key]}

    def _object(self, value: Any, where: str, keys: set[str]) -> None:
        if not isinstance(value, dict):
            self._refuse(f"{where or 'the line'}: not an object")
        if unknown := sorted(value.keys() - keys):
            self._refuse(f"{where + '.' if where else ''}{unknown[0]}: no such key; there are {', '.join(sorted(keys))}")

    def _size(self, values: dict[str, Any], key: str, where: str) -> None:
        value = values[key]
        if value is None and key in _NULLABLE:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            self._refuse(f"{where}: {value!r} is not a number of bytes")

    def _number(self, values: dict[str, Any], key: str, where: str, *, least: float) -> float:
        value = values.get(key)
        if value is None and key in _NULLABLE:
            return 0.0
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
            self._refuse(f"{where}: {value!r} is not a number from {least} on")
        return float(value)

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(f"{self._where}: {what}")


def moment_facts(moment: Moment) -> Facts:
    """Return the facts of a recorded moment as they stand there: for a plan, without a replay."""
    host = moment.host
    vms = tuple(vm_facts(name, vm) for name, vm in moment.vms.items())
    own = moment.own_bytes
    free = host["free"] if "free" in host else max(0, host["total"] - own - sum(vm.held_bytes for vm in vms))
    return Facts(HostFacts(host["total"], free, own, host.get("swap_room"), host.get("free_target")), vms)


def vm_facts(name: str, vm: Mapping[str, Any]) -> VmFacts:
    """Return one VM's facts as they stand in a moment."""
    estimate = None
    if vm.get("classes") is not None:
        classes = Classes(**vm["classes"])
        low, high = (Classes(**vm[key]) if vm.get(key) else classes for key in ("classes_low", "classes_high"))
        estimate = Estimate(classes, low, high, vm.get("source", "report"), vm.get("sampled", 0))
    return VmFacts(
        name=name,
        memory_bytes=vm["memory"],
        minimum_bytes=vm.get("min", 0),
        reservation_bytes=vm.get("reservation", 0),
        limit_bytes=vm.get("limit"),
        shares=vm.get("shares", 1000),
        balloon=Balloon(vm.get("balloon_driver", True), vm.get("balloon", 0), vm.get("balloon_target"), vm.get("balloon_max")),
        swapped_bytes=vm.get("swapped", 0),
        swap_room_bytes=vm.get("swap_room"),
        sharable_bytes=vm.get("sharable", 0),
        resident_bytes=vm.get("resident"),
        estimate=estimate,
    )


def scenario_line(facts: Facts, t: float, settings: Settings | None = None) -> str:
    """Return facts as one line of a scenario, so that a recording or a bug report is a file; `settings` for the first line."""
    host = facts.host
    line: dict[str, Any] = {"t": t}
    if settings is not None:
        line["settings"] = dataclasses.asdict(settings)
    line["host"] = {"total": host.total_bytes, "own": host.own_bytes, "free": host.free_bytes, "free_target": host.free_target}
    if host.swap_room_bytes is not None:
        line["host"]["swap_room"] = host.swap_room_bytes
    line["vms"] = [_vm_values(vm) for vm in facts.vms]
    return json.dumps(line)


def _vm_values(vm: VmFacts) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": vm.name,
        "memory": vm.memory_bytes,
        "min": vm.minimum_bytes,
        "reservation": vm.reservation_bytes,
        "limit": vm.limit_bytes,
        "shares": vm.shares,
        "balloon_driver": vm.balloon.driver,
        "balloon": vm.balloon.size_bytes,
        "balloon_target": vm.balloon.target_bytes,
        "balloon_max": vm.balloon.max_bytes,
        "swapped": vm.swapped_bytes,
        "swap_room": vm.swap_room_bytes,
        "sharable": vm.sharable_bytes,
        "resident": vm.resident_bytes,
        "classes": None,
    }
    if vm.estimate is not None:
        classes, low, high = vm.estimate.classes, vm.estimate.low, vm.estimate.high
        values |= {"classes": classes.as_dict(), "source": vm.estimate.source, "sampled": vm.estimate.nsampled}
        if low != classes or high != classes:
            values |= {"classes_low": low.as_dict(), "classes_high": high.as_dict()}
    return values
