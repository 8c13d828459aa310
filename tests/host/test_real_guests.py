"""Memory of real Linux guests: loaded, shared, suspended, restarted, resumed, dumped, and the same to the byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from nvmtool.host.accounting import account
from nvmtool.host.create import create_vm, init_host
from nvmtool.host.host import Host
from nvmtool.host.power import power_on
from nvmtool.host.sharing import share
from nvmtool.host.suspend import restart, resume, suspend
from nvmtool.host.transfer import dump, load
from tests.guest.guest import MIB, Guest

pytestmark = pytest.mark.usefixtures("guests")


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_real_guests_share_and_come_back_from_a_restart_to_the_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Guest(work="hot:16M"), Guest(work="cold:16M")
    try:
        first.start()
        second.start()
        for guest, name in ((first, "one"), (second, "two")):
            guest.wait_ready()
            guest.dump(tmp_path / f"{name}.raw")
    finally:
        first.end()
        second.end()
    sums = {name: _sum(tmp_path / f"{name}.raw") for name in ("one", "two")}
    init_host(tmp_path / "host", ram_bytes=256 * MIB)
    with Host.open(tmp_path / "host", writable=True) as host:
        for name in sums:
            create_vm(host, name, memory_bytes=first.memory_bytes)
            power_on(host, name)
            load(host, name, tmp_path / f"{name}.raw")
        before = account(host)
        shared = share(host)
        in_use = before.capacity_pages - before.free_pages
        with capsys.disabled():
            print(f"\n{shared.frames_saved:,} of {in_use:,} frames saved, {shared.frames_saved / in_use:.1%}: {dict(shared.saved_by_vm)}")
        # Two guests of one kernel hold its text and read-only data twice.
        assert shared.frames_saved > 1000
        assert account(host).free_pages == before.free_pages + shared.frames_saved
        for name in sums:
            suspend(host, name)
    with Host.open(tmp_path / "host", writable=True) as host:
        restart(host)
    with Host.open(tmp_path / "host", writable=True) as host:
        for name in reversed(sums):
            resume(host, name)
        after = account(host)
        assert (after.difference_pages, after.refs_difference) == (0, 0)
        assert after.free_pages == before.free_pages + shared.frames_saved
        for name in sums:
            dump(host, name, tmp_path / f"{name}.after")
    assert {name: _sum(tmp_path / f"{name}.after") for name in sums} == sums
