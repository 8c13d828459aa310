"""vm create, power-on, settle, power-off, suspend, resume, load, dump, info, list, delete; `vm run` has a file of its own."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import click

from ..host import layout as lay
from ..host.create import create_vm, delete_vm
from ..host.host import Host
from ..host.power import STEP_PAGES, power_off, power_on, settle
from ..host.records import DEFAULT_SHARES, ROOT_POOL
from ..host.status import vm_info
from ..host.suspend import Moved, resume, suspend
from ..host.transfer import dump, load
from ..media.stream import STREAM
from ..text import count_of, human
from .options import example, host_option, output_options
from .output import Grid, Output
from .params import SIZE

name_argument = click.argument("name")


class _VmGroup(click.Group):
    """Loads `run` from its file when it is first asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names."""
        return sorted([*super().list_commands(ctx), "run"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the command's file where it is not this one."""
        if cmd_name != "run":
            return super().get_command(ctx, cmd_name)
        command = importlib.import_module(".vm_run", __package__).run_command
        assert isinstance(command, click.Command)
        return command


@click.group("vm", cls=_VmGroup, no_args_is_help=False, epilog=example("nvmtool vm create vm1 --memory 4G --host /srv/host"))
def vm_command() -> None:
    """Create, power, load, dump, run, suspend and resume VMs.

    A VM's memory stays in the host's machine memory from power-on to power-off, whatever processes work on it meanwhile. NVMTOOL_HOST
    stands in for --host.
    """


@vm_command.command("create", epilog=example("nvmtool vm create vm1 --memory 4G --reservation 1G --pool web --host /srv/host"))
@name_argument
@host_option
@click.option("--memory", type=SIZE, required=True, help="Size of its memory.")
@click.option("--reservation", type=SIZE, default="0", help="Memory that it has for sure.")
@click.option("--limit", type=SIZE, default="0", help="The most memory that it has; the rest is swap. 0 is no limit.")
@click.option("--shares", type=click.IntRange(min=1), default=DEFAULT_SHARES, help="Its weight for the rest.")
@click.option("--pool", default=ROOT_POOL, help="The pool that it is part of.")
@output_options
def create_command(name: str, host_path: str, memory: int, reservation: int, limit: int, shares: int, pool: str, out: Output) -> None:
    """Create a VM, which is off."""
    with Host.open(host_path, writable=True) as host:
        vm = create_vm(host, name, memory_bytes=memory, reservation_bytes=reservation, limit_bytes=limit, shares=shares, pool=pool)
        facts = vm_info(host, vm)
    out.done({"host": host_path, **facts}, f"{name}: created in pool {pool}, {human(memory)} of memory, {human(reservation)} reserved")


@vm_command.command("power-on", epilog=example("nvmtool vm power-on vm1 --host /srv/host"))
@name_argument
@host_option
@click.option("--thick", is_flag=True, help="Grant the reservation alone and write all of the swap first, which takes its time.")
@output_options
def power_on_command(name: str, host_path: str, thick: bool, out: Output) -> None:
    """Power a VM on, at once.

    It is granted as much memory as the host has free, and promised swap for the rest. `vm settle` and `host run` then let swap grow and
    granted memory shrink to the reservation. Refused (exit code 8) before it starts when memory or swap cannot be promised.
    """
    with Host.open(host_path, writable=True) as host, out.progress() as progress:
        vm = power_on(host, name, thick=thick, progress=progress)
        facts = vm_info(host, vm)
    swap = f"{human(facts['promised_swap_bytes'])} of swap promised"
    out.done({"host": host_path, **facts}, f"{name}: on, {human(facts['granted_bytes'])} of memory granted, {swap}")


@vm_command.command("settle", epilog=example("nvmtool vm settle vm1 --host /srv/host"))
@name_argument
@host_option
@click.option(
    "--step", type=SIZE, default=str(STEP_PAGES * lay.PAGE), show_default="64MiB", help="Move so much from memory to swap at a time."
)
@click.option("--steps", type=click.IntRange(min=1), help="Stop after so many steps.")
@output_options
def settle_command(name: str, host_path: str, step: int, steps: int | None, out: Output) -> None:
    """Let swap grow and granted memory shrink, step by step, to the reservation.

    After each step granted memory and promised swap cover the VM's memory. A step that finds no storage ends it with exit code 5 or 8;
    the VM goes on with what it has, and the same command tries again.
    """
    with Host.open(host_path, writable=True) as host, out.progress() as progress:
        found = settle(host, name, step_pages=max(step // lay.PAGE, 1), most_steps=steps, progress=progress)
    facts: dict[str, Any] = {
        "host": host_path,
        "name": name,
        "granted_bytes_before": found.granted_before * lay.PAGE,
        "granted_bytes": found.granted_pages * lay.PAGE,
        "promised_swap_bytes": found.promised_pages * lay.PAGE,
        "steps": found.steps,
        "complete": found.complete,
        "failure": str(found.failure) if found.failure is not None else None,
    }
    line = f"{name}: {human(facts['granted_bytes'])} of memory granted, {human(facts['promised_swap_bytes'])} of swap promised"
    out.done(facts, f"{line}, {count_of(found.steps, 'step')}" + ("" if found.complete else "; not complete"))
    if found.failure is not None:
        raise found.failure


@vm_command.command("power-off", epilog=example("nvmtool vm power-off vm1 --host /srv/host"))
@name_argument
@host_option
@output_options
def power_off_command(name: str, host_path: str, out: Output) -> None:
    """Power a VM off, running or suspended: what it has in memory and in swap is gone."""
    with Host.open(host_path, writable=True) as host:
        freed = power_off(host, name)
    out.done(
        {"host": host_path, "name": name, "freed_bytes": freed * lay.PAGE}, f"{name}: off, {human(freed * lay.PAGE)} of memory free again"
    )


@vm_command.command("suspend", epilog=example("nvmtool vm suspend vm1 --host /srv/host"))
@name_argument
@host_option
@output_options
def suspend_command(name: str, host_path: str, out: Output) -> None:
    """Suspend a running VM to memory: every page stays where it is.

    Only the map of its page frames is saved, with a flag for those that may be shared. Killed anywhere, the same command finishes.
    """
    with Host.open(host_path, writable=True) as host, out.progress() as progress:
        moved = suspend(host, name, progress=progress)
    _print_moved(out, host_path, name, "suspended", moved)


@vm_command.command("resume", epilog=example("nvmtool vm resume vm1 --host /srv/host"))
@name_argument
@host_option
@output_options
def resume_command(name: str, host_path: str, out: Output) -> None:
    """Resume a suspended VM: every page is where it was, and shared frames are counted anew.

    Refused (exit code 8) when its memory cannot be guaranteed now. Killed anywhere, the same command finishes.
    """
    with Host.open(host_path, writable=True) as host, out.progress() as progress:
        moved = resume(host, name, progress=progress)
    _print_moved(out, host_path, name, "resumed", moved)


def _print_moved(out: Output, host_path: str, name: str, verb: str, moved: Moved) -> None:
    swept = f", {count_of(moved.frames_swept, 'parked frame')} swept" if moved.frames_swept else ""
    line = f"{name}: {verb}, {count_of(moved.pages, 'page')} where they were, {moved.shared_pages:,} of them flagged as shared{swept}"
    out.done({"host": host_path, "name": name, **dataclasses.asdict(moved)}, line)


@vm_command.command("load", epilog=example("nvmtool vm load vm1 guest.raw --host /srv/host"))
@name_argument
@click.argument("rawdump", type=click.Path())
@host_option
@output_options
def load_command(name: str, rawdump: str, host_path: str, out: Output) -> None:
    """Let a running VM's memory be what a raw dump of a guest holds, page by page.

    RAWDUMP is as large as the VM's memory. Pages of zeros take no memory.
    """
    with Host.open(host_path, writable=True) as host, out.progress() as progress:
        found = load(host, name, rawdump, progress=progress)
    data, zeros = human(found.data_pages * lay.PAGE), human(found.zero_pages * lay.PAGE)
    facts = {"host": host_path, "name": name, "data_bytes": found.data_pages * lay.PAGE, "zero_bytes": found.zero_pages * lay.PAGE}
    out.done(facts, f"{name}: loaded {rawdump}, {data} of data, {zeros} of zeros")


@vm_command.command("dump", epilog=example("nvmtool vm dump vm1 guest.raw --host /srv/host"))
@name_argument
@click.argument("file", type=click.Path(allow_dash=True))
@host_option
@output_options
def dump_command(name: str, file: str, host_path: str, out: Output) -> None:
    """Write a VM's memory, running or suspended, to a raw file that is sparse where it is zeros.

    FILE may be - for stdout.
    """
    with Host.open(host_path, writable=True) as host, out.progress() as progress:
        written = dump(host, name, file, progress=progress)
    facts = {"host": host_path, "name": name, "file": file, "data_bytes": written}
    out.done(facts, f"{name}: dumped to {file}, {human(written)} of data", to_stderr=file == STREAM)


@vm_command.command("info", epilog=example("nvmtool vm info vm1 --json --host /srv/host"))
@name_argument
@host_option
@output_options
def info_command(name: str, host_path: str, out: Output) -> None:
    """Show a VM's settings, and where its memory is."""
    with Host.open(host_path) as host:
        facts = vm_info(host, host.vm(name))
    lines = [f"{key.removesuffix('_bytes').replace('_', ' '):14} {_shown(key, value)}" for key, value in facts.items()]
    out.result({"host": host_path, **facts}, *lines)


def _shown(key: str, value: object) -> str:
    if value is None:
        return "none"
    return human(value) if key.endswith("_bytes") and isinstance(value, int) else str(value)


@vm_command.command("list", epilog=example("nvmtool vm list --host /srv/host"))
@host_option
@output_options
def list_command(host_path: str, out: Output) -> None:
    """List the VMs."""
    with Host.open(host_path) as host:
        vms = [vm_info(host, vm) for vm in host.all_vms()]
    out.result({"host": host_path, "vms": vms}, vm_grid(vms))


def vm_grid(vms: list[dict[str, Any]]) -> Grid:
    """Return the table of VMs that `vm list` and `host status` show."""
    sizes = ("memory", "granted", "private", "shared", "suspended", "swapped")
    rows = [
        (
            each["name"],
            each["pool"],
            each["state"] + (", at work" if each["at_work"] else ""),
            *(human(each[f"{size}_bytes"]) for size in sizes),
        )
        for each in vms
    ]
    return Grid(("VM", "pool", "state", *sizes), rows, nleft=3)


@vm_command.command("delete", epilog=example("nvmtool vm delete vm1 --host /srv/host"))
@name_argument
@host_option
@output_options
def delete_command(name: str, host_path: str, out: Output) -> None:
    """Delete a VM that is off."""
    with Host.open(host_path, writable=True) as host:
        delete_vm(host, name)
    out.done({"host": host_path, "name": name}, f"{host_path}: deleted VM {name}")
