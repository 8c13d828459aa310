"""A short run of the fuzzer of the NBD server; `make fuzz-nbd SEED= SECONDS=` for longer ones."""

from __future__ import annotations

from pathlib import Path

from .conftest import Served
from .nbd_fuzz import finish, fuzz, prepare


def test_hostile_clients_harm_nobody_and_leave_nothing_behind(tmp_path: Path) -> None:
    served = Served(tmp_path)
    try:
        prepare(served)
        done = fuzz(served, 1, lambda steps: steps < 35)
        assert done["rounds of the good client"]
        finish(served)
    finally:
        served.end()
