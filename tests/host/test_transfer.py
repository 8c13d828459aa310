"""Raw memory in and out, byte for byte."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from nvmtool.errors import NoSpaceError, NotFoundError, RefusedError, UsageError
from nvmtool.host.create import create_vm
from nvmtool.host.host import Host
from nvmtool.host.power import power_off, power_on, settle
from nvmtool.host.reclaim import reclaim
from nvmtool.host.sharing import share
from nvmtool.host.suspend import suspend
from nvmtool.host.transfer import dump, load

from .ground import PAGE, make_host, memory_of, require_sound

PAGES = 256


def _raw(path: Path, seed: int) -> bytes:
    rng = random.Random(seed)
    data = b"".join(rng.choice([bytes(PAGE), rng.randbytes(PAGE), b"\0" * 4095 + b"\1", b"same" * 1024]) for _ in range(PAGES))
    path.write_bytes(data)
    return data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A host of 256 pages with VM a of as many."""
    return make_host(tmp_path, vms={"a": PAGES})


def test_what_is_loaded_comes_back_to_the_byte_and_zeros_take_no_memory(path: Path, tmp_path: Path) -> None:
    data = _raw(tmp_path / "raw", 1)
    zeros = sum(data[at : at + PAGE] == bytes(PAGE) for at in range(0, len(data), PAGE))
    with Host.open(path, writable=True) as host:
        found = load(host, "a", tmp_path / "raw")
        assert (found.data_pages, found.zero_pages) == (PAGES - zeros, zeros)
        assert host.frames.free_pages == host.nram - found.data_pages
        assert dump(host, "a", tmp_path / "out") == found.data_pages * PAGE
        assert (tmp_path / "out").read_bytes() == data
        assert (tmp_path / "out").stat().st_blocks * 512 <= found.data_pages * PAGE + 8 * PAGE
        again = _raw(tmp_path / "raw", 2)
        load(host, "a", tmp_path / "raw")
        assert memory_of(host, "a") == again
    require_sound(path)


def test_what_does_not_fit_is_swapped_and_comes_back_the_same(tmp_path: Path) -> None:
    path = make_host(tmp_path, ram=96)
    data = _raw(tmp_path / "raw", 3)
    with Host.open(path, writable=True) as host:
        create_vm(host, "a", memory_bytes=PAGES * PAGE)
        power_on(host, "a")
        settle(host, "a")
        load(host, "a", tmp_path / "raw")
        assert memory_of(host, "a") == data
        share(host)
        reclaim(host, 20)
        assert memory_of(host, "a") == data
        suspend(host, "a")
        assert memory_of(host, "a") == data
        again = bytes(PAGES * PAGE)
        (tmp_path / "raw").write_bytes(again)
        with pytest.raises(RefusedError, match="is suspended; power it on first"):
            load(host, "a", tmp_path / "raw")
    require_sound(path)


def test_loading_zeros_over_swapped_pages_forgets_them(tmp_path: Path) -> None:
    path = make_host(tmp_path, vms={"a": 64})
    with Host.open(path, writable=True) as host:
        (tmp_path / "raw").write_bytes(random.Random(1).randbytes(64 * PAGE))
        load(host, "a", tmp_path / "raw")
        settle(host, "a")
        reclaim(host, 64)
        (tmp_path / "raw").write_bytes(bytes(64 * PAGE))
        load(host, "a", tmp_path / "raw")
        assert memory_of(host, "a") == bytes(64 * PAGE)
    require_sound(path)


@pytest.mark.parametrize("size", [0, 1, PAGES * PAGE - 1, PAGES * PAGE + 1, PAGES * PAGE + PAGE])
def test_a_dump_of_another_size_is_refused_and_nothing_changes(size: int, path: Path, tmp_path: Path) -> None:
    data = _raw(tmp_path / "raw", 1)
    with Host.open(path, writable=True) as host:
        load(host, "a", tmp_path / "raw")
        (tmp_path / "odd").write_bytes(bytes(size))
        with pytest.raises(UsageError, match=f"has {size} bytes, the memory of VM a has {PAGES * PAGE}"):
            load(host, "a", tmp_path / "odd")
        with pytest.raises(NotFoundError):
            load(host, "a", tmp_path / "none")
        assert memory_of(host, "a") == data


def test_a_dump_reaches_a_slow_pipe_whole(path: Path, tmp_path: Path) -> None:
    data = _raw(tmp_path / "raw", 5)
    with Host.open(path, writable=True) as host:
        load(host, "a", tmp_path / "raw")
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["dd", f"if={tmp_path}/pipe", f"of={tmp_path}/out", "bs=1000", "status=none"]) as reader:
        subprocess.run([sys.executable, "-m", "nvmtool", "vm", "dump", "a", tmp_path / "pipe", "--host", path], check=True, timeout=60)
        assert reader.wait(60) == 0
    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "pipe").is_fifo()


def test_a_vm_that_is_off_has_no_memory_to_dump(path: Path, tmp_path: Path) -> None:
    with Host.open(path, writable=True) as host:
        power_off(host, "a")
        with pytest.raises(RefusedError, match="VM a: is off"):
            dump(host, "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_device_that_takes_nothing_is_named(path: Path) -> None:
    with Host.open(path, writable=True) as host, pytest.raises(NoSpaceError, match="/dev/full: No space left"):
        dump(host, "a", "/dev/full")
