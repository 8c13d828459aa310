"""Small images of each kind, with the model of what each of their states must read."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvmtool.region.convert import convert_region
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.lending import lend_blocks, take_back
from nvmtool.region.purge import purge
from nvmtool.region.snapshots import create_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvmtool.region.region import Region

BLOCK = 4096
SIZE_BLOCKS = 80
# Two levels of page tables, and a third level-1 table that nothing uses.
REGION_BLOCKS = 1100
State = dict[int, bytes]
Model = dict[tuple[str, str | None], State]


@dataclass
class Image:
    """An image with its mass store, and what every state of every region must read: blocks that are not zeros by number.

    `earlier` are models that are right too once a record of the log is torn, the oldest first.
    """

    path: Path
    mass: Path
    model: Model
    earlier: list[Model]

    def contents(self) -> tuple[bytes, bytes]:
        """Return the bytes of both files."""
        return self.path.read_bytes(), self.mass.read_bytes() if self.mass.exists() else b""

    def restore(self, contents: tuple[bytes, bytes]) -> None:
        """Put the bytes of both files back."""
        self.path.write_bytes(contents[0])
        self.mass.write_bytes(contents[1])


class Builder:
    """Writes to the regions of a new image and to the model alike."""

    def __init__(self, folder: Path, seed: int, size_blocks: int = SIZE_BLOCKS) -> None:
        self.path, self.mass = folder / "disk.nvm", folder / "disk.mass"
        self.random = random.Random(seed)
        # How much of a block is random; the rest is zeros.
        self.random_bytes = 512
        self.model: Model = {}
        format_device(self.path, size_bytes=size_blocks * BLOCK, mass=self.mass, sparse=True, force=True)
        self.device = Device.open(self.path, writable=True)

    def create(self, name: str, mapping: str, nblocks: int = REGION_BLOCKS) -> Region:
        """Create a region."""
        self.model[name, None] = {}
        return self.device.create_region(name, nblocks * BLOCK, mapping)

    def write(self, region: Region, *indexes: int) -> None:
        """Write random blocks at these logical blocks, durably."""
        for index in indexes:
            data = self.random.randbytes(self.random_bytes).ljust(BLOCK, b"\0")
            region.write(index * BLOCK, data)
            self.model[region.name, None][index] = data
        region.flush()

    def discard(self, region: Region, index: int) -> None:
        """Make a hole of one block."""
        region.discard(index * BLOCK, BLOCK)
        self.model[region.name, None].pop(index, None)

    def snapshot(self, region: Region, name: str) -> None:
        """Create a snapshot."""
        create_snapshot(region, name)
        self.model[region.name, name] = dict(self.model[region.name, None])

    def copy_of_model(self) -> Model:
        """Return the model as it is now."""
        return {key: dict(state) for key, state in self.model.items()}

    def finish(self, earlier: list[Model] | None = None) -> Image:
        """Close the image; with earlier models its log keeps its records, as after a kill."""
        self.device.close(flush=not earlier)
        return Image(self.path, self.mass, self.model, earlier or [])


def virtblock_image(folder: Path, seed: int = 0) -> Image:
    """Virtblock mapping: two snapshots, one block purged by each mode, one hole."""
    builder = Builder(folder, seed)
    region = builder.create("vm", "virtblock")
    builder.write(region, 0, 1, 2, 600)
    builder.snapshot(region, "old")
    builder.write(region, 0, 1)
    builder.snapshot(region, "new")
    builder.write(region, 1, 3)
    builder.discard(region, 2)
    purge(builder.device, mode="pointer-elimination", max_bytes=BLOCK)
    purge(builder.device, mode="virtblock", max_bytes=BLOCK)
    return builder.finish()


def direct_image(folder: Path, seed: int = 0) -> Image:
    """Direct mapping: two snapshots, two blocks purged, one hole."""
    builder = Builder(folder, seed)
    region = builder.create("vm", "direct")
    builder.write(region, 0, 1, 2, 600)
    builder.snapshot(region, "old")
    builder.write(region, 0, 1)
    builder.snapshot(region, "new")
    builder.write(region, 1, 3)
    builder.discard(region, 2)
    purge(builder.device, mode="pointer-elimination", max_bytes=2 * BLOCK)
    return builder.finish()


def logged_image(folder: Path, seed: int = 0) -> Image:
    """An image whose log still holds records: a write, a snapshot and another write were not moved home."""
    builder = Builder(folder, seed)
    builder.random_bytes = 64
    region = builder.create("vm", "virtblock", 40)
    builder.write(region, 0, 1)
    builder.snapshot(region, "old")
    purge(builder.device, mode="virtblock")
    builder.device.journal.checkpoint()
    earlier = [builder.copy_of_model()]
    builder.write(region, 1)
    earlier.append(builder.copy_of_model())
    builder.snapshot(region, "new")
    earlier.append(builder.copy_of_model())
    builder.write(region, 2)
    return builder.finish(earlier)


def mixed_image(folder: Path, seed: int = 0) -> Image:
    """Two regions, one of them converted, with three snapshots each and blocks purged in both modes."""
    builder = Builder(folder, seed, size_blocks=160)
    for name, mapping in (("vm", "virtblock"), ("db", "direct")):
        region = builder.create(name, mapping, 700)
        for number in range(3):
            builder.write(region, number, number + 1, 520 + number, 40)
            builder.snapshot(region, f"s{number}")
        builder.write(region, 0, 41)
    purge(builder.device, mode="pointer-elimination", max_bytes=3 * BLOCK)
    purge(builder.device, mode="virtblock", region="vm", max_bytes=2 * BLOCK)
    convert_region(builder.device.region("db"), "virtblock")
    return builder.finish()


def lent_image(folder: Path, seed: int = 0) -> Image:
    """An image that has lent blocks to a host, in two steps, and some were taken back."""
    builder = Builder(folder, seed)
    region = builder.create("vm", "virtblock", 40)
    builder.write(region, 0, 1)
    first = lend_blocks(builder.device, 6, tag=7)
    builder.snapshot(region, "old")
    builder.write(region, 1, 2)
    lend_blocks(builder.device, 3, tag=7)
    take_back(builder.device, first[1:3])
    return builder.finish()


KINDS: dict[str, Callable[[Path, int], Image]] = {
    "virtblock": virtblock_image,
    "direct": direct_image,
    "logged": logged_image,
    "mixed": mixed_image,
    "lent": lent_image,
}
