"""How much memory to take from whom, whom to give it, and by which means: ballooning or swapping (T5). Pages throughout.

Taking goes in tiers, and no tier is touched while an earlier one has something left anywhere:

1. idle memory by the means that is right for it: free and inactive file pages by the balloon, inactive anonymous pages by swapping on the
   host;
2. idle memory by the means that is left: what a balloon that is missing, stuck or full should have had, by swapping; inactive anonymous
   pages by the balloon where the host cannot swap and the operator lets guests do it;
3. the working sets, down to what is guaranteed, only in states hard and low, and only as much as it takes to leave them.

Within a tier it goes by shares with the idle tax (entitlement.py).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .columns import PAGE_BYTES
from .entitlement import entitlements, fill
from .facts import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .columns import Columns, Flags, Pages
    from .facts import HostFacts
    from .settings import Settings


def host_state(free_bytes: int, total_bytes: int, before: State | None, settings: Settings) -> State:
    """Return the host's state: it falls when free memory is below a threshold, and gets out only at the next better state's threshold."""
    share = free_bytes / total_bytes
    fallen = max((each for each in State if each and share < settings.threshold(each)), default=State.HIGH)
    state = max(fallen, before or State.HIGH)
    while state > fallen and share >= settings.threshold(State(state - 1)):
        state = State(state - 1)
    return state


@dataclass(frozen=True, slots=True)
class Balance:
    """What the host has and wants: `free` is what will be free when balloons have arrived, `goal` what should be; pages."""

    state: State
    total: int
    free: int
    goal: int
    deadband: int

    @property
    def wanted(self) -> int:
        """Return how much to take for the host's sake."""
        short = self.goal - self.free
        if self.state > State.HIGH:
            return max(short, 0)
        return short if short > self.deadband else 0

    @property
    def surplus(self) -> int:
        """Return how much is free beyond the goal, as far as it is worth giving."""
        over = self.free - self.goal
        return over if over > self.deadband else 0

    def threshold(self, state: State, settings: Settings) -> int:
        """Return the free pages at which a state begins."""
        return math.ceil(self.total * settings.threshold(state))


def balance_of(host: HostFacts, pending: int, settings: Settings) -> Balance:
    """Return a host's balance; `pending` pages are on their way to it (negative: from it).

    Without an operator's target nothing is taken in state high; once lower, the goal is the threshold of high.
    """
    total = host.total_bytes // PAGE_BYTES
    free_target = host.free_target if settings.free_target is None else settings.free_target
    goal_share = max(settings.high, free_target or 0.0)
    return Balance(
        state=host_state(host.free_bytes, host.total_bytes, host.state_before, settings),
        total=total,
        free=host.free_bytes // PAGE_BYTES + pending,
        goal=math.ceil(total * goal_share),
        # With thresholds alone, state high reaches down to the next threshold: that gap is the deadband.
        deadband=math.ceil(total * (settings.deadband if goal_share > settings.high else settings.high - settings.soft)),
    )


@dataclass(frozen=True, slots=True)
class Means:
    """By which means how much could be had from each VM; `tiers` are cumulative, and never more than `may` be taken at all.

    `balloon`: idle pages for the balloon, headroom left. `beyond_balloon`: what it should have had and cannot. `guest_swap`: inactive
    anonymous pages for the balloon. `squeeze`: all that a balloon may come to. `idle`: what may be had without touching the working set.
    `forced`: what a VM holds beyond its limit.
    """

    balloon: Pages
    beyond_balloon: Pages
    guest_swap: Pages
    squeeze: Pages
    swap_room: Pages
    may: Pages
    idle: Pages
    forced: Pages
    tiers: tuple[Pages, Pages, Pages]


def means_of(c: Columns, settings: Settings, *, held_back: Flags) -> Means:
    """Return what could be had; nothing in tiers 1 and 2 from VMs that are `held_back`."""
    room = np.where(c.usable, c.balloon_room, 0)
    lists = c.free + c.inactive_file
    balloon = np.minimum(np.maximum(lists - c.headroom, 0), room)
    swapped = np.minimum(c.inactive_anon, c.swap_room)
    beyond_balloon = np.maximum(lists - c.headroom - balloon, 0)
    guest_swap = np.minimum(c.inactive_anon - swapped, room - balloon) * settings.guest_swaps
    second = balloon + guest_swap + np.minimum(swapped + beyond_balloon, c.swap_room)
    # A guest that reports nothing may have much that is free: its balloon finds that, and swapping cannot.
    unseen = ~c.known | settings.guest_swaps
    squeeze = np.minimum(np.where(unseen, c.held, lists), room)
    third = np.minimum(squeeze + np.minimum(c.held, c.swap_room), c.held)
    may = np.maximum(np.minimum(np.minimum(c.held, c.granted - c.guaranteed), c.step_down), 0)
    forced = np.clip(c.held - c.most, 0, may)
    none = np.zeros_like(may)
    first, second = (np.where(held_back, none, np.minimum(tier, may)) for tier in (balloon + swapped, second))
    idle = second
    first = np.maximum(first, np.minimum(forced, third))
    second = np.maximum(second, first)
    third = np.maximum(np.minimum(third, may), second)
    return Means(balloon, beyond_balloon, guest_swap, squeeze, c.swap_room, may, idle, np.minimum(forced, first), (first, second, third))


def take(c: Columns, base: Pages, tiers: Sequence[Pages], wanted: int, idle_cost: float) -> Pages:
    """Return what to take from each VM, at least `base`, so that it adds up to `wanted`, or to all that the tiers have."""
    taken = base
    for tier in tiers:
        more = np.maximum(tier, taken)
        if int(taken.sum()) >= wanted:
            break
        if int(more.sum()) <= wanted:
            taken = more
        else:
            taken = c.held - fill(c.shares, c.active, idle_cost, c.held - more, c.held - taken, int(c.held.sum()) - wanted)
    return taken


def needs_of(c: Columns, settings: Settings) -> Pages:
    """Return what each VM lacks for its working set, for headroom, or for what it was guaranteed, as far as it can be given back.

    Half of the headroom may go before anything is done, so that a report's noise moves nothing. Free memory for the guest comes from the
    balloon alone: idle pages that the host would bring back give it none.
    """
    half = c.headroom // 2
    crowded = c.known & (c.working_set + half > c.granted)
    dry = c.known & (c.lists < half)
    deflatable = np.where(c.usable, c.balloon, 0)
    working_set = np.where(crowded, np.minimum(c.working_set + c.headroom, c.most), 0) - c.granted
    guaranteed = np.minimum(c.guaranteed, c.most) - c.granted
    lacking = np.minimum(np.maximum(working_set, guaranteed), deflatable + c.swapped)
    headroom = np.minimum(np.where(dry, c.headroom - c.lists, 0), deflatable)
    bounds = np.minimum(np.maximum(c.most - c.granted, 0), c.step_up)
    return np.clip(np.maximum(lacking, headroom), 0, bounds)


@dataclass(frozen=True, slots=True)
class Moves:
    """What is to change for each VM, in pages: taken by balloon, by swapping, by sharing; given back by balloon, by swapping in.

    `taken` and `given` are the sums; no VM has both. `short` is what the host lacks and nobody can give.
    """

    taken: Pages
    by_balloon: Pages
    by_swap: Pages
    by_sharing: Pages
    given: Pages
    deflated: Pages
    swapped_in: Pages
    entitled: Pages
    needs: Pages
    means: Means
    short: int


def decide(c: Columns, host: HostFacts, balance: Balance, settings: Settings) -> Moves:
    """Return what is to change, the pure heart of the policy."""
    cooling = (c.since_grow < settings.cool_down_s) & (balance.state is State.HIGH)
    needs = needs_of(c, settings) if balance.state < State.HARD else np.zeros_like(c.held)
    means = means_of(c, settings, held_back=cooling | (needs > 0))
    taken = _take_all(c, means, balance, needs, settings)
    split = _split(c, means, taken, balance.state)
    if host.swap_room_bytes is not None and (swapped := int(split[1].sum())) > (room := host.swap_room_bytes // PAGE_BYTES):
        # All VMs swap to one place: each gets its part of the room, and the rest is looked for elsewhere.
        c = dataclasses.replace(c, swap_room=np.minimum(c.swap_room, split[1] * room // swapped))
        means = means_of(c, settings, held_back=cooling | (needs > 0))
        taken = _take_all(c, means, balance, needs, settings)
        split = _split(c, means, taken, balance.state)
    shared = np.minimum(split[1], c.sharable)
    given = _give(c, balance, taken, needs, settings)
    deflated, swapped_in = _split_given(c, given)
    steps = (np.minimum(c.guaranteed, c.most), np.clip(c.active + c.headroom, c.guaranteed, c.most), c.most)
    return Moves(
        taken=taken,
        by_balloon=split[0],
        by_swap=split[1] - shared,
        by_sharing=shared,
        given=given,
        deflated=deflated,
        swapped_in=swapped_in,
        entitled=entitlements(c.shares, c.active, settings.idle_cost, steps, int(c.held.sum()) + balance.free - balance.goal),
        needs=needs,
        means=means,
        short=max(0, balance.wanted - int(taken.sum())),
    )


def _take_all(c: Columns, means: Means, balance: Balance, needs: Pages, settings: Settings) -> Pages:
    """Return what to take for the host, and then from idle memory for VMs that lack their working set."""
    idle = means.tiers[:2]
    taken = take(c, means.forced, idle, balance.wanted, settings.idle_cost)
    if balance.state >= State.HARD:
        out = balance.threshold(State.SOFT, settings) - balance.free
        taken = take(c, taken, means.tiers[2:], min(balance.wanted, out), settings.idle_cost)
    lacking = int(needs.sum()) - max(0, balance.free - balance.goal)
    if lacking > 0:
        taken = take(c, taken, idle[:1], balance.wanted + lacking, settings.idle_cost)
    return taken


def _split(c: Columns, means: Means, taken: Pages, state: State) -> tuple[Pages, Pages]:
    """Return what is taken by balloon and by swapping; they add up to `taken`.

    Free pages go to the balloon in every state: the guest has nothing to do for them. Below hard, inactive anonymous pages are swapped
    before the guest is asked to drop its file pages, for that takes it longer.
    """
    quick = np.minimum(means.balloon, c.free) if state >= State.HARD else means.balloon
    balloon = np.minimum(taken, quick)
    swap = np.minimum(taken - balloon, np.minimum(c.inactive_anon, means.swap_room))
    for most in (means.balloon, means.balloon + means.guest_swap):
        balloon = balloon + np.minimum(taken - balloon - swap, np.maximum(most - balloon, 0))
    swap = swap + np.minimum(np.minimum(taken - balloon - swap, means.beyond_balloon), np.maximum(means.swap_room - swap, 0))
    balloon = balloon + np.minimum(taken - balloon - swap, np.maximum(means.squeeze - balloon, 0))
    return balloon, taken - balloon


def _give(c: Columns, balance: Balance, taken: Pages, needs: Pages, settings: Settings) -> Pages:
    """Return what to give to each VM: first what it lacks, then, in state high, what the host has to spare."""
    extra = int(taken.sum()) - balance.wanted
    spare = max(0, balance.free - balance.goal)
    needed = np.where(taken > 0, 0, needs)
    given = fill(c.shares, c.active, settings.idle_cost, c.held, c.held + needed, int(c.held.sum()) + max(0, extra) + spare) - c.held
    surplus = balance.surplus - int(given.sum())
    if balance.state is not State.HIGH or surplus <= 0:
        return given
    back = np.where(c.usable, c.balloon, 0) + _wanted_back(c)
    room = np.minimum(np.minimum(back, np.maximum(c.most - c.granted, 0)), c.step_up)
    room = np.where((taken > 0) | (c.since_shrink < settings.cool_down_s), given, np.maximum(room, given))
    total = int(c.held.sum()) + int(given.sum()) + surplus
    return fill(c.shares, c.active, settings.idle_cost, c.held + given, c.held + room, total) - c.held


def _wanted_back(c: Columns) -> Pages:
    """Return the swapped pages that belong to the working set; idle ones are left where they are until somebody touches them."""
    back: Pages = np.maximum(np.minimum(c.working_set - c.granted, c.swapped), 0)
    return back


def _split_given(c: Columns, given: Pages) -> tuple[Pages, Pages]:
    """Return what is given by deflating and by swapping in."""
    swapped_in = np.minimum(given, _wanted_back(c))
    deflated = np.minimum(given - swapped_in, np.where(c.usable, c.balloon, 0))
    return deflated, given - deflated
