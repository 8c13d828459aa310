"""The bytes of a stamps file: what each page of a swap file must hold, kept by `swap run --stamps` beside the swap file.

Blocks 0 and 1 are the header's copies, then come two words per page frame, `COMMITTED` and `PENDING`.
"""

from __future__ import annotations

import numpy as np

from ..errors import DamagedError
from ..media.header import HeaderFormat
from .layout import MAX_FRAMES, PAGE

STAMPS_HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("block_size", "<u4"),
        ("swap_uuid", "V16"),
        ("generation", "<u8"),
        ("nframes", "<u8"),
        ("reserved", "<u4"),
        ("crc", "<u4"),
    ]
)
assert STAMPS_HEADER.itemsize == 56

FIRST_WORD = 2 * PAGE // 8
WORDS_PER_FRAME = 2
# The two words of a frame. COMMITTED: the version that the last swap-out left, and the state in the uppermost bits.
COMMITTED, PENDING = 0, 1
STATE_SHIFT = 62
VERSION_MASK = (1 << STATE_SHIFT) - 1

# States of a frame: never swapped out since it began, in memory, in the file, in the file since before there were stamps.
NEVER, MEMORY, SWAPPED, ANY = range(4)


def stamps_bytes(nframes: int) -> int:
    """Return the size of a stamps file."""
    return (FIRST_WORD + nframes * WORDS_PER_FRAME) * 8


def _check(numbers: dict[str, int], where: str) -> None:
    if not 0 < numbers["nframes"] <= MAX_FRAMES:
        raise DamagedError(f"{where}: header field nframes is {numbers['nframes']}, out of range")


STAMPS_FORMAT = HeaderFormat(STAMPS_HEADER, b"NVMSTMP", 1, "a stamps file of swap run", _check)
