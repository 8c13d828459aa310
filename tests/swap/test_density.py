"""The density structure says what counting all blocks anew would say."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nvmtool.swap.density import Density

SLOTS = 16
counts = st.lists(st.integers(0, SLOTS), min_size=1, max_size=12)


def fewest_pages_to_move(taken: list[int]) -> int:
    """Try every set of blocks that could hold all pages; the others' pages must move."""
    noptimal = -(-sum(taken) // SLOTS)
    return min(sum(taken) - sum(kept) for kept in itertools.combinations(taken, noptimal))


@given(counts)
def test_emptying_the_chosen_blocks_moves_the_fewest_pages_possible(taken: list[int]) -> None:
    choice = Density(np.array(taken, np.int32), SLOTS).choose_to_empty()
    assert choice.noptimal == -(-sum(taken) // SLOTS)
    assert choice.npages == sum(taken[block] for block in choice.blocks.tolist()) == fewest_pages_to_move(taken)
    assert (np.array(taken)[choice.blocks] > 0).all()
    assert (np.array(taken) > 0).sum() - len(choice.blocks) == choice.noptimal
    assert (np.diff(choice.blocks) > 0).all()


@given(counts, st.lists(st.tuples(st.integers(0, 11), st.integers(-SLOTS, SLOTS)), max_size=40), st.sets(st.integers(0, 11)))
def test_the_fullest_block_with_room_is_found_after_any_changes(
    taken: list[int], changes: list[tuple[int, int]], withdrawn: set[int]
) -> None:
    model = list(taken)
    density = Density(np.array(taken, np.int32), SLOTS)
    hidden = {block for block in withdrawn if block < len(model)}
    density.withdraw(np.array(sorted(hidden), np.int64))
    for block, difference in changes:
        if block < len(model) and 0 <= model[block] + difference <= SLOTS:
            model[block] += difference
            density.change(block, difference)
        offered = [count for block, count in enumerate(model) if 0 < count < SLOTS and block not in hidden]
        found = density.fullest_with_room()
        assert (model[found] if found >= 0 else None) == (max(offered) if offered else None)
        assert found not in hidden
    density.restore()
    offered = [count for count in model if 0 < count < SLOTS]
    assert density.fullest_with_room() >= 0 if offered else density.fullest_with_room() < 0
    assert density.total == sum(model)
    assert density.taken.tolist() == model


@given(counts, st.lists(st.integers(0, 11), max_size=60))
def test_many_changes_at_once_are_those_one_by_one(taken: list[int], blocks: list[int]) -> None:
    density = Density(np.array(taken, np.int32), SLOTS)
    model = list(taken)
    fitting = []
    for block in blocks:
        if block < len(model) and model[block] > 0:
            model[block] -= 1
            fitting.append(block)
    density.change_many(np.array(fitting, np.int64), -1)
    assert density.taken.tolist() == model


@given(counts, st.lists(st.tuples(st.integers(0, 11), st.integers(0, SLOTS), st.integers(0, 4)), max_size=40), st.sets(st.integers(0, 11)))
def test_empty_blocks_are_the_lowest_and_withdrawn_ones_come_last(
    taken: list[int], changes: list[tuple[int, int, int]], withdrawn: set[int]
) -> None:
    model = list(taken)
    density = Density(np.array(taken, np.int32), SLOTS)
    hidden = {block for block in withdrawn if block < len(model)}
    density.withdraw(np.array(sorted(hidden), np.int64))
    for block, count, most in changes:
        if block < len(model):
            density.change(block, count - model[block])
            model[block] = count
        empty = [block for block, count in enumerate(model) if count == 0]
        preferred = [block for block in empty if block not in hidden] + [block for block in empty if block in hidden]
        assert density.empty_blocks(most).tolist() == sorted(preferred[:most])
