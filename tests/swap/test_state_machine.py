"""Any sequence of swapping out and in, forgetting, defragmenting, killing and opening again leaves what a plain dict says."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from nvmtool.swap.check import check_swap
from nvmtool.swap.defrag import Defragmenter
from nvmtool.swap.moves import Mover
from nvmtool.swap.swapfile import UNTOUCHED

from .guest import PAGE, Guest, verify

FRAMES = 200
frames = st.sets(st.integers(0, FRAMES - 1), min_size=1, max_size=60)


class Machine(RuleBasedStateMachine):
    """One swap file; `guest.swapped` is the model, `durable` what it was at the last commit."""

    @initialize()
    def set_up(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nvmtool-swap-", dir="/var/tmp"))
        self.guest = Guest(self.folder / "vm.swap", frames=FRAMES)
        self.durable: dict[int, bytes] = {}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.guest.close()
            self.guest.verify()
            assert check_swap(self.guest.path).clean
            shutil.rmtree(self.folder)

    def committed(self) -> None:
        self.durable = dict(self.guest.swapped)

    @rule(chosen=frames, order=st.randoms(use_true_random=False))
    def swap_out(self, chosen: set[int], order: random.Random) -> None:
        batch = sorted(chosen - self.guest.swapped.keys())
        order.shuffle(batch)
        if batch:
            self.guest.out(batch)
            self.committed()

    @rule(chosen=frames)
    def swap_in(self, chosen: set[int]) -> None:
        self.guest.bring_in(sorted(chosen & self.guest.swapped.keys()))

    @rule(chosen=frames)
    def forget(self, chosen: set[int]) -> None:
        gone = sorted(chosen & self.guest.swapped.keys())
        if gone:
            self.guest.swap.forget(np.array(gone, np.int64))
            for frame in gone:
                del self.guest.swapped[frame]

    @rule(chosen=frames)
    def touch(self, chosen: set[int]) -> None:
        for frame in chosen:
            if self.guest.swap.state_of(frame) == UNTOUCHED:
                self.guest.swap.touch(frame)

    @rule()
    def commit(self) -> None:
        self.guest.swap.commit()
        self.committed()

    @rule(most=st.sampled_from([None, None, 0, 5 * PAGE, 40 * PAGE]))
    def defrag(self, most: int | None) -> None:
        swap = self.guest.swap
        result = Defragmenter(Mover(swap), swap.pages, swap.data_offset, swap.block_bytes, live=False, max_bytes=most).run()
        self.committed()
        assert most is None or result.pages_moved * PAGE <= most
        if most is None:
            assert result.complete
            assert swap.blocks_allocated == swap.blocks_optimal == -(-len(self.guest.swapped) // swap.slots_per_block)

    @rule()
    def reopen(self) -> None:
        self.guest.close()
        assert check_swap(self.guest.path).clean
        self.guest.open()
        self.committed()

    @rule()
    def lose_what_was_not_committed(self) -> None:
        self.guest.swap.close(commit=False)
        assert check_swap(self.guest.path).clean
        self.guest.swapped = dict(self.durable)
        self.guest.open()

    @invariant()
    def every_page_is_where_it_must_be(self) -> None:
        if hasattr(self, "guest"):
            verify(self.guest.swap, self.guest.swapped)
            assert self.guest.swap.used_slots == len(self.guest.swapped)

    @invariant()
    def a_reader_sees_the_last_commit(self) -> None:
        if hasattr(self, "guest"):
            self.guest.verify_against(self.durable)


def test_any_sequence_of_operations() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)),
    )
