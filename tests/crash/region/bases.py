"""The images that the workloads start from: snapshots, shared tables, purged and recalled blocks, made by the product itself."""

from __future__ import annotations

import itertools
import secrets
import tempfile
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.purge import purge
from nvmtool.region.snapshots import create_snapshot, revert_region

from .model import BLOCK, Model, RegionModel, digest_of, digest_of_device
from .operations import pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

NBLOCKS = 192
MAPPINGS = ("virtblock", "direct")


@dataclass(frozen=True)
class Base:
    """An image and its mass store, and what they must show."""

    name: str
    image: bytes
    mass: bytes
    model: Model


@contextmanager
def frozen() -> Iterator[None]:
    """Stop the clock, and count UUIDs and tags, so that the same workload stores the same bytes each time."""
    numbers = itertools.count(1)
    with (
        mock.patch.object(time, "time_ns", lambda: 1_800_000_000 * 10**9),
        mock.patch.object(uuid, "uuid4", lambda: uuid.UUID(int=next(numbers))),
        mock.patch.object(secrets, "randbits", lambda nbits: next(numbers) << 20),
    ):
        yield


@cache
def base(mapping: str) -> Base:
    """Return the image that most workloads start from.

    Region `vm` of 600 blocks, so that its trees have two levels: s1, whose blocks are purged in part, a running point that was
    reverted to s1 and reads some of the purged ones, and s2, from which the running point differs. Region `other`: one level.
    """
    with frozen(), tempfile.TemporaryDirectory() as folder:
        path, mass = Path(folder) / "disk.nvm", Path(folder) / "disk.mass"
        format_device(path, size_bytes=NBLOCKS * BLOCK, mass=mass)
        with Device.open(path, writable=True) as device:
            model = _fill(device, mapping)
            found = digest_of_device(device)
        assert found == digest_of(model)
        return Base(mapping, path.read_bytes(), mass.read_bytes(), model)


def _fill(device: Device, mapping: str) -> Model:
    vm, other = device.create_region("vm", 600 * BLOCK, mapping), device.create_region("other", 8 * BLOCK, mapping)
    one, two = RegionModel(600, mapping), RegionModel(8, mapping)
    for offset, data in ((0, pattern(100, 8)), (508 * BLOCK, pattern(101, 6))):
        vm.write(offset, data)
        one = one.write(offset, data)
    create_snapshot(vm, "s1")
    one = one.snapshot("s1")
    vm.write(2 * BLOCK, pattern(102, 4))
    vm.flush()
    purge(device, mode="virtblock" if mapping == "virtblock" else "pointer-elimination", region="vm", max_bytes=3 * BLOCK)
    revert_region(vm, "s1")
    vm.write(4 * BLOCK, pattern(103))
    vm.write(20 * BLOCK, pattern(104, 3))
    create_snapshot(vm, "s2")
    one = one.write(4 * BLOCK, pattern(103)).write(20 * BLOCK, pattern(104, 3)).snapshot("s2")
    for offset, data in ((5 * BLOCK, pattern(105)), (21 * BLOCK, pattern(106)), (510 * BLOCK, pattern(107, 2))):
        vm.write(offset, data)
        one = one.write(offset, data)
    other.write(0, pattern(108, 3))
    create_snapshot(other, "o1")
    other.write(0, pattern(109))
    device.flush()
    purge(device, mode="pointer-elimination", region="other")
    two = replace(two.write(0, pattern(108, 3)).snapshot("o1")).write(0, pattern(109))
    return {"vm": one, "other": two}
