"""Reading a guest's own report as classes: virtio-balloon statistics, or its /proc/meminfo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .facts import Classes, Estimate

if TYPE_CHECKING:
    from collections.abc import Mapping

KIB = 1024
# Statistics that a guest does not give are all ones, in 64 bits, or -1 where somebody made them signed.
_MOST = 1 << 62


def from_balloon_statistics(stats: Mapping[str, int]) -> Estimate | None:
    """Return the classes that virtio-balloon statistics (`guest-stats` of QEMU) show; None where they are missing or contradict each other.

    They do not tell active from inactive. What the guest's kernel calls available is what it can free without swapping: beyond
    `stat-free-memory` that is counted as inactive file, up to `stat-disk-caches`; the rest of the caches as active file; and all else as
    active anonymous, for nothing shows that it is idle.
    """
    total, free = _known(stats, "stat-total-memory"), _known(stats, "stat-free-memory")
    caches, available = _known(stats, "stat-disk-caches"), _known(stats, "stat-available-memory")
    if not total or free is None or free > total or (caches or 0) > total - free or (available or 0) > total:
        return None
    caches = caches or 0
    dropped = max(0, min(caches, (available or 0) - free))
    return Estimate.reported(Classes(active_anon=total - free - caches, active_file=caches - dropped, inactive_file=dropped, free=free))


def _known(stats: Mapping[str, int], name: str) -> int | None:
    value = stats.get(name)
    if value is None or isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST:
        return None
    return value


def from_meminfo(text: str) -> Estimate | None:
    """Return the classes that the text of a Linux guest's /proc/meminfo shows; None where lines are missing or contradict each other.

    Slab that can shrink counts as inactive file. What is on no list is unreclaimable.
    """
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdecimal():
            sizes[name] = int(words[0]) * KIB
    try:
        total = sizes["MemTotal"]
        lists = Classes(
            active_anon=sizes["Active(anon)"],
            active_file=sizes["Active(file)"],
            inactive_anon=sizes["Inactive(anon)"],
            inactive_file=sizes["Inactive(file)"] + sizes.get("SReclaimable", 0),
            free=sizes["MemFree"],
        )
    except KeyError:
        return None
    rest = total - lists.total_bytes
    if rest < 0 or not total:
        return None
    return Estimate.reported(Classes(rest, *(lists.as_dict()[name] for name in list(lists.as_dict())[1:])))
