"""Changing an image from outside: through the process that serves it, or by opening it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .control import find_server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..region.sweep import Progress


def operate(
    image: str | Path,
    operation: str,
    arguments: Mapping[str, Any],
    *,
    mass: str | None = None,
    progress: Progress = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Run one of `nvmtool.region.operations` on an image and return the facts, alike whether it is being served or not.

    A dry run opens the image for reading, beside a server too. Raises what the operation does, and BusyError.
    """
    server = None if dry_run else find_server(image)
    if server is not None:
        return server.run(operation, arguments, progress)
    from ..region.device import Device
    from ..region.operations import run_operation

    with Device.open(image, writable=not dry_run, mass=mass) as device:
        return run_operation(device, operation, arguments, progress, dry_run=dry_run)
