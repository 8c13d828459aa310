"""What `swap info` tells of a swap file; O(storage blocks), without a look at the frame words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..media import lock
from . import layout as lay

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .swapfile import SwapFile

_BUCKETS = 10


def swap_info(swap: SwapFile) -> dict[str, Any]:
    """Return the facts of a swap file as `swap info --json` prints them; sizes in bytes."""
    return {
        "swap_file": str(swap.path),
        "format_version": lay.VERSION,
        "uuid": swap.uuid_text,
        "memory_bytes": swap.nframes * lay.PAGE,
        "block_size": swap.block_bytes,
        "slots_per_block": swap.slots_per_block,
        "used_slots": swap.used_slots,
        "blocks_allocated": swap.blocks_allocated,
        "blocks_optimal": swap.blocks_optimal,
        "allocated_bytes": swap.pages.allocated_bytes(),
        "metadata_bytes": swap.data_offset,
        "density": density_facts(swap.used, swap.slots_per_block),
        "reservation": swap.fields["reservation_path"] or None,
        "in_use_by": lock.holder(swap.path, lock.WRITER) if lock.is_held(swap.pages.fd, lock.WRITER) else None,
    }


def density_facts(used: NDArray[np.int64], slots_per_block: int) -> dict[str, Any]:
    """Return how the storage blocks' densities are spread; `used` is -1 for blocks without storage.

    `deciles[i]`: blocks with storage of whose slots more than i tenths, and at most i + 1 tenths, are used; `full` ones are in the last.
    `empty` ones are in none: deciles and empty add up to the blocks that have storage. `absent` blocks have none.
    """
    in_use = used[used > 0]
    tenths = -(-in_use * _BUCKETS // slots_per_block) - 1
    return {
        "deciles": np.bincount(tenths, minlength=_BUCKETS).tolist(),
        "empty": int((used == 0).sum()),
        "full": int((used == slots_per_block).sum()),
        "absent": int((used < 0).sum()),
    }
