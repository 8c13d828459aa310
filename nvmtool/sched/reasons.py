"""Why each VM is to change, or not: every decision has a name, the one that decided first. docs/sched.md explains each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .facts import State

if TYPE_CHECKING:
    from .columns import Columns, Flags
    from .reclaim import Balance, Moves
    from .settings import Settings

# name: what it means, in one line; the order is that in which they are given where several hold.
REASONS = {
    "over-limit": "it holds more than its limit",
    "working-set": "pages in use are taken: the host is below hard and nobody has idle memory left, or the VM is over its limit",
    "driver-missing": "no balloon driver answers, so idle pages are swapped",
    "driver-stuck": "the balloon did not move for too long, so idle pages are swapped",
    "at-maximum": "the balloon is at its maximum, so idle pages are swapped",
    "below-hard": "the host is below hard: swapping is quicker than what the guest would have to do",
    "guest-swaps": "the host cannot swap, so the balloon takes anonymous pages and the guest swaps",
    "cheaper-inactive": "inactive anonymous pages: cheaper to swap on the host than to let a balloon make the guest swap",
    "idle-memory": "free and inactive file pages: the balloon takes them",
    "sharable": "equal pages are shared instead of being swapped",
    "largest-step": "more could be taken, but not in one interval",
    "guaranteed": "it has less than its reservation or its minimum",
    "needs-memory": "its working set does not fit into what it has, or it has hardly any free and file pages left",
    "surplus": "the host has more free than it should",
    "cool-down": "it changed the other way a short while ago",
    "at-guarantee": "it has no more than its reservation or its minimum",
    "classes-unknown": "nothing is known about its memory, so all of it counts as working set",
    "no-swap-room": "its idle pages are anonymous and there is no room to swap them",
    "no-idle-memory": "it has no idle memory beyond its headroom",
    "better-funded": "others pay less for their memory",
    "in-balance": "the host has what it should",
}


def reasons_of(c: Columns, balance: Balance, moves: Moves, settings: Settings) -> list[tuple[str, ...]]:
    """Return for each VM the names of the reasons that hold, at least one."""
    flags = {**_taking(c, balance, moves), **_giving(c, moves), **_holding(c, balance, moves, settings)}
    assert flags.keys() == REASONS.keys()
    names = list(REASONS)
    table = np.array([flags[name] for name in names])
    # Few combinations occur, however many VMs there are.
    columns, which = np.unique(table, axis=1, return_inverse=True)
    combinations = [tuple(name for name, holds in zip(names, column, strict=True) if holds) for column in columns.T]
    return [combinations[index] for index in which.reshape(-1).tolist()]


def _taking(c: Columns, balance: Balance, moves: Moves) -> dict[str, Flags]:
    means, taken = moves.means, moves.taken > 0
    swapped = moves.by_swap + moves.by_sharing
    in_lists = np.minimum(moves.by_balloon, means.balloon)
    anonymous = np.minimum(swapped, c.inactive_anon) > 0
    working_set = moves.taken > means.idle
    # Swapped although the balloon, had it been able to, would have been asked first.
    instead = swapped > np.minimum(swapped, c.inactive_anon)
    hurried = (balance.state >= State.HARD) & c.usable & anonymous & (in_lists < means.balloon)
    return {
        "over-limit": taken & (means.forced > 0),
        "working-set": working_set,
        "driver-missing": ~c.driver & (swapped > 0),
        "driver-stuck": c.stuck,
        "at-maximum": c.usable & ((instead & ~working_set) | (anonymous & (c.balloon_room == 0))),
        "below-hard": hurried,
        "guest-swaps": (moves.by_balloon > means.balloon) & (means.guest_swap > 0),
        "cheaper-inactive": c.usable & anonymous & ~hurried & (c.balloon_room > 0),
        "idle-memory": in_lists > 0,
        "sharable": moves.by_sharing > 0,
        "largest-step": taken & (moves.taken >= c.step_down),
    }


def _giving(c: Columns, moves: Moves) -> dict[str, Flags]:
    given = moves.given > 0
    guaranteed = given & (c.granted < c.guaranteed)
    needs = given & (moves.needs > 0) & ~guaranteed
    return {"guaranteed": guaranteed, "needs-memory": needs, "surplus": given & (moves.given > moves.needs)}


def _holding(c: Columns, balance: Balance, moves: Moves, settings: Settings) -> dict[str, Flags]:
    """Return why nothing changes: one reason each, in this order."""
    holds = (moves.taken == 0) & (moves.given == 0)
    short, spare = balance.wanted > 0, balance.state is State.HIGH and balance.surplus > 0
    idle = c.inactive_anon + moves.means.balloon + moves.means.beyond_balloon
    cooling_down = short & (balance.state is State.HIGH) & (c.since_grow < settings.cool_down_s)
    cooling_up = spare & (c.since_shrink < settings.cool_down_s) & (c.balloon > 0)
    tests = {
        "cool-down": cooling_down | cooling_up,
        "at-guarantee": short & (c.granted <= c.guaranteed),
        "classes-unknown": short & ~c.known,
        "no-idle-memory": short & (idle == 0),
        "no-swap-room": short & (moves.means.idle == 0),
        "better-funded": np.full_like(holds, short),
        "in-balance": np.full_like(holds, True),
    }
    flags = {}
    for name, test in tests.items():
        flags[name] = holds & test
        holds = holds & ~test
    return flags


def technique_of(balloon_change: int, swap_change: int, sharing: int) -> str:
    """Return the name of what changes: `balloon`, `swap`, `share`, joined by `+`, or `none`."""
    names = [name for name, change in (("balloon", balloon_change), ("swap", swap_change), ("share", sharing)) if change]
    return "+".join(names) or "none"
