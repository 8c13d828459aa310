"""Sealed words and checksums."""

from __future__ import annotations

import random

import crcmod
import numpy as np
import pytest

from nvmtool.errors import DamagedError
from nvmtool.media import checksum, word

CRC8 = crcmod.mkCrcFun(0x12F, initCrc=0xFF, rev=False, xorOut=0xFF)


def test_seal_is_crcmods_crc8_over_key_and_payload() -> None:
    pick = random.Random(1)
    for _ in range(500):
        payload, where = pick.getrandbits(56), pick.getrandbits(64)
        key = where * word.PLACE_FACTOR % (1 << 64)
        assert word.seal(payload, where) == payload << 8 | CRC8(key.to_bytes(8, "little") + payload.to_bytes(7, "little"))


@pytest.mark.parametrize("count", [1, 5, 2000])
def test_arrays_are_sealed_as_single_words_are(count: int) -> None:
    pick = random.Random(count)
    payloads = [pick.getrandbits(56) for _ in range(count)]
    places = [pick.getrandbits(63) for _ in range(count)]
    sealed = word.seal_array(np.array(payloads, np.uint64), np.array(places, np.uint64))
    assert sealed.tolist() == [word.seal(payload, where) for payload, where in zip(payloads, places, strict=True)]


def test_every_damage_to_one_byte_is_found() -> None:
    where = word.place(1, 7, 12345)
    sealed = word.pointer(word.ENTRY, 0x1234506, where)
    for byte in range(8):
        for value in range(1, 256):
            assert not word.is_sealed(sealed ^ value << 8 * byte, where)


def test_present_words_have_two_bytes_above_the_checksum_so_that_none_becomes_absent() -> None:
    for kind in range(1, 10):
        for value in (1, 255, 256, 1 << 39):
            sealed = word.pointer(kind, value, 0)
            assert sum(byte != 0 for byte in sealed.to_bytes(8, "little")[1:]) >= 2


def test_exchanged_tables_are_noticed() -> None:
    entries = np.arange(512, dtype=np.uint64)
    for other in range(1, 200):
        sealed = word.seal_array(entries + np.uint64(100), entries)
        assert word.syndrome_array(sealed, entries + np.uint64(512 * other)).any()


def test_damage_is_named_with_structure_offset_and_value() -> None:
    with pytest.raises(DamagedError, match=r"count word at 0x2000: 0x0000000000000101"):
        word.unseal(0x101, 1, "count word", 0x2000)


def test_hardware_crc32c_is_crcmods() -> None:
    reference = crcmod.mkCrcFun(0x11EDC6F41, initCrc=0, rev=True, xorOut=0xFFFFFFFF)
    pick = random.Random(2)
    for size in (0, 1, 7, 4096, 70000):
        data = pick.randbytes(size)
        assert checksum.crc32c(data) == checksum.block_crc32c()(data) == reference(data)
