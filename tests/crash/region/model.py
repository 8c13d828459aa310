"""What an image must show: plain dicts of blocks, and the same read from a device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nvmtool.region import layout as lay
from nvmtool.region.extents import map_arrays

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvmtool.region.device import Device
    from nvmtool.region.region import Region

BLOCK = lay.BLOCK_SIZE
ZEROS = bytes(BLOCK)
Blocks = dict[int, bytes]


@dataclass(frozen=True)
class RegionModel:
    """One region: the blocks of its running point and of its snapshots that are not zeros."""

    nblocks: int
    mapping: str
    current: Blocks = field(default_factory=dict)
    snapshots: dict[str, Blocks] = field(default_factory=dict)

    def write(self, offset: int, data: bytes) -> RegionModel:
        """Return the region with bytes of its running point changed."""
        current = dict(self.current)
        while data:
            index, skip = divmod(offset, BLOCK)
            part = data[: BLOCK - skip]
            old = current.get(index, ZEROS)
            current[index] = old[:skip] + part + old[skip + len(part) :]
            if current[index] == ZEROS:
                del current[index]
            offset, data = offset + len(part), data[len(part) :]
        return replace(self, current=current)

    def snapshot(self, name: str) -> RegionModel:
        """Return the region with its running point kept under a name."""
        return replace(self, snapshots={**self.snapshots, name: self.current})

    def without(self, name: str) -> RegionModel:
        """Return the region without a snapshot."""
        return replace(self, snapshots={key: value for key, value in self.snapshots.items() if key != name})


Model = dict[str, RegionModel]
# No region has this name: how many blocks are lent, as a region without contents; absent while there are none.
LENT = ""


def digest_of(model: Model) -> str:
    """Return a digest of everything that can be seen of a model."""
    return _digest(
        (name, region.mapping, region.nblocks, state or "", blocks)
        for name, region in model.items()
        for state, blocks in [(None, region.current), *region.snapshots.items()]
    )


def digest_of_device(device: Device) -> str:
    """Return the digest of what a device shows: every region, every state, every block that is not zeros."""
    lent = [(LENT, "lent", device.lent_blocks, "", {})] if device.lent_blocks else []
    return _digest(
        [
            *lent,
            *(
                (region.name, region.mapping, region.nblocks, state or "", read_blocks(region, state))
                for region in device.regions()
                for state in [None, *names(region)]
            ),
        ]
    )


def names(region: Region) -> list[str]:
    """Return the names of a region's readable snapshots."""
    return [record.name for record in region.snapshots if not record.get("parent") & lay.SNAPSHOT_DELETING]


def read_blocks(region: Region, state: str | None) -> Blocks:
    """Return the blocks of a state that are not zeros."""
    found = {}
    for start, end in _joined(*(each.tolist() for each in map_arrays(region, state))):
        data = region.read(start, end - start, state)
        for offset in range(0, len(data), BLOCK):
            if (block := data[offset : offset + BLOCK]) != ZEROS:
                found[(start + offset) // BLOCK] = block
    return found


def _joined(offsets: list[int], lengths: list[int], kinds: list[int]) -> list[tuple[int, int]]:
    """Return (start, end) of the ranges that hold data, those near each other as one: fewer reads, and holes are read too."""
    found: list[tuple[int, int]] = []
    for offset, length, kind in zip(offsets, lengths, kinds, strict=True):
        if kind and found and offset - found[-1][1] <= 32 * BLOCK:
            found[-1] = found[-1][0], offset + length
        elif kind:
            found.append((offset, offset + length))
    return found


def _digest(states: Iterable[tuple[str, str, int, str, Blocks]]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for name, mapping, nblocks, state, blocks in sorted(states, key=lambda each: (each[0], each[3])):
        total.update(f"{name}/{mapping}/{nblocks}/{state}:".encode())
        for index in sorted(blocks):
            total.update(index.to_bytes(8, "little"))
            total.update(blocks[index])
    return total.hexdigest()
