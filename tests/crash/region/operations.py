"""The operations that are cut off, each beside what the model says of it: the documented states that it commits one after the other."""

from __future__ import annotations

import os
import random
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from nvmtool.region.convert import convert_region
from nvmtool.region.lending import forget_lent, lend_blocks, lent_block_numbers, take_back
from nvmtool.region.purge import purge
from nvmtool.region.recall import recall
from nvmtool.region.receive import receive
from nvmtool.region.send import digest_of
from nvmtool.region.snapshots import create_snapshot, delete_snapshot, revert_region
from nvmtool.region.stream_format import StreamHeader
from nvmtool.region.transfer import import_file

from .model import BLOCK, LENT, ZEROS, Model, RegionModel
from .streams import stream_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvmtool.region.device import Device

    from .streams import Piece

    Run = Callable[[Device], object]
    Steps = Callable[[Model], list[Model]]


@dataclass(frozen=True)
class Operation:
    """One step of a workload; `steps` gives the models that may be seen while it runs, the last one when it has returned.

    `steps` is called before the run, on the model that the device then has.
    """

    name: str
    run: Run
    steps: Steps


def pattern(seed: int, nblocks: int = 1) -> bytes:
    """Return blocks without structure; the same seed gives the same bytes."""
    return random.Random(seed).randbytes(nblocks * BLOCK)


def _changed(model: Model, region: RegionModel, name: str = "vm") -> Model:
    return {**model, name: region}


def _same(model: Model) -> list[Model]:
    return [model]


def _write(name: str, *writes: tuple[int, bytes], region: str = "vm") -> Operation:
    """Bytes at offsets, then one flush: one commit."""

    def run(device: Device) -> None:
        for offset, data in writes:
            device.region(region).write(offset, data)
        device.region(region).flush()

    def steps(model: Model) -> list[Model]:
        changed = model[region]
        for offset, data in writes:
            changed = changed.write(offset, data)
        return [_changed(model, changed, region)]

    return Operation(name, run, steps)


def _discard(name: str, offset: int, length: int) -> Operation:
    """A byte range: each edge that is part of a block is a commit of its own, then the whole blocks."""
    first, end = -(-offset // BLOCK) * BLOCK, (offset + length) // BLOCK * BLOCK

    def steps(model: Model) -> list[Model]:
        found, region = [], model["vm"]
        for start, stop in ((offset, min(first, offset + length)), (max(end, offset), offset + length)):
            if stop > start and region.current.get(start // BLOCK):
                region = region.write(start, bytes(stop - start))
                found.append(_changed(model, region))
        kept = {index: data for index, data in region.current.items() if not first <= index * BLOCK < end}
        return [*found, _changed(model, replace(region, current=kept))]

    return Operation(name, lambda device: device.region("vm").discard(offset, length), steps)


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """Give the path of a file in memory."""
    fd = os.memfd_create("source")
    try:
        os.write(fd, content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _import(name: str, offset: int, source: bytes) -> Operation:
    """A file: its data in one commit, then each run of zeros in one."""

    def run(device: Device) -> None:
        with _file(source) as path:
            import_file(device.region("vm"), path, offset)

    def steps(model: Model) -> list[Model]:
        region, holes, found = model["vm"], [], []
        for start in range(0, len(source), BLOCK):
            index, block = (offset + start) // BLOCK, source[start : start + BLOCK]
            if block != ZEROS:
                region = region.write(index * BLOCK, block)
            elif region.current.get(index):
                holes.append(index)
        found.append(_changed(model, region))
        for index in holes:
            region = region.write(index * BLOCK, ZEROS)
            if index + 1 not in holes:
                found.append(_changed(model, region))
        return found

    return Operation(name, run, steps)


def _snapshot(name: str, snapshot: str, write: tuple[int, bytes] | None = None) -> Operation:
    """A snapshot; what was written before and not flushed is flushed in a commit of its own."""

    def run(device: Device) -> None:
        if write:
            device.region("vm").write(*write)
        create_snapshot(device.region("vm"), snapshot)

    def steps(model: Model) -> list[Model]:
        region = model["vm"].write(*write) if write else model["vm"]
        return [_changed(model, region), _changed(model, region.snapshot(snapshot))]

    return Operation(name, run, steps)


def _receive(name: str, snapshot: str, *pieces: Piece, base: str | None = None, taken: bool = False) -> Operation:
    """A stream: a region, or the next snapshot of one, which is taken just before or has been left behind by the running point.

    However many commits it takes, what it brings is seen when it is complete.
    """

    def run(device: Device) -> None:
        vm = device.region("vm")
        if taken and base:
            create_snapshot(vm, base)
        digest = digest_of(vm, base) if base else bytes(16)
        header = StreamHeader(vm.nblocks, int(vm.mapping == "virtblock"), 1, "vm" if base else "arrived", snapshot, base or "", digest)
        with _file(stream_of(header, pieces)) as path:
            receive(device, path, force=base is not None and not taken)

    def steps(model: Model) -> list[Model]:
        before = model["vm"].snapshot(base) if taken and base else model["vm"]
        region = replace(before, current=before.snapshots[base]) if base else RegionModel(before.nblocks, before.mapping)
        for first, what in pieces:
            region = region.write(first * BLOCK, ZEROS * what if isinstance(what, int) else what)
        return [_changed(model, before), _changed(model, region.snapshot(snapshot), "vm" if base else "arrived")]

    return Operation(name, run, steps)


def _convert(name: str) -> Operation:
    """The other mapping than the region has; what is read stays the same."""
    other = {"virtblock": "direct", "direct": "virtblock"}
    return Operation(
        name,
        lambda device: convert_region(device.region("vm"), other[device.region("vm").mapping]),
        lambda model: [_changed(model, replace(model["vm"], mapping=other[model["vm"].mapping]))],
    )


def _lent(model: Model, count: int) -> list[Model]:
    rest = {name: region for name, region in model.items() if name != LENT}
    return [{**rest, LENT: RegionModel(count, "lent")} if count else rest]


def _revert(model: Model, snapshot: str) -> list[Model]:
    return [_changed(model, replace(model["vm"], current=model["vm"].snapshots[snapshot]))]


def operations() -> list[Operation]:
    """Return all operations; those that the state of a device refuses are skipped there."""
    vm = "vm"
    sparse_source = pattern(60, 2) + ZEROS * 2 + pattern(61) + ZEROS + pattern(62, 2)
    pieces = ((1, pattern(80, 2)), (4, 2), (20, pattern(81, 9)), (509, 1), (510, pattern(82, 4)))
    return [
        _write("write-logged", (3 * BLOCK, pattern(1))),
        _write("write-own", (21 * BLOCK, pattern(12))),
        _write("write-logged-few", (1 * BLOCK, pattern(2)), (30 * BLOCK, pattern(3)), (512 * BLOCK, pattern(4))),
        _write("write-home", (506 * BLOCK, pattern(5, 10))),
        _write("write-home-purged", (2 * BLOCK, pattern(6, 3))),
        _write("write-part", (5 * BLOCK + 100, pattern(7)[:200]), (40 * BLOCK + 4000, pattern(8)[:300])),
        _write("write-ten-singles", *((index * BLOCK, pattern(70 + index)) for index in range(0, 20, 2))),
        _write("write-other", (1 * BLOCK, pattern(9, 2)), region="other"),
        _discard("discard", 1 * BLOCK, 4 * BLOCK),
        _discard("discard-edges", 2 * BLOCK + 512, 3 * BLOCK),
        _discard("discard-table", 0, 512 * BLOCK),
        _import("import", 4 * BLOCK, sparse_source),
        _snapshot("snapshot-create", "s3"),
        _snapshot("write-snapshot", "s4", (4 * BLOCK, pattern(10))),
        Operation("snapshot-delete-oldest", lambda d: delete_snapshot(d.region(vm), "s1"), lambda m: [_changed(m, m[vm].without("s1"))]),
        Operation("snapshot-delete-newest", lambda d: delete_snapshot(d.region(vm), "s2"), lambda m: [_changed(m, m[vm].without("s2"))]),
        Operation("snapshot-revert", lambda d: revert_region(d.region(vm), "s1"), lambda m: _revert(m, "s1")),
        Operation("purge-virtblock", lambda d: purge(d, mode="virtblock", region=vm), _same),
        Operation("purge-pointers", lambda d: purge(d, mode="pointer-elimination"), _same),
        Operation("purge-part", lambda d: purge(d, mode="pointer-elimination", region=vm, snapshots=["s2"], max_bytes=BLOCK), _same),
        Operation("recall", lambda d: recall(d, region=vm), _same),
        Operation("recall-snapshot", lambda d: recall(d, region=vm, snapshot="s1", max_bytes=2 * BLOCK), _same),
        _receive("receive", "r1", *pieces),
        _receive("receive-next", "r2", *pieces, base="s2"),
        _receive("snapshot-receive", "r3", *pieces, base="s5", taken=True),
        _convert("convert"),
        Operation(
            "region-create",
            lambda d: d.create_region("new", 16 * BLOCK, "direct"),
            lambda m: [{**m, "new": RegionModel(16, "direct")}],
        ),
        Operation("region-delete", lambda d: d.delete_region(vm), partial(_without_region, vm)),
        Operation(
            "lend",
            lambda d: lend_blocks(d, 9, tag=7),
            lambda m: _lent(m, 9 + (m[LENT].nblocks if LENT in m else 0)),
        ),
        Operation(
            "take-back",
            lambda d: take_back(d, lent_block_numbers(d)[::2]),
            lambda m: _lent(m, m[LENT].nblocks // 2),
        ),
        Operation("forget", forget_lent, lambda m: _lent(m, 0 * m[LENT].nblocks)),
        Operation("region-delete-other", lambda d: d.delete_region("other"), partial(_without_region, "other")),
    ]


def _without_region(name: str, model: Model) -> list[Model]:
    return [{key: value for key, value in model.items() if key != name}]


def plain_steps() -> list[Operation]:
    """Return steps that make sense in longer workloads only: a checkpoint, and writes that use up what was freed."""
    return [
        Operation("checkpoint", lambda device: device.journal.checkpoint(), _same),
        _write("fill", (100 * BLOCK, pattern(600, 60))),
        _write("write-part-of-fill", *((index * BLOCK + 8, pattern(700 + index)[:16]) for index in range(100, 160, 9))),
    ]
