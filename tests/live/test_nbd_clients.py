"""Real clients on a served region: what they write they read, whatever is done to the image meanwhile."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from .conftest import BLOCK, MIB, Served, finish, need, run


def random_file(path: Path, size: int, *, holes: bool = False) -> Path:
    rng = random.Random(size)
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            if holes and start // MIB % 3 == 1:
                continue
            file.seek(start)
            file.write(rng.randbytes(MIB))
        file.truncate(size)
    return path


@pytest.mark.parametrize("pattern", ["randwrite", "write"])
def test_fio_verifies_while_snapshots_and_purges_go_on(pattern: str, served: Served) -> None:
    run("nbdcopy", "--flush", random_file(served.folder / "before.raw", 32 * MIB), served.uri("vm1"))
    served.tool("snapshot", "create", served.image, "before")
    fio = served.fio(f"--rw={pattern}", "--size=32m", "--loops=2", "--fsync=64")
    done, purged = 0, 0
    while fio.poll() is None and done < 6:
        facts = served.json("snapshot", "create", served.image, f"s{done}")
        assert facts["created"] == [f"s{done}"]
        purged += served.json("purge", served.image, "--mode", "virtblock")["blocks_purged"]
        if done % 2:
            served.tool("snapshot", "delete", served.image, f"s{done - 1}")
        done += 1
        time.sleep(0.1)
    finish(fio)
    purged += served.json("purge", served.image, "--mode", "virtblock")["blocks_purged"]
    assert done and purged >= 8192
    served.check()
    assert served.stop() == 0
    served.check()


def test_fio_with_large_unaligned_requests_of_several_jobs(served: Served) -> None:
    options = ("--rw=randwrite", "--bsrange=512-1m", "--blockalign=512", "--size=16m", "--numjobs=2", "--offset_increment=32m")
    fio = served.fio(*options)
    served.tool("snapshot", "create", served.image, "s")
    finish(fio)


def test_nbdinfo_lists_exports_and_maps_holes(served: Served) -> None:
    need("nbdinfo", "qemu-io")
    run("qemu-io", "-f", "raw", "-c", "write -P 7 1M 2M", "-c", "write -P 8 10M 4k", served.uri("vm1"))
    served.tool("snapshot", "create", served.image, "monday")
    run("qemu-io", "-f", "raw", "-c", "discard 1M 1M", "-c", "write -z -u 10M 4k", "-c", "flush", served.uri("vm1"))
    exports = {each["export-name"]: each for each in json.loads(run("nbdinfo", "--list", "--json", served.uri()))["exports"]}
    assert set(exports) == {"vm1", "vm1@monday"}
    assert exports["vm1"]["can_multi_conn"] and not exports["vm1"]["is_read_only"]
    assert exports["vm1@monday"]["is_read_only"]
    assert exports["vm1"]["block_size_preferred"] == BLOCK
    assert exports["vm1"]["export-size"] == 64 * MIB

    def data(export: str) -> list[tuple[int, int]]:
        extents = json.loads(run("nbdinfo", "--map", "--json", served.uri(export)))
        return [(each["offset"], each["length"]) for each in extents if each["type"] == 0]

    assert data("vm1@monday") == [(MIB, 2 * MIB), (10 * MIB, BLOCK)]
    assert data("vm1") == [(2 * MIB, MIB)]


def test_nbdcopy_in_and_out_is_exact_and_keeps_holes(served: Served, tmp_path: Path) -> None:
    source = random_file(tmp_path / "source.raw", 64 * MIB, holes=True)
    run("nbdcopy", "--flush", source, served.uri("vm1"))
    run("nbdcopy", served.uri("vm1"), tmp_path / "copy.raw")
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()
    active = served.json("info", served.image)["regions"][0]["active_bytes"]
    assert active == sum(MIB for start in range(64) if start % 3 != 1)
    served.tool("snapshot", "create", served.image, "monday")
    run("nbdcopy", "--destination-is-zero", random_file(tmp_path / "other.raw", 32 * MIB), served.uri("vm1"))
    served.tool("purge", served.image, "--mode", "virtblock")
    run("nbdcopy", served.uri("vm1@monday"), tmp_path / "monday.raw")
    assert (tmp_path / "monday.raw").read_bytes() == source.read_bytes()


def test_qemu_img_converts_and_compares_both_ways(served: Served, tmp_path: Path) -> None:
    source = random_file(tmp_path / "source.raw", 64 * MIB, holes=True)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, tmp_path / "source.qcow2")
    run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", tmp_path / "source.qcow2", served.uri("vm1"))
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", served.uri("vm1"), tmp_path / "source.qcow2")
    served.tool("snapshot", "create", served.image, "monday")
    run("qemu-io", "-f", "raw", "-c", "write -P 1 0 8M", served.uri("vm1"))
    assert served.json("purge", served.image, "--mode", "pointer-elimination")["blocks_purged"] > 1000
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", served.uri("vm1@monday"), tmp_path / "monday.qcow2")
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", tmp_path / "monday.qcow2", source)


def test_writing_through_one_connection_is_seen_and_flushed_by_another(served: Served) -> None:
    need("qemu-io")
    run("qemu-io", "-t", "writeback", "-f", "raw", "-c", "write -P 3 5M 64k", served.uri("vm1"))
    run("qemu-io", "-f", "raw", "-c", "read -P 3 5M 64k", "-c", "flush", served.uri("vm1"))
    assert served.stop(9) == -9
    served.start()
    run("qemu-io", "-f", "raw", "-c", "read -P 3 5M 64k", served.uri("vm1"))
