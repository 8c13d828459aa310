"""Headers in two copies, blocks 0 and 1 of every format: encode, choose the one in force, reject field by field.

A header is one structure with a magic, a version, a block size, a generation and a CRC-32C of itself; the rest of its block is zero.
Of two sound copies the one with the higher generation counts (docs/format.md, section 3).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedError, FormatError
from .checksum import crc32c
from .identify import identify
from .store import PAGE

COPIES = (0, 1)
_OF_THE_FORMAT = ("magic", "version", "block_size", "reserved", "crc")


@dataclass(frozen=True)
class HeaderFormat:
    """One kind of header: its structure, and the rules that its numbers must keep.

    `check(numbers, where)` raises DamagedError for fields that contradict each other; `what` names such a file, with its article.
    """

    dtype: np.dtype[np.void]
    magic: bytes
    version: int
    what: str
    check: Callable[[dict[str, int], str], None]

    def encode(self, fields: Mapping[str, Any]) -> bytes:
        """Return the block that holds a header copy; texts are str, UUIDs 16 bytes."""
        record = np.zeros(1, self.dtype)
        row = record[0]
        row["magic"], row["version"], row["block_size"] = self.magic, self.version, PAGE
        for name, value in fields.items():
            row[name] = np.void(value) if isinstance(value, bytes) else value.encode() if isinstance(value, str) else value
        row["crc"] = crc32c(record.tobytes())
        return record.tobytes().ljust(PAGE, b"\0")

    def decode(self, block: bytes, where: str) -> dict[str, Any]:
        """Return the fields of one copy.

        Raises FormatError for another magic or version, DamagedError for a wrong checksum or fields that contradict each other.
        """
        record = np.frombuffer(block, self.dtype, 1)[0]
        if bytes(record["magic"]) != self.magic:
            raise FormatError(f"{where}: not {self.what} (magic {block[:8]!r})")
        version = int(record["version"])
        if version != self.version:
            raise FormatError(f"{where}: format version {version}; this nvmtool knows version {self.version}")
        bare = record.copy()
        bare["crc"] = 0
        if crc32c(bare.tobytes()) != int(record["crc"]):
            raise DamagedError(f"{where}: header checksum 0x{int(record['crc']):08x} is wrong")
        if any(block[self.dtype.itemsize : PAGE]):
            raise DamagedError(f"{where}: header is followed by bytes that are not zero")
        if int(record["block_size"]) != PAGE:
            raise FormatError(f"{where}: block size {int(record['block_size'])}; this nvmtool knows {PAGE}")
        fields = {name: self._value(record, name, where) for name in self.dtype.names or () if name not in _OF_THE_FORMAT}
        self.check({name: value for name, value in fields.items() if isinstance(value, int)}, where)
        return fields

    def _value(self, record: np.void, name: str, where: str) -> int | str | bytes:
        kind = self.dtype[name].kind
        if kind == "u":
            return int(record[name])
        if kind == "V":
            return bytes(record[name])
        try:
            return bytes(record[name]).decode()
        except UnicodeDecodeError:
            raise DamagedError(f"{where}: header field {name} is not UTF-8") from None

    def choose(self, first: bytes, second: bytes, path: Path) -> tuple[dict[str, Any], int, list[str]]:
        """Return the fields in force, which copy they are of, and what is wrong with the other one.

        Raises the first copy's error when neither is sound.
        """
        found: list[tuple[dict[str, Any], int]] = []
        errors: list[FormatError | DamagedError] = []
        for copy, block in enumerate((first, second)):
            try:
                found.append((self.decode(block, f"{path}: header copy {'AB'[copy]}"), copy))
            except (FormatError, DamagedError) as error:
                errors.append(error)
        if not found:
            damaged = [error for error in errors if isinstance(error, DamagedError)]
            if not damaged and not any(self.magic in block[:8] for block in (first, second)):
                other = identify(first + second)
                raise FormatError(f"{path}: not {self.what}" + (f", but {other}" if other else ""))
            raise (damaged or errors)[0]
        fields, copy = max(found, key=lambda item: item[0]["generation"])
        return fields, copy, [str(error) for error in errors]

    def read(self, path: Path, fd: int) -> dict[str, Any]:
        """Return the fields in force of an open file; raises FormatError or DamagedError."""
        both = os.pread(fd, 2 * PAGE, 0).ljust(2 * PAGE, b"\0")
        return self.choose(both[:PAGE], both[PAGE:], path)[0]
