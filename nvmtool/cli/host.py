"""host init, status, restart, account, balance, share, lend, return, run, check."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..host import layout as lay
from ..host.accounting import Account, account
from ..host.balance import CHUNK_PAGES, balance
from ..host.check import check_host
from ..host.create import init_host
from ..host.daemon import run_host
from ..host.host import Host
from ..host.lending import give_back, lend
from ..host.sharing import share
from ..host.status import host_status
from ..host.suspend import restart
from ..stopping import stop_on_signals
from ..text import count_of, human
from .checks import report_check
from .options import example, host_option, output_options, repair_option
from .output import Output, make_console
from .params import SECONDS, SIZE
from .vm import vm_grid

if TYPE_CHECKING:
    from rich.tree import Tree

_KIND_NAMES = {"group": "group", "client": "client node"}


@click.group("host", no_args_is_help=False, epilog=example("nvmtool host init /srv/host --ram 64G --nvm disk.nvm --tmpfs /dev/shm"))
def host_command() -> None:
    """Make a host, watch, balance, account for, restart and check it.

    A host is a folder with the machine memory, the maps of its VMs, and their swap. NVMTOOL_HOST stands in for --host.
    """


@host_command.command("init", epilog=example("nvmtool host init /srv/host --ram 64G --nvm disk.nvm --tmpfs /dev/shm"))
@click.argument("folder", type=click.Path())
@click.option("--ram", type=SIZE, required=True, help="Size of machine memory.")
@click.option("--nvm", type=click.Path(), metavar="IMAGE", help="A device image that lends its free pages when memory is short.")
@click.option(
    "--tmpfs", type=click.Path(), metavar="FOLDER", help="Put machine memory and volatile state here, best on tmpfs; links lead there."
)
@click.option("--swap", type=SIZE, default="1MiB", help="Storage set aside for swap from the start; it grows when VMs need more.")
@click.option("--sparse", is_flag=True, help="Do not allocate machine memory; on a full file system processes may then be killed (SIGBUS).")
@output_options
def init_command(folder: str, ram: int, nvm: str | None, tmpfs: str | None, swap: int, sparse: bool, out: Output) -> None:
    """Make a host with machine memory and a pool named root."""
    init_host(folder, ram_bytes=ram, nvm=nvm, memory=tmpfs, swap_bytes=swap, sparse=sparse)
    with Host.open(folder) as host:
        facts = host_status(host)
    lends = f", {nvm} lends when it is short" if nvm else ""
    out.done(facts, f"{folder}: a host with {human(ram)} of memory{lends}")


@host_command.command(
    "status", epilog=example("nvmtool host status --watch --host /srv/host", "nvmtool host status --json --host /srv/host")
)
@host_option
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C; JSON lines where stdout is no terminal.")
@click.option("--interval", type=SECONDS, default="1", help="Seconds between two looks.")
@output_options
def status_command(host_path: str, watch: bool, interval: float, out: Output) -> None:
    """Show how much memory is free, and what the VMs have.

    A glance that disturbs nobody.
    """
    if watch:
        _watch(host_path, interval, out)
        return
    with Host.open(host_path) as host:
        facts = host_status(host)
    out.result(facts, *_status_lines(facts), vm_grid(facts["vms"]) if facts["vms"] else "no VM yet; nvmtool vm create NAME --memory SIZE")


def _status_lines(facts: dict[str, Any]) -> list[str]:
    lent = f" and {human(facts['lent_bytes'])} lent by NVM" if facts["lent_bytes"] else ""
    return [
        f"host        {facts['host']}, uuid {facts['uuid']}, life {facts['life']}",
        f"memory      {human(facts['ram_bytes'])}{lent}",
        f"free        {human(facts['free_bytes'])}, {facts['free_share']:.1%}: {facts['state']}",
        f"guaranteed  {human(facts['guaranteed_bytes'])}",
        "",
    ]


def _watch(host_path: str, interval: float, out: Output) -> None:
    console = make_console()
    with stop_on_signals() as stop:
        if out.as_json or not console.is_terminal:
            while not stop.reason:
                with Host.open(host_path) as host:
                    out_line = host_status(host)
                dataclasses.replace(out, as_json=True).result(out_line)
                sys.stdout.flush()
                time.sleep(interval)
            return
        from rich.live import Live

        from .dashboard import dashboard

        with Live(console=console, screen=True, auto_refresh=False) as live:
            while not stop.reason:
                with Host.open(host_path) as host:
                    live.update(dashboard(host_status(host)), refresh=True)
                time.sleep(interval)


@host_command.command("account", epilog=example("nvmtool host account --host /srv/host", "nvmtool host account --json --host /srv/host"))
@host_option
@output_options
def account_command(host_path: str, out: Output) -> None:
    """Prove that every page of memory is counted once.

    Running VMs pause while it counts. Of RAM: private + shared (once) + suspended + parked + free; with what NVM lends, that is the
    capacity, and the difference is 0.
    """
    with Host.open(host_path) as host:
        found = account(host)
    facts = {"host": host_path, **dataclasses.asdict(found)}
    if out.as_json:
        out.result(facts)
        return
    make_console().print(_tree(found))
    terms = ("private", "shared", "suspended", "parked", "lent", "free")
    numbers = {term: getattr(found, f"{term}_pages") for term in terms}
    out.result(facts, " + ".join(f"{count:,} {term}" for term, count in numbers.items()) + f" = {sum(numbers.values()):,} pages")
    saved = f"; sharing saves {count_of(found.saved_by_sharing_pages, 'page')}" if found.saved_by_sharing_pages else ""
    out.result(facts, f"capacity {found.capacity_pages:,} pages, difference {found.difference_pages:,}{saved}")


def _tree(found: Account) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    branches: dict[str, Tree] = {}
    root: Tree | None = None
    for node in found.nodes:
        kind = _KIND_NAMES.get(node.kind, node.kind)
        label = node.name if kind in (node.name, "host") else f"{kind} {node.name}"
        text = Text(
            f"{label}: {count_of(node.consumed_pages, 'page')}" + (f", {node.reserved_pages:,} reserved" if node.reserved_pages else "")
        )
        if root is None:
            root = branches[node.name] = Tree(text)
        else:
            branches[node.name] = branches[node.parent].add(text)
    assert root is not None
    return root


@host_command.command("restart", epilog=example("nvmtool host restart --host /srv/host"))
@host_option
@click.option(
    "--force", is_flag=True, help="Power off VMs that are not suspended; needed too when the machine was restarted and memory is gone."
)
@output_options
def restart_command(host_path: str, force: bool, out: Output) -> None:
    """Restart the hypervisor: throw all volatile state away, keep memory.

    VMs must be off or suspended (else exit code 8), and can be resumed afterwards.
    """
    with Host.open(host_path, writable=True, lost=True) as host:
        count = restart(host, force=force)
        facts = {"host": host_path, "life": host.life, "vms_powered_off": count}
    off = f", {count_of(count, 'VM')} powered off" if count else ""
    out.done(facts, f"{host_path}: restarted, life {facts['life']}{off}")


@host_command.command("balance", epilog=example("nvmtool host balance --host /srv/host"))
@host_option
@click.option("--chunk", type=SIZE, default=str(CHUNK_PAGES * lay.PAGE), show_default="64MiB", help="Borrow and return so much at a time.")
@output_options
def balance_command(host_path: str, chunk: int, out: Output) -> None:
    """Bring free memory back to the high mark: borrow from NVM, else swap; return to NVM what the device image needs itself."""
    with Host.open(host_path, writable=True) as host, out.progress() as progress:
        found = balance(host, chunk_pages=max(chunk // lay.PAGE, 1), progress=progress)
    facts = {
        "host": host_path,
        "state_before": found.state_before,
        "state": found.state,
        "lent_bytes": found.lent_pages * lay.PAGE,
        "returned_bytes": found.returned_pages * lay.PAGE,
        "swapped_bytes": found.swapped_pages * lay.PAGE,
        "from_vms": [{"name": name, "bytes": pages * lay.PAGE} for name, pages in found.from_vms],
        "failure": str(found.failure) if found.failure is not None else None,
    }
    line = f"{host_path}: free memory was {found.state_before}, is {found.state}"
    done = {"lent": found.lent_pages, "returned": found.returned_pages, "swapped": found.swapped_pages}
    parts = [f"{human(pages * lay.PAGE)} {verb}" for verb, pages in done.items() if pages]
    out.done(facts, ", ".join([line, *parts]))
    if found.failure is not None:
        raise found.failure


@host_command.command("share", epilog=example("nvmtool host share --host /srv/host"))
@host_option
@output_options
def share_command(host_path: str, out: Output) -> None:
    """Find pages of equal content and share them, pages of zeros included."""
    with Host.open(host_path, writable=True) as host, out.progress() as progress:
        found = share(host, progress=progress)
    facts = {
        "host": host_path,
        "pages_scanned": found.pages_scanned,
        "frames_saved": found.frames_saved,
        "bytes_saved": found.frames_saved * lay.PAGE,
        "zero_pages": found.zero_pages,
        "vms": [{"name": name, "frames": frames, "bytes": frames * lay.PAGE} for name, frames in found.saved_by_vm],
    }
    lines = [f"  {name}: {count_of(frames, 'frame')} saved" for name, frames in found.saved_by_vm]
    saved = f"{count_of(found.frames_saved, 'frame')} saved ({human(found.frames_saved * lay.PAGE)})"
    out.done(facts, f"{host_path}: {count_of(found.pages_scanned, 'page')} looked at, {saved}", *lines)


@host_command.command("lend", epilog=example("nvmtool host lend 256M --host /srv/host"))
@click.argument("size", type=SIZE)
@host_option
@output_options
def lend_command(size: int, host_path: str, out: Output) -> None:
    """Add free pages of the device image to the host's memory."""
    with Host.open(host_path, writable=True) as host:
        pages = lend(host, -(-size // lay.PAGE))
    out.done({"host": host_path, "lent_bytes": pages * lay.PAGE}, f"{host_path}: {human(pages * lay.PAGE)} lent by NVM")


@host_command.command("return", epilog=example("nvmtool host return 256M --host /srv/host"))
@click.argument("size", type=SIZE)
@host_option
@output_options
def return_command(size: int, host_path: str, out: Output) -> None:
    """Return lent pages to the device image, whoever uses them.

    Free ones go first; contents of the others move into RAM, or are swapped out where it has no room.
    """
    with Host.open(host_path, writable=True) as host, out.progress() as progress:
        found = give_back(host, -(-size // lay.PAGE), progress=progress)
    facts = {
        "host": host_path,
        "returned_bytes": found.pages * lay.PAGE,
        "free_bytes": found.free_pages * lay.PAGE,
        "moved_bytes": found.moved_pages * lay.PAGE,
        "swapped_bytes": found.swapped_pages * lay.PAGE,
    }
    moved = f"{human(found.moved_pages * lay.PAGE)} moved into RAM, {human(found.swapped_pages * lay.PAGE)} swapped out"
    out.done(facts, f"{host_path}: {human(found.pages * lay.PAGE)} returned to NVM; {moved}")


@host_command.command("run", epilog=example("nvmtool host run --interval 10 --host /srv/host"))
@host_option
@click.option("--interval", type=SECONDS, default="10", help="Seconds between two rounds.")
@click.option("--rounds", type=click.IntRange(min=1), help="End after so many rounds.")
@output_options
def run_command(host_path: str, interval: float, rounds: int | None, out: Output) -> None:
    """Settle, balance and share, round after round, in the foreground.

    Prints a line for each thing it did (with --json a JSON object a line), and ends in order on SIGTERM or Ctrl-C.
    """
    with stop_on_signals() as stop:
        for line in run_host(Path(host_path), interval=interval, stop=stop, rounds=rounds):
            out.done({"host": host_path, "time": round(time.time(), 3), "what": line}, line)
            sys.stdout.flush()


@host_command.command("check", epilog=example("nvmtool host check --host /srv/host", "nvmtool host check --repair --host /srv/host"))
@host_option
@repair_option
@output_options
@click.pass_context
def check_command(ctx: click.Context, host_path: str, repair: bool, out: Output) -> None:
    """Check every structure of a host, its VMs' swap files and reservations included.

    Running VMs pause meanwhile. --repair makes the frame table anew from the VMs' maps, and brings in order swap
    storage that a killed process was borrowing. Exits with 1 when it leaves problems.
    """
    with Host.open(host_path, writable=repair) as host:
        result = check_host(host, repair=repair)
    report_check(ctx, out, {"host": host_path}, result, repair=repair)
