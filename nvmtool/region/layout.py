"""The bytes of a device image and a mass store; docs/format.md is the norm, one dtype per structure here."""

from __future__ import annotations

import numpy as np

from ..media.word import place

BLOCK_SIZE = 4096
WORDS_PER_BLOCK = BLOCK_SIZE // 8
TABLE_BITS = 9
TABLE_ENTRIES = 1 << TABLE_BITS
MAX_LEVELS = 4
MAX_REGION_BLOCKS = 1 << TABLE_BITS * MAX_LEVELS

MAGIC = b"NVMTOOL"
MASS_MAGIC = b"NVMMASS"
VERSION = 1

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("block_size", "<u4"),
        ("uuid", "V16"),
        ("mass_uuid", "V16"),
        ("generation", "<u8"),
        ("size_blocks", "<u8"),
        ("log_start", "<u8"),
        ("log_blocks", "<u8"),
        ("count_start", "<u8"),
        ("count_blocks", "<u8"),
        ("group_start", "<u8"),
        ("group_blocks", "<u8"),
        ("data_start", "<u8"),
        ("data_blocks", "<u8"),
        ("created", "<u8"),
        ("mass_path", "S1024"),
        ("reserved", "<u4"),
        ("crc", "<u4"),
    ]
)
assert HEADER.itemsize == 1168

MASS_HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("block_size", "<u4"),
        ("uuid", "V16"),
        ("device_uuid", "V16"),
        ("reserved", "V12"),
        ("crc", "<u4"),
    ]
)
assert MASS_HEADER.itemsize == 64

ROOT = np.dtype(
    [
        ("region_table", "<u8"),
        ("slot_table", "<u8"),
        ("used_slots", "<u8"),
        ("lent_blocks", "<u8"),
        ("nregions", "<u8"),
        ("mass_tag", "<u8"),
        ("mass_tag_before", "<u8"),
        ("lender_tag", "<u8"),
    ]
)
assert ROOT.itemsize == 64

REGION_RECORD = np.dtype(
    [
        ("id", "<u8"),
        ("flags", "<u8"),
        ("size_blocks", "<u8"),
        ("created", "<u8"),
        ("name", "<u8", (9,)),
        ("state", "<u8"),
        ("parent", "<u8"),
        ("root", "<u8"),
        ("array", "<u8"),
        ("next_state", "<u8"),
        ("snapshot_table", "<u8"),
        ("nsnapshots", "<u8"),
        ("mapped", "<u8"),
        ("mapped_purged", "<u8"),
        ("nvm_blocks", "<u8"),
        ("slots", "<u8"),
        ("spare", "<u8", (8,)),
    ]
)
assert REGION_RECORD.itemsize == 256

SNAPSHOT_RECORD = np.dtype(
    [
        ("id", "<u8"),
        ("parent", "<u8"),
        ("root", "<u8"),
        ("array", "<u8"),
        ("created", "<u8"),
        ("mapped", "<u8"),
        ("name", "<u8", (9,)),
        ("spare", "<u8"),
    ]
)
assert SNAPSHOT_RECORD.itemsize == 128

ARRAY_HEADER = np.dtype([("owner", "<u8"), ("next", "<u8"), ("prev", "<u8"), ("live", "<u8")])
assert ARRAY_HEADER.itemsize == 32

VIRTBLOCK_ENTRY = np.dtype([("pointer", "<u8"), ("home", "<u8")])
assert VIRTBLOCK_ENTRY.itemsize == 16

ENTRY_BITS = 8
ENTRIES_PER_ARRAY_BLOCK = 1 << ENTRY_BITS
FIRST_ENTRY = ARRAY_HEADER.itemsize // VIRTBLOCK_ENTRY.itemsize
LIVE_ENTRIES = ENTRIES_PER_ARRAY_BLOCK - FIRST_ENTRY

COUNT_BITS = 20
COUNT_MASK = (1 << COUNT_BITS) - 1
SLOT_LEVELS = 4
MAX_SLOTS = 1 << TABLE_BITS * SLOT_LEVELS
USED_SHIFT = 40
ADDRESS_MASK = (1 << USED_SHIFT) - 1
STATE_BITS = 36

MAX_REGIONS = 512 * (BLOCK_SIZE // REGION_RECORD.itemsize)
MAX_SNAPSHOTS = 512 * (BLOCK_SIZE // SNAPSHOT_RECORD.itemsize)

# Tags of hosts that have blocks as memory are below this.
LENDER_TAGS = 1 << 48

# region flags
VIRTBLOCK_MAPPING = 1
DELETING = 2
CONVERTING = 4
SWEEPING = 8
# in a snapshot's parent word
SNAPSHOT_DELETING = 1 << 51

# structures, the upper byte of a place
TABLE_PLACE = 0x00
ENTRY_PLACE = 0x10
HOME_PLACE = 0x11
ARRAY_PLACE = 0x12
COUNT_PLACE = 0x20
GROUP_PLACE = 0x21
SLOTS_PLACE = 0x30
REGIONS_PLACE = 0x40
REGION_LEAF_PLACE = 0x41
SNAPSHOTS_PLACE = 0x50
SNAPSHOT_LEAF_PLACE = 0x51
ROOT_PLACE = 0x60
MASS_TAG_PLACE = 0x61

HEADER_BLOCKS = (0, 1)
ROOT_BLOCK = 2
LOG_START = 3


def table_place(level: int, region: int, index: int) -> int:
    """Return the place of a page-table entry; index is the logical block >> 9 * (level - 1)."""
    return place(TABLE_PLACE + level, region, index)


def field_index(record: np.dtype[np.void], name: str) -> int:
    """Return which word of a record of words a field is (its first, for an array of words)."""
    fields = record.fields
    assert fields is not None
    return int(fields[name][1]) // 8
