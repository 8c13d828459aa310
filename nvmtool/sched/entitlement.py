"""Sharing memory out by shares, with a tax on what is idle; taking it back from whom pays least for it (min-funding revocation).

The scheme is Waldspurger's (Memory Resource Management in VMware ESX Server, OSDI 2002). A VM with S shares that holds P pages, of which
A are active, pays S / (A + k * (P - A)) for a page, with k = 1 / (1 - tax). Memory is revoked from the VM that pays least, and granted to
the VM that pays most, until the prices meet: what a VM holds at a price of 1/x is here called its funded size. So one function, `fill`,
answers all questions: how much each is entitled to, from whom to take, whom to give.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sizes = NDArray[np.int64]
    Reals = NDArray[np.float64]


def fill(shares: Sizes, active: Sizes, idle_cost: float, low: Sizes, high: Sizes, total: int) -> Sizes:
    """Return sizes between `low` and `high` that add up to `total` exactly, at one price for all that are at neither end.

    All arrays are i8 in one unit, 0 <= low <= high, shares from 1 on. Where the ends do not allow `total`: the nearest sum that they do.
    """
    if total <= int(low.sum()):
        return low.copy()
    if total >= int(high.sum()):
        return high.copy()
    price = _inverse_price(shares, active, idle_cost, low, high, total)
    wanted = np.clip(_funded(shares, active, idle_cost, price), low, high)
    return _rounded(wanted, low, high, total)


def _funded(shares: Sizes, active: Sizes, idle_cost: float, x: float) -> Reals:
    """Return the size at which each VM pays 1/x a byte: active bytes first, then idle ones at their cost."""
    bought = shares * np.float64(x)
    funded: Reals = np.where(bought <= active, bought, active + (bought - active) / idle_cost)
    return funded


def _price_of(shares: Sizes, active: Sizes, idle_cost: float, size: Sizes) -> Reals:
    """Return the x at which a VM holds `size`: the inverse of `_funded`."""
    cost: Reals = np.where(size <= active, size, active + (size - active) * idle_cost) / shares
    return cost


def _inverse_price(shares: Sizes, active: Sizes, idle_cost: float, low: Sizes, high: Sizes, total: int) -> float:
    """Return the x at which the clipped funded sizes add up to `total`.

    Their sum is piecewise linear in x and never falls. Each VM's slope begins where it leaves `low`, changes where its active bytes are
    all paid for, and ends at `high`.
    """
    begin = _price_of(shares, active, idle_cost, low)
    end = _price_of(shares, active, idle_cost, high)
    kink = np.clip(active / shares, begin, end)
    fast, slow = shares.astype(np.float64), shares / idle_cost
    places = np.concatenate([begin, kink, end])
    changes = np.concatenate([fast, slow - fast, -slow])
    order = np.argsort(places, kind="stable")
    places, slopes = places[order], np.cumsum(changes[order])
    sums = float(low.sum()) + np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(places))])
    at = min(max(int(np.searchsorted(sums, total, side="right")) - 1, 0), len(places) - 1)
    slope = slopes[at]
    return float(places[at] + ((total - sums[at]) / slope if slope > 0 else 0.0))


def _rounded(wanted: Reals, low: Sizes, high: Sizes, total: int) -> Sizes:
    """Return whole numbers that add up to `total`; what rounding left over is spread over the first that have room, one each."""
    sizes = np.clip(np.floor(wanted).astype(np.int64), low, high)
    while left := total - int(sizes.sum()):
        room = high - sizes if left > 0 else sizes - low
        open_ends = int(np.count_nonzero(room))
        change = np.minimum(room, max(1, abs(left) // open_ends))
        change = np.clip(abs(left) - (np.cumsum(change) - change), 0, change)
        sizes += change if left > 0 else -change
    return sizes


def entitlements(shares: Sizes, active: Sizes, idle_cost: float, steps: tuple[Sizes, ...], total: int) -> Sizes:
    """Return what each VM is entitled to of `total`.

    `steps` are sizes that never fall from one to the next: guaranteed, working set, most. Nobody gets more than a step before everybody
    has it; within a step it goes by `fill`. Where `total` is less than all guarantees, these are returned.
    """
    for low, high in itertools.pairwise(steps):
        if total <= int(high.sum()):
            return fill(shares, active, idle_cost, low, high, total)
    return steps[-1].copy()
