"""kill -9 of the server: what was flushed is there, and serving again works at once."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from .conftest import Served, need, run


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_loses_nothing_that_was_flushed(seed: int, served: Served) -> None:
    """fio notes which writes were completed, each followed by a flush: all but the last, whose flush may not have been, must be there."""
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
    again = ("--rw=randwrite", "--size=48m", "--verify_state_load=1", "--verify_only", "--iodepth=1", "--verify_fatal=0", "--verify=crc32c")
    assert state.stat().st_size
    output, _ = served.fio(*again, f"--randseed={seed}", verify=False).communicate(timeout=120)
    lost = set(re.findall(r"verify: .* offset (\d+)", output))
    assert len(lost) <= 1, output
    assert "READ: " in output
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
