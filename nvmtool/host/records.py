"""The records of a host's file: its pools and VMs, in tables of fixed size."""

from __future__ import annotations

import re
import time
import uuid as uuids
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DamagedError, ExistsError, NoSpaceError, NotFoundError, UsageError
from ..media import word
from ..media.record import NAME_BYTES, Record
from . import layout as lay

if TYPE_CHECKING:
    from ..media.journal import Journal

ROOT_POOL = "root"
DEFAULT_SHARES = 1000
MAX_SHARES = 1 << 20
_UUID_BYTES = 21
# Names become file names.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool: `parent` is the number of its parent, -1 for the root; `limit_pages` 0 is none."""

    number: int
    name: str
    parent: int
    reservation_pages: int
    limit_pages: int
    shares: int
    created: int


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM. Numbers are pages of 4 KiB.

    `granted_pages` of memory are guaranteed while it is not off: at first as much as there was, in the end its reservation (T7). Its page
    frames below `cursor` belong to its client node, as its saved map says; `saved_pages` of them are in memory (`recount`: perhaps fewer).
    `limit_pages` 0 is none.
    """

    number: int
    name: str
    uuid: bytes
    pool: int
    state: int
    memory_pages: int
    reservation_pages: int
    limit_pages: int
    shares: int
    granted_pages: int
    cursor: int
    saved_pages: int
    recount: int
    created: int

    @property
    def state_name(self) -> str:
        """The state as people call it."""
        return lay.STATE_NAMES[self.state]

    @property
    def is_off(self) -> bool:
        """Whether it has neither memory nor swap."""
        return self.state == lay.OFF

    @property
    def most_pages(self) -> int:
        """The most memory that it may be granted."""
        return min(self.memory_pages, self.limit_pages) if self.limit_pages else self.memory_pages


class Records:
    """A table of records. Changes join the open transaction."""

    def __init__(self, journal: Journal, dtype: np.dtype[np.void], structure: int, *, start: int, most: int, noun: str) -> None:
        """Stand on the table that begins at block `start`."""
        self.journal = journal
        self.noun = noun
        self.label = f"{noun} record"
        self.words_per_record = dtype.itemsize // 8
        self.fields = {name: int(dtype.fields[name][1]) // 8 for name in dtype.names or ()} if dtype.fields is not None else {}
        self._structure = structure
        self._base = start * lay.WORDS_PER_PAGE
        self._most = most

    def place(self, number: int, index: int) -> int:
        """Return the place of a word of a record."""
        return word.place(self._structure, 0, number * self.words_per_record + index)

    def __iter__(self) -> Iterator[Record]:
        """Yield the records in use in the order of their numbers."""
        for number in np.flatnonzero(self._first_words()).tolist():
            yield self.get(number)

    def get(self, number: int) -> Record:
        """Return the record with this number."""
        return Record(self, number, self._base + number * self.words_per_record)

    def is_used(self, number: int) -> bool:
        """Tell whether there is a record with this number."""
        return 0 <= number < self._most and self.journal.words[self._base + number * self.words_per_record] != 0

    def find(self, name: str) -> Record | None:
        """Return the record with this name, or None; raises DamagedError."""
        return next((record for record in self if record.name == name), None)

    def require(self, name: str) -> Record:
        """Return the record with this name; raises NotFoundError."""
        record = self.find(name)
        if record is None:
            raise NotFoundError(f"{self.journal.store.path.parent}: no {self.noun} {name!r}")
        return record

    def create(self, name: str, values: dict[str, int]) -> Record:
        """Fill a free record; raises UsageError for the name, ExistsError or NoSpaceError."""
        check_name(self.noun, name)
        if self.find(name) is not None:
            raise ExistsError(f"{self.journal.store.path.parent}: {self.noun} {name!r} exists already")
        free = np.flatnonzero(self._first_words() == 0)
        if not len(free):
            raise NoSpaceError(f"{self.journal.store.path.parent}: has {self._most} {self.noun}s already")
        record = self.get(int(free[0]))
        record.id = record.number + 1
        record.name = name
        for field, value in values.items():
            record.put(field, value)
        return record

    def put_uuid(self, record: Record, uuid: bytes) -> None:
        """Change the UUID of a record."""
        index = self.fields["uuid"]
        padded = uuid.ljust(_UUID_BYTES, b"\0")
        for position in range(_UUID_BYTES // 7):
            payload = int.from_bytes(padded[position * 7 : position * 7 + 7], "little")
            where = self.place(record.number, index + position)
            self.journal.set_word(record.base + index + position, word.seal(payload, where))

    def get_uuid(self, record: Record) -> bytes:
        """Return the UUID of a record; raises DamagedError."""
        index, raw = self.fields["uuid"], b""
        for position in range(index, index + _UUID_BYTES // 7):
            at = record.base + position
            where = self.place(record.number, position)
            raw += word.unseal(self.journal.words[at], where, f"{self.label} {record.number} field uuid", at * 8).to_bytes(7, "little")
        return raw[:16]

    def _first_words(self) -> word.Words:
        return self.journal.array[self._base : self._base + self._most * self.words_per_record : self.words_per_record]


def pool_of(record: Record) -> Pool:
    """Return the values of a pool's record; raises DamagedError."""
    _require_id(record)
    values = {name: record.get(name) for name in ("reservation_pages", "limit_pages", "shares", "created")}
    _check_pages(record, values, ("reservation_pages", "limit_pages"))
    parent = record.get("parent") - 1
    if parent >= lay.MAX_POOLS or parent == record.number:
        raise DamagedError(f"pool record {record.number} at 0x{record.base * 8:x}: parent {parent} is out of range")
    return Pool(number=record.number, name=_name_of(record), parent=parent, **values)


def vm_of(records: Records, record: Record) -> Vm:
    """Return the values of a VM's record; raises DamagedError."""
    _require_id(record)
    pages = ("memory_pages", "reservation_pages", "limit_pages", "granted_pages", "cursor", "saved_pages")
    values: dict[str, Any] = {name: record.get(name) for name in (*pages, "pool", "state", "shares", "recount", "created")}
    _check_pages(record, values, pages)
    memory = values["memory_pages"]
    rules = (
        ("memory_pages", memory > 0),
        ("reservation_pages", values["reservation_pages"] <= memory),
        ("granted_pages", values["granted_pages"] <= memory),
        ("cursor", values["cursor"] <= memory),
        ("saved_pages", values["saved_pages"] <= values["cursor"]),
        ("state", values["state"] < len(lay.STATE_NAMES)),
        ("pool", values["pool"] < lay.MAX_POOLS),
    )
    for field, holds in rules:
        if not holds:
            raise DamagedError(f"VM record {record.number} at 0x{record.base * 8:x}: {field} is {values[field]}, out of range")
    return Vm(number=record.number, name=_name_of(record), uuid=records.get_uuid(record), **values)


def new_vm(records: Records, name: str, *, pool: int, memory: int, reservation: int, limit: int, shares: int) -> Vm:
    """Fill a record for a VM that is off; sizes in pages."""
    values = {
        "pool": pool,
        "state": lay.OFF,
        "memory_pages": memory,
        "reservation_pages": reservation,
        "limit_pages": limit,
        "shares": shares,
        "granted_pages": 0,
        "cursor": 0,
        "saved_pages": 0,
        "recount": 0,
        "created": time.time_ns() // 1000,
    }
    record = records.create(name, values)
    records.put_uuid(record, uuids.uuid4().bytes)
    return vm_of(records, record)


def new_pool(records: Records, name: str, *, parent: int, reservation: int, limit: int, shares: int) -> Pool:
    """Fill a record for a pool; sizes in pages."""
    created = time.time_ns() // 1000
    values = {"parent": parent + 1, "reservation_pages": reservation, "limit_pages": limit, "shares": shares, "created": created}
    return pool_of(records.create(name, values))


def check_name(noun: str, name: str) -> None:
    """Raise UsageError for a name that no pool or VM may have."""
    if not _NAME.fullmatch(name) or len(name) > NAME_BYTES:
        raise UsageError(f"{noun} name {name!r}: 1 to {NAME_BYTES} letters, digits, '.', '_' and '-', not beginning with '.' or '-'")


def check_shares(shares: int) -> None:
    """Raise UsageError for shares that nobody may have."""
    if not 0 < shares <= MAX_SHARES:
        raise UsageError(f"shares {shares}: must be from 1 to {MAX_SHARES}")


def _name_of(record: Record) -> str:
    name = record.name
    if not _NAME.fullmatch(name):  # it becomes part of a path
        raise DamagedError(f"record {record.number} at 0x{record.base * 8:x}: name {name!r} is out of range")
    return name


def _require_id(record: Record) -> None:
    if record.id != record.number + 1:
        raise DamagedError(f"record {record.number} at 0x{record.base * 8:x}: its id is {record.id}")


def _check_pages(record: Record, values: dict[str, Any], fields: tuple[str, ...]) -> None:
    for field in fields:
        if values[field] > lay.MAX_PAGES:
            raise DamagedError(f"record {record.number} at 0x{record.base * 8:x}: {field} is {values[field]}, out of range")
