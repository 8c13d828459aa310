"""The header of a device image: its areas, and what they must be (the two copies are media/header.py's)."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import DamagedError
from ..media.header import HeaderFormat
from ..media.journal import MIN_LOG_BLOCKS
from . import layout as lay

if TYPE_CHECKING:
    from pathlib import Path

_AREAS = ("log", "count", "group", "data")


@dataclass(frozen=True)
class Header:
    """What a header copy says; areas are in blocks."""

    uuid: bytes
    mass_uuid: bytes
    generation: int
    size_blocks: int
    log_start: int
    log_blocks: int
    count_start: int
    count_blocks: int
    group_start: int
    group_blocks: int
    data_start: int
    data_blocks: int
    created: int
    mass_path: str

    @property
    def uuid_text(self) -> str:
        """The image's UUID as people write it."""
        return str(uuid.UUID(bytes=self.uuid))

    def next_generation(self, **changes: object) -> Header:
        """Return the header that follows this one."""
        return replace(self, generation=self.generation + 1, **changes)  # type: ignore[arg-type]


def plan_areas(size_blocks: int) -> dict[str, int]:
    """Return the start and size of each area for an image of that many blocks."""
    log_blocks = max(MIN_LOG_BLOCKS, min(size_blocks // 64, 16384))
    rest = size_blocks - lay.LOG_START - log_blocks
    count_blocks = max(-(-rest // (lay.WORDS_PER_BLOCK + 1)), 1)
    group_blocks = max(-(-rest // (512 * lay.WORDS_PER_BLOCK)), 1)
    count_start = lay.LOG_START + log_blocks
    group_start = count_start + count_blocks
    data_start = group_start + group_blocks
    return {
        "log_start": lay.LOG_START,
        "log_blocks": log_blocks,
        "count_start": count_start,
        "count_blocks": count_blocks,
        "group_start": group_start,
        "group_blocks": group_blocks,
        "data_start": data_start,
        "data_blocks": size_blocks - data_start,
    }


def _check_areas(numbers: dict[str, int], where: str) -> None:
    size = numbers["size_blocks"]
    # The areas follow from the size: nothing else was ever written by version 1.
    for name, value in plan_areas(size).items() if size < 1 << 52 else ():
        if numbers[name] != value:
            raise DamagedError(f"{where}: header field {name} is {numbers[name]}, for {size} blocks it must be {value}")
    if size >= 1 << 40 or numbers["data_blocks"] <= 0:
        raise DamagedError(f"{where}: header field size_blocks is {size}, out of range")


HEADER_FORMAT = HeaderFormat(lay.HEADER, lay.MAGIC, lay.VERSION, "a device image", _check_areas)


def encode_header(header: Header) -> bytes:
    """Return the block that holds a header copy."""
    return HEADER_FORMAT.encode(header.__dict__)


def decode_header(block: bytes, where: str) -> Header:
    """Return what one copy says; raises FormatError or DamagedError."""
    return Header(**HEADER_FORMAT.decode(block, where))


def choose_header(first: bytes, second: bytes, path: Path) -> tuple[Header, int, list[str]]:
    """Return the header in force, which copy it is, and what is wrong with the other one; raises FormatError or DamagedError."""
    fields, copy, wrong = HEADER_FORMAT.choose(first, second, path)
    return Header(**fields), copy, wrong
