"""completion: scripts for shells. What a shell asks while somebody types is answered by click, and by the names in an image."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, get_completion_class, split_arg_string

from ..errors import NvmtoolError
from .group import COMPLETION
from .options import debug_option, example

if TYPE_CHECKING:
    from ..region.device import Device

_FIRST_CALL = "$zsh_eval_context[-1] == loadautofunc"


@click.command(
    "completion",
    epilog=example(
        "nvmtool completion fish | source",
        "nvmtool completion bash | sudo tee /usr/share/bash-completion/completions/nvmtool",
        "nvmtool completion zsh | sudo tee /usr/local/share/zsh/site-functions/_nvmtool",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@debug_option
def completion_command(shell: str) -> None:
    """Print the script that completes nvmtool's commands in a shell.

    Commands, options, files, and the names of regions and snapshots are completed. make install puts the scripts where shells look.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    # Not `source()`, which runs the shell to ask for its version, where that may not even be installed.
    completes = kind(click.Command("nvmtool"), {}, "nvmtool", COMPLETION)
    text = completes.source_template % completes.source_vars()
    # Found in zsh's fpath, the file is the function's body each time; click's own test holds for the first call alone.
    sys.stdout.write(text.replace(_FIRST_CALL, "${funcstack[1]} == _nvmtool"))


def complete_regions(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a region of the image on the line."""
    return _items(ctx, incomplete, lambda device: [region.name for region in device.regions()])


def complete_snapshots(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a snapshot of the region on the line, or of the only one."""

    def names(device: Device) -> Iterable[str]:
        return (record.name for record in device.region(ctx.params.get("region")).snapshots if record.name)

    return _items(ctx, incomplete, names)


def _first_file() -> str | None:
    """Return the first file on the line: click forgets the arguments where an option has no value yet."""
    words = split_arg_string(os.environ.get("COMP_WORDS", ""))
    return next((word for word in words if os.path.isfile(word)), None)


def _items(ctx: click.Context, incomplete: str, names: Callable[[Device], Iterable[str]]) -> list[CompletionItem]:
    image = ctx.params.get("image") or _first_file()
    if image is None:
        return []
    from ..region.device import Device

    try:
        with Device.open(image) as device:
            return [CompletionItem(name) for name in names(device) if name.startswith(incomplete)]
    except (NvmtoolError, OSError):  # nobody wants an error while typing
        return []
