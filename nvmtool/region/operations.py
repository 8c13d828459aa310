"""What commands change of an image, by name, with arguments and results that can be sent: a command runs them on an image that it
opens, or asks the process that serves the image to run the same (`nvmtool.live.control`)."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

from ..errors import ExistsError, UsageError
from ..media.record import check_name
from .snapshots import create_snapshot, delete_snapshot, revert_region
from .sweep import find_deleted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .device import Device
    from .sweep import Progress

    Facts = dict[str, Any]


def run_operation(device: Device, name: str, arguments: Mapping[str, Any], progress: Progress = None, *, dry_run: bool = False) -> Facts:
    """Run one of OPERATIONS on an open device and return the facts; raises UsageError for what is none, and the operation's own."""
    require_sound(name, arguments)
    return OPERATIONS[name](device, **arguments, progress=progress, dry_run=dry_run)


def require_sound(name: str, arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for what is no operation, and for arguments that it does not have or that are of another kind.

    A server gets them from another process, perhaps of another version.
    """
    operation = OPERATIONS.get(name)
    if operation is None:
        raise UsageError(f"no operation {name!r}")
    signature = inspect.signature(operation)
    try:
        signature.bind(None, **arguments, progress=None, dry_run=False)
    except TypeError as error:
        raise UsageError(f"{name}: {error}") from error
    for argument, value in arguments.items():
        kind, _, optional = str(signature.parameters[argument].annotation).partition(" | ")
        if not (value is None and optional) and not _KINDS[kind](value):
            raise UsageError(f"{name}: {argument} cannot be {value!r:.100}")


_KINDS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "Sequence[str]": lambda value: isinstance(value, list | tuple) and all(isinstance(each, str) for each in value),
    "int": lambda value: type(value) is int and 0 <= value < 1 << 63,
    "float": lambda value: type(value) in (int, float) and 0 <= value < 1e18,
}


def _snapshot_create(device: Device, *, region: str | None, names: Sequence[str], progress: Progress, dry_run: bool) -> Facts:
    source = device.region(region)
    # A name that cannot be, or is taken, is refused before the first snapshot is made.
    for position, name in enumerate(names):
        check_name(name)
        if name in names[:position]:
            raise UsageError(f"{name!r} is named twice")
        if source.snapshots.find(name) is not None:
            raise ExistsError(f"{device.path}: region {source.name!r} has a snapshot {name!r} already")
    for name in names:
        create_snapshot(source, name)
    return {"region": source.name, "created": list(names)}


def _snapshot_delete(device: Device, *, region: str | None, names: Sequence[str], progress: Progress, dry_run: bool) -> Facts:
    source = device.region(region)
    names = tuple(dict.fromkeys(names))
    for name in names:
        find_deleted(source, name)  # a name that is not there is refused before the first snapshot goes
    changes = [delete_snapshot(source, name, progress=progress, dry_run=dry_run) for name in names]
    deleted = [{"name": name, **dataclasses.asdict(change)} for name, change in zip(names, changes, strict=True)]
    return {"region": source.name, "dry_run": dry_run, "deleted": deleted}


def _snapshot_revert(device: Device, *, region: str | None, name: str, progress: Progress, dry_run: bool) -> Facts:
    target = device.region(region)
    change = revert_region(target, name, progress=progress, dry_run=dry_run)
    return {"region": target.name, "name": name, "dry_run": dry_run, **dataclasses.asdict(change)}


def _purge(
    device: Device,
    *,
    mode: str,
    region: str | None,
    snapshots: Sequence[str],
    max_bytes: int | None,
    max_seconds: float | None,
    free_target: float | None,
    progress: Progress,
    dry_run: bool,
) -> Facts:
    from .purge import purge

    result = purge(
        device,
        mode=mode,
        region=region,
        snapshots=snapshots,
        max_bytes=max_bytes,
        max_seconds=max_seconds,
        free_target=free_target,
        dry_run=dry_run,
        progress=progress,
    )
    return {"dry_run": dry_run, **dataclasses.asdict(result)}


def _recall(device: Device, *, region: str | None, snapshot: str | None, max_bytes: int | None, progress: Progress, dry_run: bool) -> Facts:
    from .recall import recall

    result = recall(device, region=region, snapshot=snapshot, max_bytes=max_bytes, dry_run=dry_run, progress=progress)
    return {"dry_run": dry_run, **dataclasses.asdict(result)}


def _region_create(device: Device, *, name: str, size_bytes: int, mapping: str, progress: Progress, dry_run: bool) -> Facts:
    region = device.create_region(name, size_bytes, mapping)
    return {"name": region.name, "size_bytes": region.size_bytes, "mapping": region.mapping}


def _region_delete(device: Device, *, name: str, progress: Progress, dry_run: bool) -> Facts:
    change = device.delete_region(name, progress=progress, dry_run=dry_run)
    return {"name": name, "dry_run": dry_run, **dataclasses.asdict(change)}


def _region_convert(device: Device, *, name: str, mapping: str, progress: Progress, dry_run: bool) -> Facts:
    from .convert import convert_region

    change = convert_region(device.region(name), mapping, progress=progress, dry_run=dry_run)
    return {"name": name, "mapping": mapping, "dry_run": dry_run, **dataclasses.asdict(change)}


OPERATIONS: dict[str, Callable[..., Facts]] = {
    "snapshot create": _snapshot_create,
    "snapshot delete": _snapshot_delete,
    "snapshot revert": _snapshot_revert,
    "purge": _purge,
    "recall": _recall,
    "region create": _region_create,
    "region delete": _region_delete,
    "region convert": _region_convert,
}
