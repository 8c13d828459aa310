"""Which pages the device image lends to this host: the image's own words say it, and only they (T6)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from ..region.device import Device
from ..region.layout import LENDER_TAGS
from ..region.lending import lent_block_numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .host import Host


def lender_tag(host: Host) -> int:
    """Return the number under which this host borrows."""
    digest = hashlib.blake2b(host.uuid, digest_size=8).digest()
    return int.from_bytes(digest, "little") % (LENDER_TAGS - 1) + 1


def lent_by_image(host: Host) -> NDArray[np.int64]:
    """Return the blocks that the device image lends to this host, ascending; none that it lends to another."""
    with Device.open(host.nvm_path) as device:
        if not device.lent_blocks or device.lender_tag != lender_tag(host):
            return np.empty(0, np.int64)
        return lent_block_numbers(device)
