"""Any mix of operations, damage and reopening: damage is never silent, and work goes on from the sound image as a dict says."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from nvmtool.media import word
from nvmtool.region.check import check_device
from nvmtool.region.convert import convert_region
from nvmtool.region.device import Device
from nvmtool.region.purge import purge
from nvmtool.region.recall import recall
from nvmtool.region.snapshots import create_snapshot, delete_snapshot, revert_region

from .anatomy import Word, anatomy
from .cases import FOUND, STRICT, Case, run_cases
from .edit import flip_bit, truncate, write_at
from .images import BLOCK, Builder, Image
from .probe import read_state

NAMES = st.sampled_from(["a", "b", "c"])
INDEXES = st.sampled_from([0, 1, 2, 3, 511, 512, 513, 700])


class Machine(RuleBasedStateMachine):
    """One region; the builder keeps the model. Damage is made to the closed image and undone behind it."""

    @initialize(mapping=st.sampled_from(["virtblock", "direct"]))
    def set_up(self, mapping: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nvmtool-machine-"))
        self.builder = Builder(self.folder, 1, size_blocks=160)
        self.region = self.builder.create("vm", mapping)
        self.builder.write(self.region, 0, 1, 512)
        self.virtblock = mapping == "virtblock"

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.builder.device.close()
            shutil.rmtree(self.folder)

    @property
    def saved(self) -> set[str]:
        return {name for _, name in self.builder.model if name is not None}

    @rule(indexes=st.lists(INDEXES, min_size=1, max_size=4, unique=True))
    def write(self, indexes: list[int]) -> None:
        self.builder.write(self.region, *indexes)

    @rule(index=INDEXES)
    def discard(self, index: int) -> None:
        self.builder.discard(self.region, index)

    @rule(name=NAMES)
    def snapshot(self, name: str) -> None:
        if name in self.saved:
            delete_snapshot(self.region, name)
            del self.builder.model["vm", name]
        else:
            create_snapshot(self.region, name)
            self.builder.model["vm", name] = dict(self.builder.model["vm", None])

    @rule(name=NAMES)
    def revert(self, name: str) -> None:
        if name in self.saved:
            revert_region(self.region, name)
            self.builder.model["vm", None] = dict(self.builder.model["vm", name])

    @rule(virtblock=st.booleans(), most=st.sampled_from([None, 2 * BLOCK]))
    def purge(self, virtblock: bool, most: int | None) -> None:
        mode = "virtblock" if virtblock and self.virtblock else "pointer-elimination"
        purge(self.builder.device, mode=mode, max_bytes=most)

    @rule()
    def recall(self) -> None:
        recall(self.builder.device)

    @rule()
    def convert(self) -> None:
        self.virtblock = not self.virtblock
        convert_region(self.region, "virtblock" if self.virtblock else "direct")

    @rule(choice=st.integers(0, 1 << 30), bit=st.integers(0, 63), other=st.integers(0, 1 << 30), what=st.integers(0, 3))
    def damage(self, choice: int, bit: int, other: int, what: int) -> None:
        device = self.builder.device
        device.close()
        image = Image(self.builder.path, self.builder.mass, self.builder.model, [])
        present = sorted(each for each in anatomy(image).words.values() if each.value)
        target, second = present[choice % len(present)], present[other % len(present)]
        where = image.path, target.index * 8
        case = {
            0: Case("flip", lambda _: flip_bit(where[0], where[1] + bit // 8, bit % 8), STRICT),
            1: Case("foreign word", lambda _: write_at(*where, second.value.to_bytes(8, "little")), STRICT),
            2: Case("zeroed", lambda _: write_at(*where, bytes(8)), FOUND),
            3: Case("cut", lambda _: truncate(image.path, other % image.path.stat().st_size), STRICT),
        }[what]
        if what == 1 and not _differs(target, second):
            return self.reopen()
        run = run_cases(image, [case])
        assert run.failures == [], (target, second, run.failures)
        return self.reopen()

    def reopen(self) -> None:
        self.builder.device = Device.open(self.builder.path, writable=True)
        self.region = self.builder.device.region("vm")

    @precondition(lambda self: hasattr(self, "folder"))
    @invariant()
    def every_state_is_what_the_model_says(self) -> None:
        for (region, name), state in self.builder.model.items():
            assert read_state(self.builder.device, region, name) == state

    @rule()
    def check(self) -> None:
        self.builder.device.flush()
        result = check_device(self.builder.path, scrub=True)
        assert result.clean, result.findings[:3]


def _differs(target: Word, second: Word) -> bool:
    """Tell whether a word that is sound at its own place is not so at the other's: one in 256 is, by chance."""
    return not word.is_sealed(second.value, target.place)


def test_damage_between_operations_is_never_silent() -> None:
    quick = settings(
        derandomize=True, database=None, deadline=None, max_examples=12, stateful_step_count=16, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(Machine, settings=quick)
