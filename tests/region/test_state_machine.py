"""Any sequence of operations leaves every state byte for byte as a plain dict says, and check clean."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from nvmtool.errors import UsageError
from nvmtool.region.check import check_device
from nvmtool.region.convert import convert_region
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.purge import non_active_blocks, purge
from nvmtool.region.recall import recall
from nvmtool.region.snapshots import create_snapshot, delete_snapshot, list_snapshots, revert_region

BLOCK = 4096
NAMES = st.sampled_from(["s0", "s1", "s2", "s3", "s4"])
State = dict[int, bytes]


class Machine(RuleBasedStateMachine):
    """One region; `current` and `saved` are the model: the blocks that are not zeros."""

    nblocks = 300
    # Offsets cluster here, so that tables and blocks are shared and changed often.
    hot: tuple[int, ...] = (0, 3, 250)

    @initialize(mapping=st.sampled_from(["virtblock", "direct"]))
    def set_up(self, mapping: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nvmtool-states-"))
        self.path = self.folder / "disk.nvm"
        format_device(self.path, size_bytes=8 << 20, mass=self.folder / "disk.mass", sparse=True)
        self.device = Device.open(self.path, writable=True)
        self.region = self.device.create_region("vm1", self.nblocks * BLOCK, mapping)
        self.mapping = mapping
        self.current: State = {}
        self.saved: dict[str, State] = {}
        self.steps = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.verify()
            self.device.close()
            shutil.rmtree(self.folder)

    def patch(self, offset: int, data: bytes) -> None:
        while data:
            index, skip = divmod(offset, BLOCK)
            part = data[: BLOCK - skip]
            old = self.current.get(index, bytes(BLOCK))
            self.current[index] = old[:skip] + part + old[skip + len(part) :]
            offset, data = offset + len(part), data[len(part) :]

    @rule(hot=st.integers(0, 2), first=st.integers(0, 12), count=st.integers(1, 24), seed=st.integers(0, 255), flush=st.booleans())
    def write(self, hot: int, first: int, count: int, seed: int, flush: bool) -> None:
        start = self.hot[hot] + first
        data = random.Random(seed).randbytes(min(count, self.nblocks - start) * BLOCK)
        self.region.write(start * BLOCK, data)
        self.patch(start * BLOCK, data)
        if flush:
            self.region.flush()

    @rule(hot=st.integers(0, 2), skip=st.integers(0, 3 * BLOCK), length=st.integers(1, 2 * BLOCK + 5), seed=st.integers(0, 255))
    def write_unaligned(self, hot: int, skip: int, length: int, seed: int) -> None:
        offset = self.hot[hot] * BLOCK + skip
        data = random.Random(seed).randbytes(length)
        self.region.write(offset, data)
        self.patch(offset, data)

    @rule(hot=st.integers(0, 2), skip=st.integers(0, 5 * BLOCK), length=st.integers(0, 12 * BLOCK), aligned=st.booleans())
    def discard(self, hot: int, skip: int, length: int, aligned: bool) -> None:
        offset = self.hot[hot] * BLOCK + skip
        if aligned:
            offset, length = offset // BLOCK * BLOCK, length // BLOCK * BLOCK
        length = min(length, self.nblocks * BLOCK - offset)
        self.region.discard(offset, length)
        self.patch(offset, bytes(length))

    @rule()
    def discard_all(self) -> None:
        self.region.discard(0, self.region.size_bytes)
        self.current = {}

    @rule(name=NAMES)
    def snapshot(self, name: str) -> None:
        if name not in self.saved:
            create_snapshot(self.region, name)
            self.saved[name] = dict(self.current)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name in self.saved:
            self.device.flush()
            exclusive = next(s.exclusive_bytes for s in list_snapshots(self.region) if s.name == name)
            used = sum(self.region.record.get(f) for f in ("nvm_blocks", "slots"))
            delete_snapshot(self.region, name)
            assert used - sum(self.region.record.get(f) for f in ("nvm_blocks", "slots")) == exclusive // BLOCK
            del self.saved[name]

    @rule(name=NAMES)
    def revert(self, name: str) -> None:
        if name in self.saved:
            revert_region(self.region, name)
            self.current = dict(self.saved[name])

    @rule(virtblock=st.booleans(), names=st.sets(NAMES), whole=st.booleans(), most=st.sampled_from([None, None, BLOCK, 5 * BLOCK]))
    def purge(self, virtblock: bool, names: set[str], whole: bool, most: int | None) -> None:
        mode = "virtblock" if virtblock else "pointer-elimination"
        chosen = () if whole else tuple(sorted(names & self.saved.keys()))
        options = {"mode": mode, "snapshots": chosen, "max_bytes": most}
        if virtblock and self.mapping == "direct":
            with pytest.raises(UsageError):
                purge(self.device, **options)
            return
        self.device.flush()
        with Device.open(self.path) as reader:
            planned = purge(reader, **options, dry_run=True)
        done = purge(self.device, **options)
        same = ("blocks_purged", "pointers_updated", "blocks_remaining", "free_bytes_before")
        assert [getattr(planned, f) for f in same] == [getattr(done, f) for f in same]
        if most is not None:
            assert done.bytes_purged <= most
        elif not chosen:
            assert purge(self.device, **options).blocks_purged == 0
            assert mode == "virtblock" or non_active_blocks(self.region) == 0

    @rule(name=st.one_of(st.none(), NAMES), most=st.sampled_from([None, 3 * BLOCK]))
    def recall(self, name: str | None, most: int | None) -> None:
        if name is None or name in self.saved:
            recall(self.device, region="vm1", snapshot=name, max_bytes=most)
            if most is None and name is None:
                assert self.region.record.get("mapped_purged") == 0

    @rule(mapping=st.sampled_from(["virtblock", "direct"]))
    def convert(self, mapping: str) -> None:
        convert_region(self.region, mapping)
        self.mapping = mapping

    @rule()
    def reopen(self) -> None:
        self.device.close()
        self.device = Device.open(self.path, writable=True)
        self.region = self.device.region("vm1")
        assert self.region.mapping == self.mapping

    @precondition(lambda self: hasattr(self, "folder"))
    @invariant()
    def every_few_steps(self) -> None:
        self.steps += 1
        if self.steps % 4 == 0:
            self.verify()

    def verify(self) -> None:
        for name, state in [(None, self.current), *self.saved.items()]:
            read = self.region.read(0, self.region.size_bytes, name)
            expected = bytearray(self.region.size_bytes)
            for index, content in state.items():
                expected[index * BLOCK : (index + 1) * BLOCK] = content
            if read != expected:
                wrong = [i for i in range(self.nblocks) if read[i * BLOCK : (i + 1) * BLOCK] != expected[i * BLOCK : (i + 1) * BLOCK]]
                raise AssertionError(f"state {name or '@current'} differs in blocks {wrong[:20]}")
        self.device.flush()
        result = check_device(self.path, scrub=True)
        assert result.clean, result.findings[:5]
        assert self.region.record.get("nsnapshots") == len(self.saved) == len(list(self.region.snapshots))
        assert {s.name for s in list_snapshots(self.region)} == set(self.saved)
        assert self.region.record.get("slots") == self.device.slots.used
        if not self.saved:
            assert non_active_blocks(self.region) == 0


class TwoLevels(Machine):
    """The same over three tables of a region that needs an upper table."""

    nblocks = 1400
    hot = (0, 506, 1370)


SETTINGS = settings(
    derandomize=True, database=None, deadline=None, max_examples=25, stateful_step_count=30, suppress_health_check=list(HealthCheck)
)


def test_every_state_is_what_a_dict_says_with_one_level_of_tables(tmp_path: Path) -> None:
    run_state_machine_as_test(Machine, settings=SETTINGS)


def test_every_state_is_what_a_dict_says_with_two_levels_of_tables(tmp_path: Path) -> None:
    run_state_machine_as_test(TwoLevels, settings=SETTINGS)
