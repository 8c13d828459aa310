"""The guests that other tests stand on: they hold what they say, and their memory can be taken."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from .guest import MIB, Guest, GuestError

pytestmark = pytest.mark.usefixtures("guests")


@pytest.mark.parametrize("in_file", [True, False])
def test_a_dump_is_the_memory_of_a_guest_that_goes_on(in_file: bool, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    with Guest(work="hot:8M,cold:8M", memory_file=tmp_path / "memory" if in_file else None) as guest:
        before = guest.verify()
        guest.dump(dump)
        after = guest.verify()
        assert dump.stat().st_size == guest.memory_bytes == 128 * MIB
        assert (before.errors, after.errors) == (0, 0)
        assert before.cold == after.cold
        assert after.passes > before.passes
    contents = dump.read_bytes()
    assert b"Linux version 6" in contents
    assert b"HOME=/\0" in contents


def test_a_shell_stays_when_what_it_left_running_ends() -> None:
    with Guest(work="shell") as guest:
        guest.shell("(sleep 0.1; : >/ended) >/dev/null 2>&1 & true")
        time.sleep(2)
        assert guest.shell("ls /ended").strip() == "/ended"


def test_a_guest_that_has_gone_is_explained() -> None:
    with Guest(work="shell") as guest:
        with pytest.raises(GuestError, match=r"(?s)QEMU's exit status is 0: .*Kernel panic"):
            guest.shell("echo c >/proc/sysrq-trigger")
        with pytest.raises(GuestError, match="exit status is 0"):
            guest.shell("true")
