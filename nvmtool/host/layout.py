"""The bytes of a host's files; docs/format.md is the norm, one dtype per structure here."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np

from ..errors import DamagedError
from ..media.header import HeaderFormat
from ..media.journal import MIN_LOG_BLOCKS
from ..media.record import NAME_WORDS
from ..media.root import ROOT_BLOCK

PAGE = 4096
WORDS_PER_PAGE = PAGE // 8
VERSION = 1

HOST_HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("block_size", "<u4"),
        ("uuid", "V16"),
        ("generation", "<u8"),
        ("ram_pages", "<u8"),
        ("nvm_pages", "<u8"),
        ("log_start", "<u8"),
        ("log_blocks", "<u8"),
        ("pool_start", "<u8"),
        ("pool_blocks", "<u8"),
        ("vm_start", "<u8"),
        ("vm_blocks", "<u8"),
        ("size_blocks", "<u8"),
        ("created", "<u8"),
        ("nvm_path", "S1024"),
        ("reserved", "<u4"),
        ("crc", "<u4"),
    ]
)
assert HOST_HEADER.itemsize == 1152

# `life` rises with each restart of the hypervisor: volatile state of another life means nothing.
HOST_ROOT = np.dtype([("life", "<u8")])

POOL_RECORD = np.dtype(
    [
        ("id", "<u8"),
        ("name", "<u8", (NAME_WORDS,)),
        ("parent", "<u8"),
        ("reservation_pages", "<u8"),
        ("limit_pages", "<u8"),
        ("shares", "<u8"),
        ("created", "<u8"),
        ("spare", "<u8", (17,)),
    ]
)
assert POOL_RECORD.itemsize == 256

VM_RECORD = np.dtype(
    [
        ("id", "<u8"),
        ("name", "<u8", (NAME_WORDS,)),
        ("uuid", "<u8", (3,)),
        ("pool", "<u8"),
        ("state", "<u8"),
        ("memory_pages", "<u8"),
        ("reservation_pages", "<u8"),
        ("limit_pages", "<u8"),
        ("shares", "<u8"),
        ("granted_pages", "<u8"),
        ("cursor", "<u8"),
        ("saved_pages", "<u8"),
        ("recount", "<u8"),
        ("created", "<u8"),
        ("spare", "<u8", (8,)),
    ]
)
assert VM_RECORD.itemsize == 256

# The saved map of a VM: its header, then a sealed word per page frame.
MAP_HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("block_size", "<u4"),
        ("host_uuid", "V16"),
        ("vm_uuid", "V16"),
        ("generation", "<u8"),
        ("nframes", "<u8"),
        ("reserved", "<u4"),
        ("crc", "<u4"),
    ]
)
assert MAP_HEADER.itemsize == 72
MAP_START = 2

# Machine memory: two headers, then the machine frames. `boot` is the running kernel's: after a restart of the machine its memory is gone.
MEMORY_HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("block_size", "<u4"),
        ("host_uuid", "V16"),
        ("boot", "V16"),
        ("generation", "<u8"),
        ("ram_pages", "<u8"),
        ("reserved", "<u4"),
        ("crc", "<u4"),
    ]
)
assert MEMORY_HEADER.itemsize == 72
MEMORY_START = 2

# The first words of volatile/frames, all plain. `working` is 1 while a process changes the table; `suspended` counts the VMs whose saved
# maps name frames.
FRAMES_HEAD = np.dtype(
    [("life", "<u8"), ("working", "<u8"), ("suspended", "<u8"), ("lent_free", "<u8"), ("lent", "<u8"), ("parked", "<u8")]
)
FRAME_GROUP = 1 << 15
GROUP_START = WORDS_PER_PAGE

# The first words of volatile/NUMBER.map. `working` is 1 while a process has the VM. The others are the guest's report and the balloon's.
VM_HEAD = np.dtype(
    [
        ("life", "<u8"),
        ("working", "<u8"),
        ("most_resident", "<u8"),
        ("balloon_target", "<u8"),
        ("balloon", "<u8"),
        ("reported", "<u8"),
        ("unreclaimable", "<u8"),
        ("active_anon", "<u8"),
        ("active_file", "<u8"),
        ("inactive_anon", "<u8"),
        ("inactive_file", "<u8"),
    ]
)
VM_MAP_START = WORDS_PER_PAGE

# structures, the upper byte of a place
HOST_ROOT_PLACE = 0x90
POOL_PLACE = 0x91
VM_PLACE = 0x92
MAP_PLACE = 0x93

MAX_POOLS = 512
MAX_VMS = 8192
MAX_PAGES = 1 << 32  # 16 TiB
_LOG_BLOCKS = 4 * MIN_LOG_BLOCKS
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# states of a VM
OFF, ON, SUSPENDING, SUSPENDED, RESUMING = range(5)
STATE_NAMES = ("off", "on", "suspending", "suspended", "resuming")

# kinds of frame words, the upper byte; the lower seven are the owner's number or a count. A word of 0 is a frame that is free.
FREE, PRIVATE, SHARED, PARKED, HELD_BY_SUSPENDED, LENT_FREE = range(6)
KIND_SHIFT = 56
COUNT_MASK = (1 << KIND_SHIFT) - 1

# map words of running VMs: MPN + 1 and this flag; 0 is a page frame that is not in memory.
SHARED_FLAG = 1 << 62


def host_areas() -> dict[str, int]:
    """Return the areas of a host's file, in blocks of 4 KiB."""
    log_start = ROOT_BLOCK + 1
    pool_start = log_start + _LOG_BLOCKS
    pool_blocks = MAX_POOLS * POOL_RECORD.itemsize // PAGE
    vm_blocks = MAX_VMS * VM_RECORD.itemsize // PAGE
    return {
        "log_start": log_start,
        "log_blocks": _LOG_BLOCKS,
        "pool_start": pool_start,
        "pool_blocks": pool_blocks,
        "vm_start": pool_start + pool_blocks,
        "vm_blocks": vm_blocks,
        "size_blocks": pool_start + pool_blocks + vm_blocks,
    }


def first_frame_word(ram_pages: int) -> int:
    """Return the index of frame 0's word in volatile/frames, behind the head and one counter of free frames per group."""
    return GROUP_START + -(-ngroups_of(ram_pages) // WORDS_PER_PAGE) * WORDS_PER_PAGE


def ngroups_of(ram_pages: int) -> int:
    """Return how many groups the frames of RAM form."""
    return -(-ram_pages // FRAME_GROUP)


def boot_id() -> bytes:
    """Return the running kernel's own number, 16 bytes; another one after each restart of the machine."""
    return uuid.UUID(_BOOT_ID.read_text().strip()).bytes


def _check_host(numbers: dict[str, int], where: str) -> None:
    for name, value in host_areas().items():
        if numbers[name] != value:
            raise DamagedError(f"{where}: header field {name} is {numbers[name]}, it must be {value}")
    _check_pages(numbers["ram_pages"], "ram_pages", where)
    if numbers["nvm_pages"] > MAX_PAGES:
        raise DamagedError(f"{where}: header field nvm_pages is {numbers['nvm_pages']}, out of range")


def _check_map(numbers: dict[str, int], where: str) -> None:
    _check_pages(numbers["nframes"], "nframes", where)


def _check_memory(numbers: dict[str, int], where: str) -> None:
    _check_pages(numbers["ram_pages"], "ram_pages", where)


def _check_pages(number: int, field: str, where: str) -> None:
    if not 0 < number <= MAX_PAGES:
        raise DamagedError(f"{where}: header field {field} is {number}, out of range")


HOST_FORMAT = HeaderFormat(HOST_HEADER, b"NVMHOST", VERSION, "a host of nvmtool", _check_host)
MAP_FORMAT = HeaderFormat(MAP_HEADER, b"NVMVMAP", VERSION, "a saved map of a VM", _check_map)
MEMORY_FORMAT = HeaderFormat(MEMORY_HEADER, b"NVMRAM", VERSION, "machine memory of a host", _check_memory)
