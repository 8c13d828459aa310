"""The command line: parse, call the library, print.

This file is all that `nvmtool --help` loads: click alone takes longer than Python's own start (group.py).
"""

from __future__ import annotations

import os
import sys

from .. import __version__

# name: (the file here that holds NAME_command, what `nvmtool --help` says)
COMMANDS = {
    "format": ("image", "Create a device image and its mass store."),
    "info": ("image", "Show an image's sizes, its mass store and its regions."),
    "check": ("image", "Check every structure of an image, and repair it."),
    "region": ("region", "Create, list, delete and convert regions."),
    "import": ("data", "Copy a raw, sparse or qcow2 file into a region."),
    "export": ("data", "Copy a region or a snapshot into a sparse file."),
    "read": ("data", "Write bytes of a region to stdout."),
    "write": ("data", "Write bytes from stdin to a region."),
    "discard": ("data", "Make a hole in a region."),
    "snapshot": ("snapshot", "Create, list, delete, revert to and compare snapshots."),
    "purge": ("purge", "Move non-active blocks to the mass store."),
    "recall": ("purge", "Bring purged blocks back to NVM."),
    "map": ("map", "Draw where the data of a region are."),
    "send": ("stream", "Write a snapshot to a stream, whole or as what changed."),
    "receive": ("stream", "Make a region and its snapshot, or a further snapshot, of a stream."),
    "serve": ("serve", "Export regions and snapshots as block devices over NBD."),
    "mount": ("mount", "Mount regions and snapshots as files."),
    "swap": ("swap", "Create, run on, look at, check and delete swap files."),
    "defrag": ("defrag", "Move a swap file's pages together and give back what is empty."),
    "reservation": ("reservation", "Create, show, resize and check reservations of swap files."),
    "host": ("host", "Make a host, watch, balance, account for, restart and check it."),
    "pool": ("pool", "Create, list and delete pools of VMs."),
    "vm": ("vm", "Create, power, load, dump, run, suspend and resume VMs."),
    "sched": ("sched", "Share a host's memory out among its VMs."),
    "completion": ("completion", "Print the script that completes nvmtool's commands in a shell."),
    "manual": ("manual", "Write a man page for each command."),
}

_HELP = """\
Usage: nvmtool COMMAND [OPTIONS] ...

  Virtual machines on tiered memory: device images of byte-addressable NVM (regions, snapshots, purging
  to mass storage), and thin swap files (defragmentation beside a running VM, reserved storage).

Commands:
{commands}

Options:
  --debug     Show the traceback of an error.
  --version   Show the version and exit.
  -h, --help  Show this message and exit.

Example:
  nvmtool format disk.nvm --size 4G --mass disk.mass
"""


def help_text() -> str:
    """Return the main help; the click group prints this one too."""
    # Not map(): once the file map.py is loaded, that name is a module here.
    width = max(len(name) for name in COMMANDS)
    return _HELP.format(commands="\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()))


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with the code of its outcome (nvmtool.errors)."""
    args = sys.argv[1:] if args is None else args
    _fill_closed_streams()
    try:
        if args in (["-h"], ["--help"], ["--version"]):
            sys.stdout.write(f"nvmtool {__version__}\n" if args == ["--version"] else help_text())
            sys.stdout.flush()
            sys.exit(0)
        # numpy's start would make a pool of threads for linear algebra, which nothing here does.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from .group import group
    except (OSError, KeyboardInterrupt) as error:
        from .group import fail

        sys.exit(fail(error))
    group.main(args, prog_name="nvmtool")


def _fill_closed_streams() -> None:
    """Put something that fails in the place of closed standard streams: else the image would be opened as one of them."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            # Opened the wrong way round, so that reading closed input and writing closed output are errors; stderr may swallow.
            os.dup2(os.open(os.devnull, os.O_RDONLY if fd == 1 else os.O_WRONLY), fd)
            setattr(sys, name, os.fdopen(fd, mode, closefd=False))
