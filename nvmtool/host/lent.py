"""Which pages the device image lends to this host: the image's own words say it, and only they (T6)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from ..region.device import Device
from ..region.lending import lent_block_numbers
from .layout import boot_id

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .host import Host

_BOOT_BITS = 24


def lender_tag(host: Host) -> int:
    """Return the number under which this host borrows as long as the machine runs: 24 bits of its UUID, 24 of the machine's boot."""
    return max(_hash(host.uuid) << _BOOT_BITS | _hash(boot_id()), 1)


def is_over(tag: int) -> bool:
    """Tell whether pages were lent before the machine was restarted: then what was in them is gone, and they are simply free."""
    return tag & ((1 << _BOOT_BITS) - 1) != _hash(boot_id())


def _hash(raw: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(raw, digest_size=_BOOT_BITS // 8).digest(), "little")


def lent_by_image(host: Host) -> NDArray[np.int64]:
    """Return the blocks that the device image lends to this host, ascending; none that it lends to another."""
    with Device.open(host.nvm_path) as device:
        if not device.lent_blocks or device.lender_tag != lender_tag(host):
            return np.empty(0, np.int64)
        return lent_block_numbers(device)
