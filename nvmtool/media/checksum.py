"""CRC-32C of byte ranges; crcmod defines it, the crc32c package computes the large ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import crcmod

if TYPE_CHECKING:
    from collections.abc import Callable

    Bytes = bytes | bytearray | memoryview

_small: Callable[[Bytes], int] = crcmod.mkCrcFun(0x11EDC6F41, initCrc=0, rev=True, xorOut=0xFFFFFFFF)

_hardware: Callable[[Bytes], int] | None = None

# Importing the crc32c package costs as much as checksumming this much with crcmod.
_SMALL_BYTES = 16384


def crc32c(data: Bytes) -> int:
    """Return the CRC-32C (Castagnoli) of one contiguous buffer."""
    if len(data) <= _SMALL_BYTES and _hardware is None:
        return _small(data)
    return block_crc32c()(data)


def block_crc32c() -> Callable[[Bytes], int]:
    """Return the hardware CRC-32C for many blocks; equal to crcmod's, which tests prove. From then on `crc32c` uses it too."""
    global _hardware
    if _hardware is None:
        from crc32c import crc32c as hardware  # deferred: 40 ms of start-up that small commands do not need

        _hardware = hardware
    return _hardware
