"""pool create, list, delete."""

from __future__ import annotations

import click

from ..host.create import create_pool, delete_pool
from ..host.host import Host
from ..host.records import DEFAULT_SHARES, ROOT_POOL
from ..host.status import pool_info
from ..text import human
from .options import example, host_option, output_options
from .output import Grid, Output
from .params import SIZE

name_argument = click.argument("name")


@click.group("pool", no_args_is_help=False, epilog=example("nvmtool pool create web --reservation 8G --host /srv/host"))
def pool_command() -> None:
    """Create, list and delete pools of VMs.

    A pool divides the host's memory: what it reserves its VMs have for sure, and its limit bounds what they are guaranteed together. Each
    has a reservation file for its VMs' swap, in DIR/pools/NAME, which may be on a file system of its own. NVMTOOL_HOST stands in for
    --host.
    """


@pool_command.command("create", epilog=example("nvmtool pool create web --parent root --reservation 8G --limit 16G --host /srv/host"))
@name_argument
@host_option
@click.option("--parent", default=ROOT_POOL, help="The pool that it is part of.")
@click.option("--reservation", type=SIZE, default="0", help="Memory that its VMs have for sure.")
@click.option("--limit", type=SIZE, default="0", help="The most that its VMs are guaranteed together; 0 is no limit.")
@click.option("--shares", type=click.IntRange(min=1), default=DEFAULT_SHARES, help="Its weight for the rest.")
@click.option("--swap", type=SIZE, default="1MiB", help="Storage set aside for its VMs' swap from the start; it grows when they need more.")
@output_options
def create_command(name: str, host_path: str, parent: str, reservation: int, limit: int, shares: int, swap: int, out: Output) -> None:
    """Create a pool.

    Refused (exit code 8) when its parent cannot promise the reservation.
    """
    with Host.open(host_path, writable=True) as host:
        pool = create_pool(host, name, parent=parent, reservation_bytes=reservation, limit_bytes=limit, shares=shares, swap_bytes=swap)
        facts = pool_info(host, pool)
    out.done({"host": host_path, **facts}, f"{host_path}: created pool {name} in {parent}, {human(reservation)} reserved")


@pool_command.command("list", epilog=example("nvmtool pool list --json --host /srv/host"))
@host_option
@output_options
def list_command(host_path: str, out: Output) -> None:
    """List the pools, what they guarantee, and their storage for swap.

    swap needed is the most that the pool's VMs can ever have swapped together.
    """
    with Host.open(host_path) as host:
        pools = [pool_info(host, pool) for pool in host.all_pools()]
    rows = [
        (
            each["name"],
            each["parent"] or "",
            human(each["reservation_bytes"]),
            human(each["limit_bytes"]) if each["limit_bytes"] else "none",
            human(each["guaranteed_bytes"]),
            human(each["swap_bytes"]),
            human(each["swap_promised_bytes"]),
            human(each["swap_needed_bytes"]),
            ", ".join(each["vms"]),
        )
        for each in pools
    ]
    headers = ("pool", "parent", "reserved", "limit", "guaranteed", "swap", "promised", "swap needed", "VMs")
    out.result({"host": host_path, "pools": pools}, Grid(headers, rows, nleft=2))


@pool_command.command("delete", epilog=example("nvmtool pool delete web --host /srv/host"))
@name_argument
@host_option
@output_options
def delete_command(name: str, host_path: str, out: Output) -> None:
    """Delete a pool that has neither pools nor VMs."""
    with Host.open(host_path, writable=True) as host:
        delete_pool(host, name)
    out.done({"host": host_path, "name": name}, f"{host_path}: deleted pool {name}")
