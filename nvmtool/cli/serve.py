"""serve: regions and snapshots as block devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ..errors import UsageError
from ..live.nbd_serving import Place, require_loopback, serve
from ..live.serving import Offer
from ..stopping import stop_on_signals
from ..text import count_of
from .options import debug_option, example, image_argument, mass_option
from .params import PERCENT
from .ready import announce, report_line


@click.command(
    "serve",
    epilog=example(
        "nvmtool serve disk.nvm --socket /run/disk.sock --auto-purge 10%",
        "nvmtool serve disk.nvm --snapshot monday --port 10809",
    ),
)
@image_argument
@click.option("--region", metavar="NAME", help="Export this region and its snapshots; all of them unless said.")
@click.option("--snapshot", metavar="NAME", help="Export this snapshot alone.")
@click.option("--socket", "socket_path", type=click.Path(), metavar="PATH", help="Listen at this Unix socket; IMAGE.nbd unless said.")
@click.option("--port", type=click.IntRange(0, 65535), help="Listen at this TCP port of the loopback instead; 0 takes a free one.")
@click.option("--address", metavar="ADDRESS", help="Listen at this loopback address (127.0.0.1 unless said).")
@click.option(
    "--insecure-address", metavar="ADDRESS", help="Listen at an address that others reach: nothing is encrypted, anybody may write."
)
@click.option("--auto-purge", type=PERCENT, metavar="LOW%", help="Purge when less than this share of the data area is free.")
@click.option("--json", "as_json", is_flag=True, help="Print the ready line as a JSON object.")
@mass_option
@debug_option
def serve_command(
    image: str,
    region: str | None,
    snapshot: str | None,
    socket_path: str | None,
    port: int | None,
    address: str | None,
    insecure_address: str | None,
    auto_purge: float | None,
    as_json: bool,
    mass: str | None,
) -> None:
    """Export regions and snapshots as block devices over NBD.

    Exports are named REGION, read-write, and REGION@SNAPSHOT, read-only; the empty name is the only region (or the snapshot of --snapshot).
    One line that begins with "ready" tells when clients can connect; so does READY=1 to NOTIFY_SOCKET.

    snapshot, purge, recall and region work on the image meanwhile, and so does all that reads it. A write that finds the device full
    fails with ENOSPC, unless --auto-purge makes room for it.

    SIGTERM and Ctrl-C end it; everything is flushed then.
    """
    if port is None and (address or insecure_address):
        raise UsageError("an address needs a --port")
    if port is not None and socket_path is not None:
        raise UsageError("--socket and --port do not go together")
    if address is not None:
        require_loopback(address)
    offer = Offer(image, mass, region, snapshot, auto_purge)
    place = Place(image, socket_path, port, insecure_address or address or "127.0.0.1")

    def ready(facts: Mapping[str, Any]) -> None:
        announce(f"{image}: {count_of(len(facts['exports']), 'export')} at {facts['uri']}", facts, as_json=as_json)

    with stop_on_signals() as stop:
        serve(offer, place, stop=stop, ready=ready, report=report_line)
