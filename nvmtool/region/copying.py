"""Moving block contents between NVM and the mass store: contiguous runs become one chunk, checksums overlap with writing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MassFullError, NoSpaceError
from ..media.checksum import block_crc32c
from ..media.journal import run_arrays
from . import layout as lay

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..media.store import Chunk
    from .blocks import BlockNumbers
    from .device import Device
    from .mass import MassStore, SlotNumbers

_PIECE_BLOCKS = 1024
_WRITERS = 2
# Blocks that lie farther apart than this are mapped one by one as they are touched.
_SPARSEST = 4


def copy_to_mass(device: Device, blocks: BlockNumbers, slots: SlotNumbers) -> NDArray[np.uint32]:
    """Copy NVM blocks to mass slots and return the CRC-32C of each; durable on return, so that words may name them.

    In a rehearsal nothing is read or written and the checksums are 0. Raises MassFullError or StorageError; the slots, which
    nothing names, are then given back, as they are when Ctrl-C comes while they are written.
    """
    if not device.writable:
        return np.zeros(len(blocks), np.uint32)
    assert device.mass is not None
    try:
        # Others may have the device meanwhile: these blocks are non-active, and nobody but this job takes slots.
        with device.aside():
            crcs = _copy(device, device.mass, blocks, slots)
            # The copies must be durable before any word names them.
            device.mass.fence()
    except BaseException as error:  # an interrupt too must not leave copies that nothing names
        device.mass.punch(slots)
        if isinstance(error, NoSpaceError):
            raise MassFullError(str(error)) from error
        raise
    return crcs


def _copy(device: Device, mass: MassStore, blocks: BlockNumbers, slots: SlotNumbers) -> NDArray[np.uint32]:
    view = device.store.view.data
    with ThreadPoolExecutor(_WRITERS) as writers:  # checksums are computed while the pieces are being written
        writing = []
        for start in range(0, len(blocks), _PIECE_BLOCKS):
            piece = slice(start, start + _PIECE_BLOCKS)
            _prepare_read(device, blocks[piece])
            writing.append(writers.submit(mass.write, slots[piece], _chunks(view, blocks[piece])))
        crcs = block_crcs(view, blocks)
        for each in writing:
            each.result()
    return np.array(crcs, np.uint32)


def _prepare_read(device: Device, blocks: BlockNumbers) -> None:
    first, end = int(blocks.min()), int(blocks.max()) + 1
    if end - first <= _SPARSEST * len(blocks):
        device.store.prepare_read(first * lay.BLOCK_SIZE, (end - first) * lay.BLOCK_SIZE)


def block_crcs(view: memoryview, blocks: BlockNumbers) -> list[int]:
    """Return the CRC-32C of each block of a mapping."""
    crc32c = block_crc32c()
    size = lay.BLOCK_SIZE
    return [crc32c(view[start : start + size]) for start in (blocks * size).tolist()]


def _chunks(view: memoryview, blocks: BlockNumbers) -> list[Chunk]:
    starts, lengths = run_arrays(blocks)
    size = lay.BLOCK_SIZE
    return [view[first : first + length] for first, length in zip((starts * size).tolist(), (lengths * size).tolist(), strict=True)]
