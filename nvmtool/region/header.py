"""The two header copies: encode, choose, reject field by field."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, FormatError
from ..media.checksum import crc32c
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


def encode_header(header: Header) -> bytes:
    """Return the block that holds a header copy."""
    record = np.zeros(1, lay.HEADER)
    fields = record[0]
    fields["magic"], fields["version"], fields["block_size"] = lay.MAGIC, lay.VERSION, lay.BLOCK_SIZE
    for name, value in header.__dict__.items():
        fields[name] = np.void(value) if name.endswith("uuid") else value.encode() if name == "mass_path" else value
    fields["crc"] = crc32c(record.tobytes())
    return record.tobytes().ljust(lay.BLOCK_SIZE, b"\0")


def decode_header(block: bytes, where: str) -> Header:
    """Return what one copy says.

    Raises FormatError for another magic or version, DamagedError for a wrong checksum or fields that contradict each other.
    """
    record = np.frombuffer(block, lay.HEADER, 1)[0]
    if bytes(record["magic"]) != lay.MAGIC:
        raise FormatError(f"{where}: not a device image (magic {block[:8]!r})")
    version = int(record["version"])
    if version != lay.VERSION:
        raise FormatError(f"{where}: format version {version}; this nvmtool knows version {lay.VERSION}")
    bare = record.copy()
    bare["crc"] = 0
    if crc32c(bare.tobytes()) != int(record["crc"]):
        raise DamagedError(f"{where}: header checksum 0x{int(record['crc']):08x} is wrong")
    if any(block[lay.HEADER.itemsize : lay.BLOCK_SIZE]):
        raise DamagedError(f"{where}: header is followed by bytes that are not zero")
    if int(record["block_size"]) != lay.BLOCK_SIZE:
        raise FormatError(f"{where}: block size {int(record['block_size'])}; this nvmtool knows {lay.BLOCK_SIZE}")
    numbers = {name: int(record[name]) for name in Header.__dataclass_fields__ if record.dtype[name].kind == "u"}
    _check_areas(numbers, where)
    try:
        mass_path = bytes(record["mass_path"]).decode()
    except UnicodeDecodeError:
        raise DamagedError(f"{where}: header field mass_path is not UTF-8") from None
    return Header(uuid=bytes(record["uuid"]), mass_uuid=bytes(record["mass_uuid"]), mass_path=mass_path, **numbers)


def _check_areas(numbers: dict[str, int], where: str) -> None:
    size = numbers["size_blocks"]
    # The areas follow from the size: nothing else was ever written by version 1.
    for name, value in plan_areas(size).items() if size < 1 << 52 else ():
        if numbers[name] != value:
            raise DamagedError(f"{where}: header field {name} is {numbers[name]}, for {size} blocks it must be {value}")
    if size >= 1 << 40 or numbers["data_blocks"] <= 0:
        raise DamagedError(f"{where}: header field size_blocks is {size}, out of range")


def choose_header(first: bytes, second: bytes, path: Path) -> tuple[Header, int, list[str]]:
    """Return the header in force, which copy it is, and what is wrong with the other one.

    Raises the first copy's error when neither is sound.
    """
    found: list[tuple[Header, int]] = []
    errors: list[FormatError | DamagedError] = []
    for copy, block in enumerate((first, second)):
        try:
            found.append((decode_header(block, f"{path}: header copy {'AB'[copy]}"), copy))
        except (FormatError, DamagedError) as error:
            errors.append(error)
    if not found:
        damaged = [error for error in errors if isinstance(error, DamagedError)]
        if not damaged and not any(lay.MAGIC in block[:8] for block in (first, second)):
            raise FormatError(f"{path}: not a device image")
        raise (damaged or errors)[0]
    header, copy = max(found, key=lambda item: item[0].generation)
    return header, copy, [str(error) for error in errors]
