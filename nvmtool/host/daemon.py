"""What a host does in the background, one round at a time: settle, balance, share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import NvmtoolError
from ..text import human
from . import layout as lay
from .balance import balance
from .host import Host
from .power import settle
from .sharing import share

if TYPE_CHECKING:
    from ..stopping import Stop

_NAP_SECONDS = 0.1


def run_host(path: Path, *, interval: float, stop: Stop, rounds: int | None = None) -> Iterator[str]:
    """Yield a line for each thing done, round after round, until `stop` asks or so many rounds are over.

    A round opens the host anew, and what fails in one is tried again in the next. Raises what opening a host raises.
    """
    done = 0
    while not stop.reason:
        with Host.open(path, writable=True) as host:
            yield from _round(host)
        done += 1
        if rounds is not None and done >= rounds:
            return
        deadline = time.monotonic() + interval
        while not stop.reason and time.monotonic() < deadline:
            time.sleep(min(_NAP_SECONDS, interval))


def _round(host: Host) -> Iterator[str]:
    for vm in host.all_vms():
        if vm.state == lay.ON and vm.granted_pages > vm.reservation_pages:
            yield from _tried(_settle_line, host, vm.name)
    yield from _tried(_balance_lines, host)
    yield from _tried(_share_line, host)


def _tried(work: Callable[..., Iterator[str]], host: Host, *args: str) -> Iterator[str]:
    try:
        yield from work(host, *args)
    except NvmtoolError as error:
        yield f"not now: {error}"


def _settle_line(host: Host, name: str) -> Iterator[str]:
    found = settle(host, name, most_steps=1)
    if found.steps:
        yield (
            f"{name}: settled to {human(found.granted_pages * lay.PAGE)} of memory and {human(found.promised_pages * lay.PAGE)} of swap"
            + (", complete" if found.complete else "")
        )
    if found.failure is not None:
        yield f"{name}: not settled: {found.failure}"


def _balance_lines(host: Host) -> Iterator[str]:
    found = balance(host)
    if found.lent_pages:
        yield f"borrowed {human(found.lent_pages * lay.PAGE)} from NVM: free memory was {found.state_before}"
    if found.returned_pages:
        yield f"returned {human(found.returned_pages * lay.PAGE)} to NVM: the device image was low"
    for name, pages in found.from_vms:
        yield f"{name}: swapped out {human(pages * lay.PAGE)}: free memory was {found.state_before}"
    if found.failure is not None:
        yield f"free memory is {found.state}: {found.failure}"


def _share_line(host: Host) -> Iterator[str]:
    found = share(host)
    if found.frames_saved:
        parts = ", ".join(f"{name} {human(frames * lay.PAGE)}" for name, frames in found.saved_by_vm)
        yield f"shared: {human(found.frames_saved * lay.PAGE)} saved ({parts})"
