"""Sharing out by price: exact sums, ends kept, more shares never less, idle memory pays the tax."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmtool.sched.entitlement import entitlements, fill

K = 4.0
pages = st.integers(0, 1 << 28)


def columns(*rows: tuple[int, ...]) -> list[np.ndarray]:
    return [np.array(column, np.int64) for column in zip(*rows, strict=True)]


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[np.ndarray], int]:
    """Draw (shares, active, low, high) of some VMs and a total."""
    rows = []
    for _ in range(draw(st.integers(1, 8))):
        low, high = sorted((draw(pages), draw(pages)))
        rows.append((draw(st.integers(1, 10_000)), draw(pages), low, high))
    found = columns(*rows)
    return found, draw(st.integers(0, int(found[3].sum()) + 10))


@settings(deadline=None)
@given(problems())
def test_the_sum_is_exact_and_nobody_is_beyond_an_end(problem: tuple[list[np.ndarray], int]) -> None:
    (shares, active, low, high), total = problem
    sizes = fill(shares, active, K, low, high, total)
    assert (low <= sizes).all()
    assert (sizes <= high).all()
    assert int(sizes.sum()) == min(max(total, int(low.sum())), int(high.sum()))


@settings(deadline=None)
@given(problems(), st.data())
def test_more_shares_never_mean_less(problem: tuple[list[np.ndarray], int], data: st.DataObject) -> None:
    (shares, active, low, high), total = problem
    which = data.draw(st.integers(0, len(shares) - 1))
    more = shares.copy()
    more[which] += data.draw(st.integers(1, 10_000))
    # Rounding moves at most one page a VM.
    assert fill(more, active, K, low, high, total)[which] >= fill(shares, active, K, low, high, total)[which] - len(shares)


@settings(deadline=None)
@given(problems())
def test_one_price_for_all_that_are_at_neither_end(problem: tuple[list[np.ndarray], int]) -> None:
    (shares, active, low, high), total = problem
    sizes = fill(shares, active, K, low, high, total)

    def cost(size: np.ndarray) -> np.ndarray:
        return (np.minimum(size, active) + K * np.maximum(size - active, 0)) / shares

    # Rounding moves a page a VM; whoever holds more than its low end pays no more for it than anybody would below the high end.
    slack = len(sizes) + 1
    dearest, cheapest = cost(sizes - slack)[sizes > low + slack], cost(sizes + slack)[sizes < high - slack]
    assert max(dearest, default=0.0) <= min(cheapest, default=np.inf)


@pytest.mark.parametrize(
    ("rows", "total", "expected"),
    [
        # (shares, active, low, high)
        ([(1000, 100, 0, 200), (1000, 100, 0, 200)], 200, [100, 100]),
        ([(1000, 100, 0, 200), (3000, 100, 0, 200)], 100, [25, 75]),
        # All idle against all active: a page costs the idle one four times as much.
        ([(1000, 0, 0, 100), (1000, 100, 0, 100)], 100, [20, 80]),
        # The same shares, half of the first idle: 50 + 4 * 30 = 170 = all of the second.
        ([(1000, 50, 0, 200), (1000, 170, 0, 170)], 250, [80, 170]),
        ([(1000, 0, 60, 100), (1000, 100, 0, 100)], 100, [60, 40]),
        ([(1, 0, 0, 10), (1, 0, 0, 10), (1, 0, 0, 10)], 10, [4, 3, 3]),
    ],
)
def test_exact_sizes(rows: list[tuple[int, ...]], total: int, expected: list[int]) -> None:
    shares, active, low, high = columns(*rows)
    assert fill(shares, active, K, low, high, total).tolist() == expected


def test_without_a_tax_only_shares_count() -> None:
    shares, active, low, high = columns((1000, 0, 0, 100), (1000, 100, 0, 100))
    assert fill(shares, active, 1.0, low, high, 100).tolist() == [50, 50]


@pytest.mark.parametrize(
    ("total", "expected"),
    [(10, [20, 20]), (40, [20, 20]), (60, [30, 30]), (100, [50, 50]), (120, [60, 60]), (150, [68, 82]), (900, [200, 100])],
)
def test_nobody_gets_more_before_all_have_what_comes_first(total: int, expected: list[int]) -> None:
    shares, active, guaranteed, needed, most = columns((1000, 60, 20, 60, 200), (1000, 80, 20, 80, 100))
    found = entitlements(shares, active, K, (guaranteed, needed, most), total)
    assert found.tolist() == expected


def test_no_vms_get_nothing() -> None:
    none = np.zeros(0, np.int64)
    assert fill(none, none, K, none, none, 100).tolist() == []
