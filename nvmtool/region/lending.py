"""Lending free blocks to a host as volatile memory, and taking them back (technique T6).

Block `b` lies at byte `b * 4096` of the image. A host maps the image shared and uses lent blocks as it likes; whoever writes to the image
meanwhile writes to other blocks. Their contents mean nothing to the image, before, during and after.

Which blocks are lent the count words say, and nothing else. The root keeps how many there are, and the tag of the one host that has them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..errors import RefusedError, UsageError
from ..media import word
from ..media.journal import distinct
from ..text import human
from . import layout as lay

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .device import Device

    Ints = NDArray[np.int64]

LOW_WATER_SHARE = 0.10


def lendable_blocks(device: Device, low_water_share: float = LOW_WATER_SHARE) -> int:
    """Return how many blocks may be lent so that this share of the data area stays free for the image's own writes."""
    blocks = device.blocks
    low_water = math.ceil(blocks.nblocks * low_water_share)
    return max(min(blocks.free_blocks - low_water, blocks.available), 0)


def lend_blocks(device: Device, count: int, *, tag: int) -> Ints:
    """Lend free blocks to the host with this tag; return their numbers, ascending, with storage, in long runs where there are some.

    Durable on return. Killed in between, or after BusyError or StorageError, some may be lent: `lent_block_numbers` tells. Raises
    NoSpaceError when fewer are free beyond the reserve or on the image's file system, RefusedError while another host has blocks, or
    UsageError.
    """
    device.require(dry_run=False)
    if not 0 < tag < lay.LENDER_TAGS:
        raise UsageError(f"lender tag {tag}: must be from 1 to {lay.LENDER_TAGS - 1}")
    if count <= 0:
        raise UsageError(f"{count} blocks: there must be one to lend")
    if device.lent_blocks and device.lender_tag != tag:
        raise RefusedError(
            f"{device.path}: {human(device.lent_blocks * lay.BLOCK_SIZE)} are lent to another host "
            f"(tag {device.lender_tag:012x}, not {tag:012x}), or to one that was stopped before it gave them back"
        )
    device.flush()
    blocks = device.blocks.take(count, emptiest=True)
    named = 0
    try:
        device.give_storage(blocks)
        for part in _parts(device, blocks):
            with device.transaction():
                device.blocks.name(part, word.LENT)
                device.root.put("lent_blocks", device.lent_blocks + len(part))
                device.root.put("lender_tag", tag)
            named += len(part)
    except BaseException:
        # Some of them were named and rolled back, and are held no more.
        device.blocks.hold(blocks[named:])
        device.blocks.give_back(blocks[named:])
        raise
    return blocks


def take_back(device: Device, blocks: Ints) -> None:
    """Free lent blocks, which their host no longer uses; durable on return.

    Killed in between, some may still be lent, and those alone can be taken back again. Raises RefusedError when one of them is not lent.
    """
    device.require(dry_run=False)
    blocks = distinct(blocks)
    _require_lent(device, blocks)
    device.flush()
    _free(device, blocks, device.lent_blocks - len(blocks))


def forget_lent(device: Device) -> int:
    """Free all lent blocks, whoever had them and whatever the root says; return how many there were. Durable on return."""
    device.require(dry_run=False)
    device.flush()
    blocks = lent_block_numbers(device)
    _free(device, blocks, 0)
    return len(blocks)


def lent_block_numbers(device: Device) -> Ints:
    """Return the numbers of all lent blocks, ascending, from the count words; raises DamagedError."""
    return np.concatenate([np.empty(0, np.int64), *device.blocks.iter_of_kind(word.LENT)])


def _free(device: Device, blocks: Ints, left: int) -> None:
    """Free lent blocks until `left` are lent still."""
    behind = len(blocks)
    for part in _parts(device, blocks):
        behind -= len(part)
        with device.transaction():
            device.blocks.free(part)
            _put_lent(device, left + behind)
    if device.lent_blocks != left:
        with device.transaction():
            _put_lent(device, left)


def _put_lent(device: Device, count: int) -> None:
    device.root.put("lent_blocks", count)
    if count == 0:
        device.root.clear("lender_tag")


def _require_lent(device: Device, blocks: Ints) -> None:
    inside = (blocks >= device.blocks.start) & (blocks < device.blocks.end)
    kinds = device.blocks.counts(blocks[inside])[0]
    wrong = np.concatenate([blocks[~inside], blocks[inside][kinds != word.LENT]])
    if len(wrong):
        raise RefusedError(f"{device.path}: block {int(wrong[0])} is not lent")


def _parts(device: Device, blocks: Ints) -> list[Ints]:
    """Return the blocks in parts that one transaction can change: a count word for each, and a group word at most."""
    step = device.journal.max_words // 2 - 1
    return [blocks[start : start + step] for start in range(0, len(blocks), step)]
