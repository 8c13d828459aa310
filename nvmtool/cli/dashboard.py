"""The live picture of `host status --watch`."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..text import human, printable

_STYLES = {"high": "green", "soft": "yellow", "hard": "red", "low": "bold red"}
_BAR_CELLS = 30


def dashboard(facts: dict[str, Any]) -> Group:
    """Return the picture of what `host_status` found."""
    total = facts["ram_bytes"] + facts["lent_bytes"]
    used = total - facts["free_bytes"]
    head = Table.grid(padding=(0, 2))
    head.add_row("memory", ProgressBar(total, used, width=_BAR_CELLS), f"{human(used)} of {human(total)} in use")
    head.add_row("free", Text(facts["state"], style=_STYLES[facts["state"]]), f"{human(facts['free_bytes'])}, {facts['free_share']:.1%}")
    head.add_row("lent", "", human(facts["lent_bytes"]))
    table = Table(box=None, pad_edge=False)
    for name in ("VM", "state", "", "private", "shared", "suspended", "swapped"):
        table.add_column(name, justify="left" if name in ("VM", "state", "") else "right")
    for vm in facts["vms"]:
        resident = vm["private_bytes"] + vm["shared_bytes"] + vm["suspended_bytes"]
        bar = ProgressBar(vm["memory_bytes"], min(resident, vm["memory_bytes"]), width=_BAR_CELLS)
        state = vm["state"] + (", at work" if vm["at_work"] else "")
        sizes = (human(vm[f"{each}_bytes"]) for each in ("private", "shared", "suspended", "swapped"))
        table.add_row(Text(printable(vm["name"])), state, bar, *sizes)
    return Group(Text(printable(facts["host"]), style="bold"), head, Text(""), table)
