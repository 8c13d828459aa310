"""Arguments and options that several commands share, so that they are spelled and explained alike."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from .output import Output
from .params import OFFSET

CURRENT = "@current"

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _later(name: str) -> Callable[[click.Context, click.Parameter, str], Any]:
    """Return what completes a name; it is loaded when somebody presses TAB."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        from . import completion

        return getattr(completion, name)(ctx, param, incomplete)

    return complete


complete_snapshots = _later("complete_snapshots")

image_argument = click.argument("image", type=click.Path())
region_option = click.option(
    "--region",
    metavar="NAME",
    shell_complete=_later("complete_regions"),
    help="Name of the region; may be left out when there is only one.",
)
snapshot_option = click.option(
    "--snapshot", metavar="NAME", shell_complete=complete_snapshots, help="Use this snapshot, not the running point."
)
offset_option = click.option("--offset", type=OFFSET, required=True, help="Where in the region, in bytes.")
mass_option = click.option("--mass", type=click.Path(), metavar="FILE", help="The mass store is here now, not where the image says.")
reservation_option = click.option(
    "--reservation", type=click.Path(), metavar="RSV", help="The reservation is here now, not where the swap file says."
)
host_option = click.option(
    "--host", "host_path", type=click.Path(), envvar="NVMTOOL_HOST", metavar="DIR", required=True, help="The host's folder."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
repair_option = click.option("--repair", is_flag=True, help="Mend leaks and counts that are wrong; refuse what cannot be proved.")
svg_option = click.option("--svg", type=click.Path(allow_dash=True), metavar="FILE", help="Write the picture as SVG; - is stdout.")
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json, --quiet, --progress and --debug; the command gets an Output as `out` instead."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object, sizes in bytes.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress, and no line about what was done.")
    @click.option(
        "--progress",
        type=click.Choice(["auto", "json", "none"]),
        default="auto",
        help="How to show progress on stderr.",
    )
    @debug_option
    @functools.wraps(function)
    def command(*args: Any, as_json: bool, quiet: bool, progress: str, **kwargs: Any) -> Any:
        return function(*args, out=Output(as_json, quiet, progress), **kwargs)

    return command


def example(*lines: str) -> str:
    """Return the epilog of a help text; click keeps its line breaks."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def state_name(name: str | None) -> str | None:
    """Return the name as the library wants it: None for the running point."""
    return None if name == CURRENT else name
