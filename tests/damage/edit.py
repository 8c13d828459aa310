"""Damage the files of an image: bits, words, fields, blocks, ends; mend the checksums over what was changed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.media import word
from nvmtool.media.checksum import crc32c
from nvmtool.media.journal import LOG_RECORD
from nvmtool.region import layout as lay

if TYPE_CHECKING:
    from pathlib import Path

    from .anatomy import Word


def read_at(path: Path, offset: int, length: int) -> bytes:
    """Return bytes of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def write_at(path: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip_bit(path: Path, offset: int, bit: int) -> None:
    """Flip one bit."""
    write_at(path, offset, bytes([read_at(path, offset, 1)[0] ^ 1 << bit]))


def set_word(path: Path, target: Word, payload: int, *, mended: bool) -> None:
    """Set a word's upper 56 bits; the checksum is made right for its place, or left as it is."""
    payload &= word.PAYLOAD_MASK
    stored = word.seal(payload, target.place) if mended else payload << 8 | target.value & 0xFF
    write_at(path, target.index * 8, stored.to_bytes(8, "little"))


def reseal(path: Path, source: Word, target: Word) -> None:
    """Copy a word to another place, sealed for it."""
    write_at(path, target.index * 8, word.seal(source.value >> 8, target.place).to_bytes(8, "little"))


def set_field(path: Path, base: int, dtype: np.dtype[np.void], field: str, value: int | bytes, *, mended: bool) -> None:
    """Set a field of a structure with a CRC-32C of its own (header, mass header, log record); numbers wrap at the field's size."""
    raw = bytearray(read_at(path, base, dtype.itemsize))
    fields = dtype.fields
    assert fields is not None
    kind, start = fields[field][:2]
    data = (
        value.ljust(kind.itemsize, b"\0")
        if isinstance(value, bytes)
        else (value % (1 << 8 * kind.itemsize)).to_bytes(kind.itemsize, "little")
    )
    raw[start : start + kind.itemsize] = data
    write_at(path, base, bytes(raw))
    if mended:
        mend(path, base, dtype)


def mend(path: Path, base: int, dtype: np.dtype[np.void]) -> None:
    """Make the CRC-32C of a header, a mass store's header or a log record right again."""
    fields = dtype.fields
    assert fields is not None
    size = dtype.itemsize
    if dtype == LOG_RECORD:
        head = np.frombuffer(read_at(path, base, size), dtype)[0]
        size += 16 * int(head["nwords"]) + (8 + lay.BLOCK_SIZE) * int(head["nblocks"])
    at = fields["crc"][1]
    raw = bytearray(read_at(path, base, min(size, os.path.getsize(path) - base)))
    raw[at : at + 4] = bytes(4)
    write_at(path, base + at, crc32c(bytes(raw)).to_bytes(4, "little"))


def swap_blocks(path: Path, first: int, second: int) -> None:
    """Exchange the contents of two blocks."""
    size = lay.BLOCK_SIZE
    one, two = read_at(path, first * size, size), read_at(path, second * size, size)
    write_at(path, first * size, two)
    write_at(path, second * size, one)


def truncate(path: Path, size: int) -> None:
    """Cut a file off."""
    os.truncate(path, size)
