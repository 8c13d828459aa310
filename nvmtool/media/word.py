"""Sealed words: 56 bits of payload and a CRC-8 over the payload and the place it belongs to (docs/format.md, section 2).

Scalar functions take and give Python ints; the `_array` ones take and give `<u8` arrays and are vectorised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import crcmod
import numpy as np

from ..errors import DamagedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

PLACE_FACTOR = 0x9E3779B97F4A7C15
U64 = (1 << 64) - 1
VALUE_BITS = 52
VALUE_MASK = (1 << VALUE_BITS) - 1
# So few words are quicker one by one than through the vectorised path.
_FEW_WORDS = 8
PAYLOAD_MASK = (1 << 56) - 1

TABLE, BLOCK, ENTRY, SLOT, ARRAY, LEAF, GROUP, RECORD, NUMBER, MEMORY, STORAGE, HELD, LENT, MOVING = range(1, 15)
KIND_NAMES = (
    *("absent", "TABLE", "BLOCK", "ENTRY", "SLOT", "ARRAY", "LEAF", "GROUP", "RECORD", "NUMBER"),
    *("MEMORY", "STORAGE", "HELD", "LENT", "MOVING"),
)

_crc8 = crcmod.mkCrcFun(0x12F, initCrc=0xFF, rev=False, xorOut=0xFF)


def _tables() -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]], int]:
    """Build 16-bit lookup tables from crcmod's answers for single bits: a CRC is affine in its input."""
    zero = _crc8(bytes(15))

    def chunk_tables(bit_crc: list[int]) -> list[NDArray[np.uint8]]:
        tables = []
        for start in range(0, 64, 16):
            table = np.zeros(1, np.uint8)
            for bit in bit_crc[start : start + 16]:
                table = np.concatenate([table, table ^ np.uint8(bit)])
            tables.append(table)
        return tables

    key_bits = [_crc8((1 << bit).to_bytes(8, "little") + bytes(7)) ^ zero for bit in range(64)]
    # The CRC byte of a word enters as itself, so that a sound word has the syndrome of its key alone.
    word_bits = [1 << bit for bit in range(8)]
    word_bits += [_crc8(bytes(8) + (1 << bit).to_bytes(7, "little")) ^ zero for bit in range(56)]
    return chunk_tables(key_bits), chunk_tables(word_bits), zero


_KEY_ARRAYS, _WORD_ARRAYS, _ZERO = _tables()
_K0, _K1, _K2, _K3 = (bytes(t) for t in _KEY_ARRAYS)
_W0, _W1, _W2, _W3 = (bytes(t) for t in _WORD_ARRAYS)


def place(structure: int, region: int, index: int) -> int:
    """Return the place number of one word; see the table of structures in docs/format.md."""
    return structure << 56 | region << 40 | index


def _syndrome(word: int, where: int) -> int:
    key = where * PLACE_FACTOR & U64
    return (
        _K0[key & 0xFFFF] ^ _K1[key >> 16 & 0xFFFF] ^ _K2[key >> 32 & 0xFFFF] ^ _K3[key >> 48]
        ^ _W0[word & 0xFFFF] ^ _W1[word >> 16 & 0xFFFF] ^ _W2[word >> 32 & 0xFFFF] ^ _W3[word >> 48] ^ _ZERO
    )  # fmt: skip


def seal(payload: int, where: int) -> int:
    """Return the word that holds a payload of 56 bits at a place; raises DamagedError for a number that has become another."""
    if payload >> 56:
        raise DamagedError(f"a counter would become {payload}: what it counts or the counter itself is damaged; see what check finds")
    word = payload << 8
    return word | _syndrome(word, where)


def is_sealed(word: int, where: int) -> bool:
    """Tell whether a word is sound at this place; the absent word 0 is not."""
    return word != 0 and _syndrome(word, where) == 0


def unseal(word: int, where: int, structure: str, offset: int) -> int:
    """Return the payload of a sealed word that must be present.

    Raises DamagedError that names the structure and its byte offset.
    """
    if _syndrome(word, where):
        damaged(structure, offset, word, "checksum does not match its place")
    return word >> 8


def pointer(kind: int, value: int, where: int) -> int:
    """Return a sealed word of a kind."""
    return seal(kind << VALUE_BITS | value, where)


def open_pointer(word: int, kind: int, where: int, limit: int, structure: str, offset: int) -> int:
    """Return the value of a sealed word that must be of one kind and below a limit; raises DamagedError."""
    payload = unseal(word, where, structure, offset)
    if payload >> VALUE_BITS != kind:
        damaged(structure, offset, word, f"is not of kind {KIND_NAMES[kind]}")
    value = payload & VALUE_MASK
    if value >= limit:
        damaged(structure, offset, word, f"value {value} is past the limit {limit}")
    return value


def peek(word: int, kind: int, where: int) -> int:
    """Return the value of a sound word of a kind, -1 for any other word: for short cuts that leave errors to the general way."""
    return -1 if word >> 60 != kind or _syndrome(word, where) else word >> 8 & VALUE_MASK


def damaged(structure: str, offset: int, word: int, what: str) -> NoReturn:
    """Raise DamagedError in the one form that all structures share."""
    raise DamagedError(f"{structure} at 0x{offset:x}: 0x{word:016x} {what}")


def syndrome_array(words: Words, places: Words) -> NDArray[np.uint8]:
    """Return, per word, 0 where it is sound at its place; the absent word 0 is treated like any other."""
    if words.size <= _FEW_WORDS:
        few = [_syndrome(each, where) for each, where in zip(words.ravel().tolist(), places.ravel().tolist(), strict=True)]
        return np.array(few, np.uint8).reshape(words.shape)
    out: NDArray[np.uint8] = np.full(words.shape, _ZERO, np.uint8)
    keys = places * np.uint64(PLACE_FACTOR)
    for source, tables in ((keys, _KEY_ARRAYS), (words, _WORD_ARRAYS)):
        # four strided 16-bit views of the words; the files are little-endian, and so are the hosts we run on
        parts = np.ascontiguousarray(source).view("<u2").reshape(*source.shape, 4)
        for part, table in enumerate(tables):
            out ^= table[parts[..., part]]
    return out


def seal_array(payloads: Words, places: Words) -> Words:
    """Return sealed words for arrays of payloads and places of equal shape."""
    words = payloads << np.uint64(8)
    return words | syndrome_array(words, places)


def unseal_array(words: Words, places: Words, structure: str, offsets: Words) -> Words:
    """Return the payloads of words that must all be present; offsets are their byte offsets, for the message."""
    bad = syndrome_array(words, places) != 0
    if bad.any():
        first = int(np.flatnonzero(bad.ravel())[0])
        damaged(structure, int(offsets.ravel()[first]), int(words.ravel()[first]), "checksum does not match its place")
    return words >> np.uint64(8)


def places_array(structure: int, region: int, indexes: NDArray[np.integer]) -> Words:
    """Return place numbers for an array of indexes."""
    return indexes.astype(np.uint64) | np.uint64(structure << 56 | region << 40)
