"""kill -9 of the server: what was flushed is there, and serving again works at once."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from .conftest import Served, finish, need, run


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_loses_nothing_that_was_flushed(seed: int, served: Served) -> None:
    """fio notes in its verify state what was completed; with a flush after each write all of it must be there."""
    need("fio")
    options = ("--rw=randwrite", "--size=48m", "--fsync=1", "--verify_state_save=1", "--iodepth=1", "--do_verify=0", "--verify_backlog=0")
    fio = served.fio(*options, f"--randseed={seed}")
    rng = random.Random(seed)
    time.sleep(0.5 + rng.random())
    served.tool("snapshot", "create", served.image, "s")
    time.sleep(rng.random() / 2)
    assert served.stop(9) == -9
    output, _ = fio.communicate(timeout=60)
    assert fio.returncode != 0, output
    (state,) = Path(served.folder).glob("*verify.state")
    served.check()
    served.start()
    again = ("--rw=randwrite", "--size=48m", "--verify_state_load=1", "--verify_only", "--iodepth=1")
    assert state.stat().st_size
    finish(served.fio(*again, f"--randseed={seed}"))
    assert served.stop() == 0
    served.check()


def test_a_dead_servers_socket_is_taken_over(served: Served) -> None:
    assert served.stop(9) == -9
    assert served.socket.exists()
    served.start()
    need("nbdinfo")
    run("nbdinfo", "--size", served.uri())
    assert served.stop() == 0
    assert not served.socket.exists()
