"""Frames of equal content are one frame; a write breaks that exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvmtool.host import layout as lay
from nvmtool.host.accounting import account
from nvmtool.host.host import Host
from nvmtool.host.sharing import share
from nvmtool.media.checksum import block_crc32c

from .ground import PAGE, expected, make_host, memory_of, mpns_of, page_of, require_sound, table_of, write

PAGES = 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A host with VMs a and b, 32 pages each, that hold nothing yet."""
    return make_host(tmp_path, vms={"a": PAGES, "b": PAGES})


def test_equal_frames_become_one_and_are_reported_per_vm_and_in_all(path: Path) -> None:
    a: dict[int, object] = {**dict.fromkeys(range(4), "same"), 4: "common", 5: "a's", 6: 0, 7: 0}
    b: dict[int, object] = {0: "same", 1: "common", 2: "b's", 3: 0}
    with Host.open(path, writable=True) as host:
        write(host, "a", a)
        write(host, "b", b)
        free = host.frames.free_pages
        found = share(host)
        # same: 5 page frames, common: 2, zeros: 3; each keeps one frame.
        assert (found.pages_scanned, found.frames_saved, found.zero_pages) == (12, 4 + 1 + 2, 2)
        assert sum(frames for _, frames in found.saved_by_vm) == 7
        assert host.frames.free_pages == free + 7
        assert sorted(count for kind, count in table_of(host) if kind == lay.SHARED) == [2, 3, 5]
        assert account(host).saved_by_sharing_pages == 7
        assert (memory_of(host, "a"), memory_of(host, "b")) == (expected(a, PAGES), expected(b, PAGES))
        assert share(host).frames_saved == 0
    require_sound(path)


def test_a_write_takes_a_frame_of_its_own_and_the_last_one_keeps_the_shared_frame(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        write(host, "a", {0: "x", 1: "x"})
        write(host, "b", {0: "x"})
        share(host)
        (frame,) = set(mpns_of(host, "a")[:2])
        assert mpns_of(host, "b")[0] == frame
        for name, ppn, left in (("a", 0, 2), ("b", 0, 1)):
            write(host, name, {ppn: f"{name}{ppn}"})
            assert mpns_of(host, name)[ppn] != frame
            assert table_of(host)[frame] == (lay.SHARED, left)
        write(host, "a", {1: "last"})
        assert mpns_of(host, "a")[1] == frame
        assert table_of(host)[frame] == (lay.PRIVATE, host.vm("a").number)
        assert memory_of(host, "a") == expected({0: "a0", 1: "last"}, PAGES)
        assert memory_of(host, "b") == expected({0: "b0"}, PAGES)
    require_sound(path)


def _pages_with_one_checksum() -> tuple[bytes, bytes]:
    """Return two different pages with the same CRC-32C, which is linear: XOR with any page whose difference is a multiple of it."""
    crc = block_crc32c()
    base = page_of("base")
    # Gauss over single-bit changes in the first eight bytes: 64 changes, 32 bits of checksum, so some combination changes nothing.
    rows = []
    for bit in range(64):
        changed = bytearray(base)
        changed[bit // 8] ^= 1 << bit % 8
        rows.append((crc(memoryview(bytes(changed))) ^ crc(memoryview(base)), 1 << bit))
    for pivot in range(32):
        chosen = next((row for row in rows if row[0] >> pivot & 1), None)
        if chosen is not None:
            rows.remove(chosen)
            rows = [(value ^ chosen[0], bits ^ chosen[1]) if value >> pivot & 1 else (value, bits) for value, bits in rows]
    bits = next(bits for value, bits in rows if value == 0 and bits)
    other = bytearray(base)
    for bit in range(64):
        if bits >> bit & 1:
            other[bit // 8] ^= 1 << bit % 8
    assert crc(memoryview(bytes(other))) == crc(memoryview(base))
    return base, bytes(other)


def test_equal_hashes_of_different_pages_share_nothing(path: Path) -> None:
    first, second = _pages_with_one_checksum()
    assert first != second
    with Host.open(path, writable=True) as host:
        write(host, "a", {0: "one", 1: "two"})
        for ppn, data in enumerate((first, second)):
            host.memory.page(mpns_of(host, "a")[ppn])[:] = data
        assert share(host).frames_saved == 0
        assert memory_of(host, "a") == first + second + bytes((PAGES - 2) * PAGE)
    require_sound(path)


def test_sharing_goes_on_among_frames_that_are_shared_already(path: Path) -> None:
    with Host.open(path, writable=True) as host:
        write(host, "a", {0: "x", 1: "x"})
        assert share(host).frames_saved == 1
        write(host, "b", {3: "x", 4: "x"})
        assert share(host).frames_saved == 2
        assert len({*mpns_of(host, "a")[:2], *mpns_of(host, "b")[3:5]}) == 1
    require_sound(path)
