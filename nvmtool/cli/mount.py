"""mount: regions and snapshots as files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from ..errors import UsageError
from ..live.mounting import mount
from ..live.serving import Offer
from ..stopping import stop_on_signals
from ..text import count_of
from .options import debug_option, example, image_argument, mass_option
from .params import PERCENT
from .ready import announce, report_line


@click.command(
    "mount",
    epilog=example(
        "nvmtool mount disk.nvm /mnt/disk",
        "nvmtool mount disk.nvm /mnt/disk --foreground --auto-purge 10%",
    ),
)
@image_argument
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option("--region", metavar="NAME", help="Show this region alone; all of them unless said.")
@click.option("--foreground", is_flag=True, help='Stay in the foreground; print one line that begins with "ready".')
@click.option("--auto-purge", type=PERCENT, metavar="LOW%", help="Purge when less than this share of the data area is free.")
@click.option("--allow-other", is_flag=True, help="Let other users in, as far as modes allow: root, that is.")
@click.option(
    "--log", "log_path", type=click.Path(dir_okay=False), metavar="FILE", help="In the background, log to this file; to syslog unless said."
)
@click.option("--json", "as_json", is_flag=True, help="Print the ready line as a JSON object.")
@mass_option
@debug_option
def mount_command(
    image: str,
    folder: str,
    region: str | None,
    foreground: bool,
    auto_purge: float | None,
    allow_other: bool,
    log_path: str | None,
    as_json: bool,
    mass: str | None,
) -> None:
    """Mount regions and snapshots as files.

    DIR/REGION/current is a region, to read and write; DIR/REGION/snapshots/NAME a snapshot, to read. A loop device on either is a disk.
    A snapshot is there as soon as it is taken.

    snapshot, purge, recall and region work on the image meanwhile, and so does all that reads it. A write that finds the device full
    fails with ENOSPC, unless --auto-purge makes room for it. What was written is durable after fsync.

    The command returns once DIR can be used. umount DIR ends the mount, and so does SIGTERM; everything is flushed then.
    """
    if foreground and log_path is not None:
        raise UsageError("--log goes with a mount in the background")
    offer = Offer(image, mass, region, None, auto_purge)

    def ready(facts: Mapping[str, Any]) -> None:
        announce(f"{image}: {count_of(len(facts['exports']), 'file')} in {folder}", facts, as_json=as_json)

    if foreground:
        with stop_on_signals() as stop:
            mount(offer, folder, allow_other=allow_other, stop=stop, ready=ready, report=report_line)
        return
    report = _log_to(log_path)
    with _background() as detach, stop_on_signals() as stop:

        def ready_behind(facts: Mapping[str, Any]) -> None:
            ready(facts)
            detach()

        mount(offer, folder, allow_other=allow_other, stop=stop, ready=ready_behind, report=report)


@contextmanager
def _background() -> Iterator[Callable[[], None]]:
    """Do what is inside in a child process: this one goes when the child detaches, or with its exit code when it ends before.

    The child has this process's standard streams until it detaches, so it says by itself what went wrong.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        detached = os.read(reading, 1)
        if detached:
            sys.exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.exit(status if status >= 0 else 128 - status)
    os.close(reading)
    os.setsid()

    def detach() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.close(null)
        os.write(writing, b"1")
        os.close(writing)

    yield detach


def _log_to(path: str | None) -> Callable[[str], None]:
    """Return what writes a line to a file, or to syslog."""
    if path is not None:
        log = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open as long as the mount is

        def write(line: str) -> None:
            log.write(" ".join(line.split()) + "\n")

        return write
    import syslog

    syslog.openlog("nvmtool", syslog.LOG_PID, syslog.LOG_DAEMON)
    return lambda line: syslog.syslog(syslog.LOG_WARNING, " ".join(line.split()))
