"""What `info` tells of a device: sizes, areas, and what each region holds; nothing here is O(image)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import layout as lay
from .snapshots import count_snapshots

if TYPE_CHECKING:
    from .device import Device
    from .region import Region


def device_info(device: Device) -> dict[str, Any]:
    """Return the facts of a device as `info --json` prints them; sizes in bytes. Raises DamagedError."""
    header = device.header
    free = device.blocks.free_blocks
    regions = device.regions()
    data_blocks = sum(region.record.get("nvm_blocks") for region in regions)
    used = device.blocks.nblocks - free
    assert device.mass is not None
    return {
        "image": str(device.path),
        "format_version": lay.VERSION,
        "uuid": header.uuid_text,
        "block_size": lay.BLOCK_SIZE,
        "size_bytes": header.size_blocks * lay.BLOCK_SIZE,
        "free_bytes": free * lay.BLOCK_SIZE,
        "used_bytes": (used + header.data_start) * lay.BLOCK_SIZE,
        "metadata_bytes": (used - data_blocks - device.lent_blocks + header.data_start) * lay.BLOCK_SIZE,
        "reserve_bytes": device.blocks.reserve * lay.BLOCK_SIZE,
        "lent_bytes": device.lent_blocks * lay.BLOCK_SIZE,
        "log_bytes": header.log_blocks * lay.BLOCK_SIZE,
        "log_records": device.journal.sequence,
        "flush": device.store.fence_kind,
        "mass": {
            "path": str(device.mass.path),
            "size_bytes": device.mass.size_bytes,
            "used_bytes": device.slots.used * lay.BLOCK_SIZE,
        },
        "regions": [region_info(region) for region in regions],
    }


def region_info(region: Region) -> dict[str, Any]:
    """Return one region's facts.

    Active is what the running point reads, non-active is in NVM for snapshots alone, purged is on the mass store.
    """
    record = region.record
    mapped, purged = record.get("mapped"), record.get("mapped_purged")
    return {
        "name": region.name,
        "size_bytes": region.size_bytes,
        "mapping": region.mapping,
        "converting": bool(record.get("flags") & lay.CONVERTING),
        "snapshots": count_snapshots(region),
        "active_bytes": mapped * lay.BLOCK_SIZE,
        "active_purged_bytes": purged * lay.BLOCK_SIZE,
        "non_active_bytes": (record.get("nvm_blocks") - (mapped - purged)) * lay.BLOCK_SIZE,
        "purged_bytes": record.get("slots") * lay.BLOCK_SIZE,
    }
