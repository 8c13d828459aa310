"""The bytes of a stream: a header, then records of data and holes in ascending order, then the end (docs/format.md, section 15)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import DamagedError
from ..media.checksum import block_crc32c, crc32c
from ..media.header import HeaderFormat
from . import layout as lay

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from numpy.typing import NDArray

MAGIC = b"NVMTSTRM"
VERSION = 1
_NAME = "S64"
HEADER_DTYPE = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("block_size", "<u4"),
        ("generation", "<u8"),
        ("size_blocks", "<u8"),
        ("virtblock", "<u8"),
        ("created", "<u8"),
        ("region", _NAME),
        ("snapshot", _NAME),
        ("base", _NAME),
        ("base_digest", "V16"),
        ("reserved", "<u4"),
        ("crc", "<u4"),
    ]
)
RECORD = np.dtype(
    [("magic", "<u4"), ("kind", "<u4"), ("sequence", "<u8"), ("first", "<u8"), ("count", "<u8"), ("reserved", "<u4"), ("crc", "<u4")]
)
RECORD_MAGIC = 0x444D564E
DATA, HOLE, END = 1, 2, 3
# Of a sealed word: what a snapshot record can keep of a time.
_PAYLOAD_BITS = 56
MOST_BLOCKS = 1024


def _check(fields: dict[str, int], where: str) -> None:
    sound = fields["virtblock"] <= 1 and fields["generation"] == 1 and not fields["created"] >> _PAYLOAD_BITS
    if not sound or not 0 < fields["size_blocks"] <= lay.MAX_REGION_BLOCKS:
        raise DamagedError(f"{where}: header fields contradict each other")


HEADER = HeaderFormat(HEADER_DTYPE, MAGIC, VERSION, "a stream of nvmtool send", _check)


@dataclass(frozen=True)
class StreamHeader:
    """What a stream says of itself; `base` is empty for a full one. Of the base, `base_digest` proves the contents (`digest_of`)."""

    size_blocks: int
    virtblock: int
    created: int
    region: str
    snapshot: str
    base: str
    base_digest: bytes

    def encode(self) -> bytes:
        """Return the header's block."""
        return HEADER.encode({**self.__dict__, "generation": 1})

    @staticmethod
    def decode(block: bytes, where: str) -> StreamHeader:
        """Return what a header's block says; raises FormatError or DamagedError."""
        fields: Mapping[str, Any] = HEADER.decode(block, where)
        return StreamHeader(**{name: value for name, value in fields.items() if name != "generation"})


@dataclass(frozen=True)
class StreamRecord:
    """A run of blocks: `data` is None for holes, else of shape (count, 4096), uint8.

    The end has the number of records in `first`, and that of blocks in `count`.
    """

    kind: int
    first: int
    count: int
    data: NDArray[np.uint8] | None = None


def encode_record(sequence: int, kind: int, first: int, count: int, crcs: NDArray[np.uint32] | None = None) -> bytes:
    """Return a record's head with the checksums of its blocks; its checksum covers both."""
    head = np.zeros(1, RECORD)
    head[0] = (RECORD_MAGIC, kind, sequence, first, count, 0, 0)
    table = b"" if crcs is None else crcs.astype("<u4").tobytes()
    head["crc"] = crc32c(head.tobytes() + table)
    return head.tobytes() + table


def crcs_of(blocks: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the CRC-32C of each block of an array of shape (n, 4096)."""
    checksum = block_crc32c()
    view = blocks.reshape(-1).data
    size = lay.BLOCK_SIZE
    return np.array([checksum(view[start : start + size]) for start in range(0, len(view), size)], np.uint32)


class Source(Protocol):
    """Where the bytes of a stream come from."""

    position: int

    def read(self, count: int) -> memoryview:
        """Return exactly so many bytes, valid until the next call; raises DamagedError where the stream ends before."""

    def at_end(self) -> bool:
        """Tell whether nothing follows."""


def iter_records(source: Source, header: StreamHeader, where: str) -> Iterator[StreamRecord]:
    """Yield the verified records behind a header, the end last; raises DamagedError, which names the byte where it went wrong."""
    behind = sequence = blocks = 0
    while True:
        at = f"{where}: record {sequence} at byte {source.position}"
        raw = bytes(source.read(RECORD.itemsize))
        head = np.frombuffer(raw, RECORD)[0]
        kind, first, count = int(head["kind"]), int(head["first"]), int(head["count"])
        if int(head["magic"]) != RECORD_MAGIC or int(head["sequence"]) != sequence or kind not in (DATA, HOLE, END):
            raise DamagedError(f"{at}: is no record, or not the one that belongs there")
        if kind == DATA and count > MOST_BLOCKS:
            raise DamagedError(f"{at}: holds {count} blocks, at most {MOST_BLOCKS} can be")
        table = bytes(source.read(4 * count)) if kind == DATA else b""
        bare = np.frombuffer(raw, RECORD).copy()
        bare["crc"] = 0
        if crc32c(bare.tobytes() + table) != int(head["crc"]):
            raise DamagedError(f"{at}: checksum 0x{int(head['crc']):08x} is wrong")
        if kind == END:
            if (first, count) != (sequence, blocks):
                raise DamagedError(f"{at}: counts {first} records and {count} blocks; there were {sequence} and {blocks}")
            if not source.at_end():
                raise DamagedError(f"{where}: something follows the end at byte {source.position}")
            yield StreamRecord(END, first, count)
            return
        if not count > 0 or first < behind or first + count > header.size_blocks:
            raise DamagedError(f"{at}: names blocks {first} to {first + count}, after {behind} and of {header.size_blocks}")
        yield StreamRecord(kind, first, count, _data(source, count, table, at, first) if kind == DATA else None)
        behind, sequence, blocks = first + count, sequence + 1, blocks + count


def _data(source: Source, count: int, table: bytes, at: str, first: int) -> NDArray[np.uint8]:
    data = np.frombuffer(source.read(count * lay.BLOCK_SIZE), np.uint8).reshape(-1, lay.BLOCK_SIZE)
    wrong = np.flatnonzero(crcs_of(data) != np.frombuffer(table, "<u4"))
    if len(wrong):
        raise DamagedError(f"{at}: block {first + int(wrong[0])} does not have its checksum")
    return data
