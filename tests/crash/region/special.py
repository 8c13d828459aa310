"""Workloads that no session on a sound image shows: formatting in place, and repairing."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest import mock

from nvmtool.media import word
from nvmtool.region import check
from nvmtool.region import format as formatting
from nvmtool.region import layout as lay
from nvmtool.region.header import choose_header, decode_header
from nvmtool.region.mass import _sealed_tag

from ..recorder import MemoryStore
from ..trace import Recording, Trace
from .bases import base
from .media import MASS, NVM, open_recorded
from .model import BLOCK, digest_of
from .operations import pattern
from .oracle import Oracle

if TYPE_CHECKING:
    from collections.abc import Callable

    Damage = Callable[[bytearray, bytearray], None]

_TAG = 7 << 20


def record_format(name: str, before: bytes) -> Recording:
    """Format in place, as on a block device: nothing opens before the headers, and from then on the image is empty.

    While the two headers are stored, one of them may be torn; check then names it, and formatting again is what the user does.
    """
    origin, trace = base("virtblock"), Trace()
    header = decode_header(origin.image[:BLOCK], "base")
    fd = os.memfd_create("target")
    os.ftruncate(fd, len(before))
    target = SimpleNamespace(path=Path("memory.nvm"), fd=fd, in_place=True, allocate=lambda size, **_: None)
    with mock.patch.object(formatting, "open_store", lambda *_, **__: MemoryStore(trace, before, NVM)):
        formatting._write_image(target, header, _TAG, sparse=False)  # type: ignore[arg-type]
    os.close(fd)
    trace.ack()
    empty = {digest_of({})}
    tolerated = ("does not open", "check: header")
    mass = (origin.mass[: lay.MASS_HEADER.itemsize] + _sealed_tag(_TAG)).ljust(BLOCK, b"\0")
    return Recording(f"format over {name}", {NVM: before, MASS: mass}, trace.events, [empty] * 2, tolerated=tolerated, rules=False)


def formats() -> list[Recording]:
    """Return formats over zeros, over bytes without structure, and over another image."""
    size = len(base("virtblock").image)
    # Another image's header names another mass store, which its own open refuses.
    other = bytearray(base("direct").image)
    header = choose_header(bytes(other[:BLOCK]), bytes(other[BLOCK : 2 * BLOCK]), Path("other"))[0]
    renamed = formatting.encode_header(header.__class__(**{**header.__dict__, "uuid": b"another image..."}))
    other[: 2 * BLOCK] = renamed * 2
    return [
        record_format("zeros", bytes(size)),
        record_format("noise", pattern(500, size // BLOCK)),
        record_format("another image", bytes(other)),
    ]


def record_repair(name: str, mapping: str, damage: Damage) -> Recording:
    """Repair a damaged image: what is read never changes, and a repair after a crash finishes the job."""
    origin, trace = base(mapping), Trace()
    image, mass = bytearray(origin.image), bytearray(origin.mass)
    damage(image, mass)
    files = Oracle()
    files.load(bytes(image), bytes(mass))
    walk = check._walk(files._path, True, files._mass, None)
    assert walk.findings and walk.fixable, (name, walk.findings)
    files.close()
    device = open_recorded(trace, bytes(image), bytes(mass))
    check.apply_fixes(device, walk)
    trace.ack()
    device.close()
    trace.ack()
    allowed = [{digest_of(origin.model)}] * 3
    return Recording(f"{mapping}+repair-{name}", {NVM: bytes(image), MASS: bytes(mass)}, trace.events, allowed)


def repairs(mapping: str) -> list[Recording]:
    """Return repairs of everything that repair claims to mend."""
    return [
        record_repair("counts", mapping, _raise_counts),
        record_repair("header-a", mapping, lambda image, mass: _flip(image, 100)),
        record_repair("header-b", mapping, lambda image, mass: _flip(image, BLOCK + 100)),
        record_repair("unused", mapping, lambda image, mass: _flip(image, lay.LOG_START * BLOCK + 8)),
        record_repair("slots", mapping, _fill_free_slot),
    ]


def _flip(image: bytearray, offset: int) -> None:
    image[offset] ^= 0x55


def _raise_counts(image: bytearray, mass: bytearray) -> None:
    """Let the first three used data blocks count one reference too many, and a free block one."""
    header = decode_header(bytes(image[:BLOCK]), "base")
    done = {"used": 0, "free": 0}
    for index in range(header.data_blocks):
        at = header.count_start * BLOCK + index * 8
        stored = int.from_bytes(image[at : at + 8], "little")
        sort, most = ("used", 3) if stored else ("free", 1)
        kind, count = (stored >> 60, (stored >> 8 & word.VALUE_MASK) + 1) if stored else (word.BLOCK, 1)
        if done[sort] < most and kind == word.BLOCK:
            image[at : at + 8] = word.pointer(kind, count, word.place(lay.COUNT_PLACE, 0, index)).to_bytes(8, "little")
            done[sort] += 1
    at = header.group_start * BLOCK
    stored = int.from_bytes(image[at : at + 8], "little")
    raised = word.pointer(word.GROUP, (stored >> 8 & word.VALUE_MASK) + 1, word.place(lay.GROUP_PLACE, 0, 0))
    image[at : at + 8] = raised.to_bytes(8, "little")


def _fill_free_slot(image: bytearray, mass: bytearray) -> None:
    mass += pattern(502, 2)
