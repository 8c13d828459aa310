"""Whole sessions from a shell, with real processes: a VM runs on a swap file while it is defragmented, on each kind of file system."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvmtool.media.pagefile import page_buffer
from nvmtool.swap.create import create_swap
from nvmtool.swap.reservation import create_reservation
from nvmtool.swap.swapfile import SwapFile

MIB = 1 << 20
NVMTOOL = [sys.executable, "-m", "nvmtool"]
MEMORY = 48 * MIB


def nvmtool(*arguments: object, code: int = 0) -> dict[str, Any]:
    done = subprocess.run([*NVMTOOL, *map(str, arguments), "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout) if done.stdout else {"error": done.stderr}


@contextmanager
def running_vm(path: Path, *options: object) -> Iterator[subprocess.Popen[str]]:
    """Run a VM until the block ends; then it must end in order, with nothing wrong."""
    command = [*NVMTOOL, "swap", "run", str(path), "--json", "--verify", *map(str, options)]
    vm = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield vm
        vm.terminate()
        out, _ = vm.communicate(timeout=60)
    finally:
        vm.kill()
    report = json.loads(out)
    assert (vm.returncode, report["errors"], report["still_in_memory"]) == (0, 0, 0), report
    assert report["swap_ins"] > 0


def wait_until_sparse(path: Path) -> None:
    """Wait until the VM has brought so many pages in that many storage blocks would not be needed."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        info = nvmtool("swap", "info", path)
        if info["blocks_allocated"] > 2 * info["blocks_optimal"]:
            return
        time.sleep(0.2)
    pytest.fail("the VM never made the file sparse")


def storage(*paths: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in paths)


def test_a_swap_file_is_defragmented_while_its_vm_runs_and_nothing_is_lost(ext4_folder: Path) -> None:
    run_and_defragment(ext4_folder, reserved=False)


def test_so_is_one_with_a_reservation_on_each_file_system(folder: Path) -> None:
    run_and_defragment(folder, reserved=True)


def run_and_defragment(folder: Path, *, reserved: bool) -> None:
    path, pool, stamps = folder / "vm.vswp", folder / "pool.rsv", folder / "vm.stamps"
    backing = []
    if reserved:
        nvmtool("reservation", "create", pool, "--size", MEMORY)
        backing = ["--reservation", pool]
    nvmtool("swap", "create", path, "--memory", MEMORY, *backing)
    nvmtool("swap", "run", path, "--resident", "8M", "--workload", "sweep", "--ops", MEMORY // 4096, "--stamps", stamps)
    files = [path, pool] if reserved else [path]
    before = storage(*files)
    with running_vm(path, "--resident", "36M", "--workload", "uniform", "--stamps", stamps) as vm:
        wait_until_sparse(path)
        results = [nvmtool("defrag", path)]
        while not results[-1]["complete"] and len(results) < 5:
            results.append(nvmtool("defrag", path))
        result = results[-1]
        assert vm.poll() is None
        assert all(each["live"] for each in results)
        assert result["complete"], results
        assert result["blocks_after"] - result["blocks_optimal"] <= 1
        assert results[0]["pages_moved"] > 0
        if reserved:  # what is released comes home: together they have what they had
            assert abs(before - storage(*files)) <= MIB
        else:
            assert storage(*files) <= before - sum(each["bytes_released"] for each in results) + 4 * MIB
        assert (found := nvmtool("swap", "check", path))["clean"], found
        held = nvmtool("swap", "run", path, "--resident", "8M", "--ops", 1, code=6)
        assert str(vm.pid) in held["error"]
    verified = nvmtool("swap", "run", path, "--resident", "8M", "--ops", 0, "--verify", "--stamps", stamps)
    assert (verified["verified_pages"], verified["errors"]) == (MEMORY // 4096, 0)
    idle = nvmtool("defrag", path)
    assert idle["blocks_after"] == idle["blocks_optimal"] == MEMORY // MIB
    assert nvmtool("swap", "check", path)["clean"]
    if reserved:
        assert nvmtool("reservation", "check", pool)["clean"]
        assert nvmtool("reservation", "info", pool)["lent_bytes"] == MEMORY
        nvmtool("swap", "delete", path)
        assert nvmtool("reservation", "info", pool)["held_bytes"] == MEMORY


def test_two_vms_on_one_reservation_defragmented_at_once_never_have_more_than_was_promised(clone_or_allocate_folder: Path) -> None:
    folder = clone_or_allocate_folder
    pool = folder / "pool.rsv"
    nvmtool("reservation", "create", pool, "--size", 2 * MEMORY)
    paths = [folder / f"vm{number}.vswp" for number in (1, 2)]
    for path in paths:
        nvmtool("swap", "create", path, "--memory", MEMORY, "--reservation", pool)
        nvmtool("swap", "run", path, "--resident", "8M", "--workload", "sweep", "--ops", MEMORY // 4096)
    assert nvmtool("swap", "create", folder / "vm3.vswp", "--memory", MIB, "--reservation", pool, code=8)["error"]
    before = storage(pool, *paths)
    with running_vm(paths[0], "--resident", "36M"), running_vm(paths[1], "--resident", "36M", "--workload", "zipf"):
        wait_until_sparse(paths[0])
        helpers = [subprocess.Popen([*NVMTOOL, "defrag", str(path), "--quiet"]) for path in paths]
        assert [helper.wait(timeout=60) for helper in helpers] == [0, 0]
    assert nvmtool("reservation", "check", pool)["clean"]
    assert abs(storage(pool, *paths) - before) <= MIB


def test_promised_vms_swap_on_a_file_system_that_is_full(clone_or_allocate_folder: Path) -> None:
    folder, rng = clone_or_allocate_folder, random.Random(5)
    pool, ballast, paths = folder / "pool.rsv", folder / "ballast", [folder / "vm1.vswp", folder / "vm2.vswp"]
    create_reservation(pool, 16 * MIB, 64 << 10)
    for path in paths:
        create_swap(path, memory_bytes=8 * MIB, reservation=pool)
    pages = [row.data for row in page_buffer(2048)]
    swapped: list[set[int]] = [set(), set()]
    with ExitStack() as stack:
        swaps = [stack.enter_context(SwapFile.open(path, writable=True)) for path in paths]
        fill_up(ballast)
        stack.callback(ballast.unlink)
        for _ in range(60):
            which = rng.randrange(2)
            swap, inside = swaps[which], swapped[which]
            out = [frame for frame in rng.sample(range(2048), 700) if frame not in inside]
            swap.swap_out(np.array(out, np.int64), pages[: len(out)])
            leaving = rng.sample(sorted(inside | set(out)), (len(inside) + len(out)) // 3)
            swap.forget(np.array(leaving, np.int64))
            swap.commit()
            swapped[which] = (inside | set(out)) - set(leaving)
    for path in paths:
        assert nvmtool("swap", "check", path)["clean"]
    assert nvmtool("reservation", "check", pool)["clean"]


def fill_up(path: Path) -> None:
    """Leave not one block free."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
                    os.fsync(file.fileno())
