"""The bytes of a swap file and a reservation file; docs/format.md is the norm, one dtype per structure here."""

from __future__ import annotations

import numpy as np

from ..errors import DamagedError
from ..media.header import HeaderFormat
from ..media.journal import MIN_LOG_BLOCKS
from ..media.root import ROOT_BLOCK

PAGE = 4096
WORDS_PER_PAGE = PAGE // 8
LOG_START = ROOT_BLOCK + 1
VERSION = 1

SWAP_HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("block_size", "<u4"),
        ("uuid", "V16"),
        ("reservation_uuid", "V16"),
        ("generation", "<u8"),
        ("nframes", "<u8"),
        ("slots_per_block", "<u8"),
        ("nblocks", "<u8"),
        ("log_start", "<u8"),
        ("log_blocks", "<u8"),
        ("frame_start", "<u8"),
        ("frame_blocks", "<u8"),
        ("storage_start", "<u8"),
        ("storage_blocks", "<u8"),
        ("data_start", "<u8"),
        ("created", "<u8"),
        ("reservation_path", "S1024"),
        ("reserved", "<u4"),
        ("crc", "<u4"),
    ]
)
assert SWAP_HEADER.itemsize == 1176

RESERVATION_HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("block_size", "<u4"),
        ("uuid", "V16"),
        ("generation", "<u8"),
        ("slots_per_block", "<u8"),
        ("log_start", "<u8"),
        ("log_blocks", "<u8"),
        ("lender_start", "<u8"),
        ("lender_blocks", "<u8"),
        ("block_start", "<u8"),
        ("block_blocks", "<u8"),
        ("data_start", "<u8"),
        ("created", "<u8"),
        ("reserved", "<u4"),
        ("crc", "<u4"),
    ]
)
assert RESERVATION_HEADER.itemsize == 120

# `working`: 1 while a process changes the file, so that absent blocks may have storage.
SWAP_ROOT = np.dtype([("working", "<u8")])
RESERVATION_ROOT = np.dtype([("nblocks", "<u8"), ("mechanism", "<u8")])

# One of a reservation's borrowers: a swap file with its promise; path is packed 7 bytes a word.
PATH_WORDS = 59
LENDER_RECORD = np.dtype([("promise", "<u8"), ("uuid", "<u8", (3,)), ("path_bytes", "<u8"), ("path", "<u8", (PATH_WORDS,))])
assert LENDER_RECORD.itemsize == 512
MAX_LENDERS = 2048
MAX_RESERVED_BLOCKS = 1 << 24
# What a file system may need for its own trees while a block moves.
_TREE_PAGES = 256

# structures, the upper byte of a place
FRAME_PLACE = 0x80
STORAGE_PLACE = 0x81
SWAP_ROOT_PLACE = 0x82
LENDER_PLACE = 0x88
RESERVED_PLACE = 0x89
RESERVATION_ROOT_PLACE = 0x8A

MIN_SLOTS_PER_BLOCK = 16
MAX_SLOTS_PER_BLOCK = 4096
MAX_FRAMES = 1 << 32  # 16 TiB
_MAX_LOG_BLOCKS = 512


def swap_areas(nframes: int, slots_per_block: int) -> dict[str, int]:
    """Return the areas of a swap file, in blocks of 4 KiB, and its number of storage blocks.

    There are as many slots as frames, and one storage block more: a page may have to go elsewhere before its own block is free again.
    """
    nblocks = -(-nframes // slots_per_block) + 1
    log_blocks = max(2 * MIN_LOG_BLOCKS, min(nframes // 256, _MAX_LOG_BLOCKS))
    frame_start = LOG_START + log_blocks
    frame_blocks = -(-nframes // WORDS_PER_PAGE)
    storage_start = frame_start + frame_blocks
    storage_blocks = -(-nblocks // WORDS_PER_PAGE)
    # Storage blocks lie on multiples of their size, so that file systems can give them whole extents.
    data_start = -(-(storage_start + storage_blocks) // slots_per_block) * slots_per_block
    return {
        "nblocks": nblocks,
        "log_start": LOG_START,
        "log_blocks": log_blocks,
        "frame_start": frame_start,
        "frame_blocks": frame_blocks,
        "storage_start": storage_start,
        "storage_blocks": storage_blocks,
        "data_start": data_start,
    }


def reservation_areas(slots_per_block: int) -> dict[str, int]:
    """Return the areas of a reservation, in blocks of 4 KiB; the words of blocks that it may get by growing are a hole."""
    log_blocks = 2 * MIN_LOG_BLOCKS
    lender_start = LOG_START + log_blocks
    lender_blocks = MAX_LENDERS * LENDER_RECORD.itemsize // PAGE
    block_start = lender_start + lender_blocks
    block_blocks = MAX_RESERVED_BLOCKS // WORDS_PER_PAGE
    return {
        "log_start": LOG_START,
        "log_blocks": log_blocks,
        "lender_start": lender_start,
        "lender_blocks": lender_blocks,
        "block_start": block_start,
        "block_blocks": block_blocks,
        "data_start": -(-(block_start + block_blocks) // slots_per_block) * slots_per_block,
    }


def headroom_pages(slots_per_block: int) -> int:
    """Return how many pages of storage, past its end, a reservation keeps for moving blocks on a full file system."""
    return slots_per_block + _TREE_PAGES


def is_slots_per_block(number: int) -> bool:
    """Tell whether a storage block may have so many slots: a power of two from 64 KiB to 16 MiB."""
    return MIN_SLOTS_PER_BLOCK <= number <= MAX_SLOTS_PER_BLOCK and number & (number - 1) == 0


def _check_swap(numbers: dict[str, int], where: str) -> None:
    _check_slots(numbers, where)
    if not 0 < numbers["nframes"] <= MAX_FRAMES:
        raise DamagedError(f"{where}: header field nframes is {numbers['nframes']}, out of range")
    _check_areas(numbers, swap_areas(numbers["nframes"], numbers["slots_per_block"]), where)


def _check_reservation(numbers: dict[str, int], where: str) -> None:
    _check_slots(numbers, where)
    _check_areas(numbers, reservation_areas(numbers["slots_per_block"]), where)


def _check_slots(numbers: dict[str, int], where: str) -> None:
    if not is_slots_per_block(numbers["slots_per_block"]):
        raise DamagedError(f"{where}: header field slots_per_block is {numbers['slots_per_block']}, out of range")


def _check_areas(numbers: dict[str, int], areas: dict[str, int], where: str) -> None:
    # The areas follow from the sizes: nothing else was ever written by version 1.
    for name, value in areas.items():
        if numbers[name] != value:
            raise DamagedError(f"{where}: header field {name} is {numbers[name]}, it must be {value}")


SWAP_FORMAT = HeaderFormat(SWAP_HEADER, b"NVMSWAP", VERSION, "a swap file of nvmtool", _check_swap)
RESERVATION_FORMAT = HeaderFormat(RESERVATION_HEADER, b"NVMRSRV", VERSION, "a reservation file", _check_reservation)
