"""A swap file keeps what was swapped out, reuses slots only after a commit, and occupies what it must."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nvmtool.errors import BusyError, DamagedError, ExistsError, FormatError, NoSpaceError, NotFoundError, StorageError, UsageError
from nvmtool.media.pagefile import page_buffer
from nvmtool.swap.check import check_swap
from nvmtool.swap.create import create_swap
from nvmtool.swap.info import swap_info
from nvmtool.swap.swapfile import IN_MEMORY, UNTOUCHED, SwapFile

from .guest import PAGE, SMALL_BLOCK, Guest, page_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path / "vm.swap")


def test_pages_survive_closing_and_come_back_as_they_were(guest: Guest) -> None:
    guest.out(range(0, 900, 3))
    guest.close()
    guest.verify()
    guest.open()
    guest.bring_in(range(0, 900, 6))
    guest.close()
    guest.verify()
    assert check_swap(guest.path).clean


def test_pages_survive_a_process_that_never_closes(guest: Guest) -> None:
    guest.out(range(300))
    guest.verify()
    guest.swap.close(commit=False)
    guest.verify()
    guest.open()
    guest.verify()
    guest.close()
    assert check_swap(guest.path).clean


def test_states_say_slot_memory_or_untouched(guest: Guest) -> None:
    guest.swap.touch(5)
    guest.out([7])
    guest.out([8])
    guest.bring_in([8])
    guest.close()
    with SwapFile.open(guest.path) as reader:
        assert [reader.state_of(frame) for frame in (4, 5, 8)] == [UNTOUCHED, IN_MEMORY, IN_MEMORY]
        assert reader.state_of(7) >= 0
        assert reader.used_slots == 1


def test_a_slot_is_free_only_after_the_commit_that_frees_it(guest: Guest) -> None:
    guest.out(range(16))
    old = guest.swap.state_of(3)
    guest.bring_in([3])
    before = guest.swap.slots.take(1)
    assert old not in before.tolist()
    guest.swap.slots.put_back(before)
    guest.swap.commit()
    taken = guest.swap.slots.take(1).tolist()
    assert taken == [old]
    guest.swap.slots.put_back(np.array(taken))
    guest.close()


def test_a_batch_goes_to_consecutive_slots(guest: Guest) -> None:
    guest.out(range(500, 540))
    states = guest.swap.states_of_range(500, 540)
    assert (np.diff(states) == 1).all()
    guest.close()


def test_free_slots_of_the_fullest_block_are_filled_first(guest: Guest) -> None:
    guest.out(range(64))
    guest.bring_in([1, 2, 3, 4, 5, 20, 21])
    guest.swap.commit()
    guest.out([100, 101])
    assert (guest.swap.states_of_range(100, 102) // guest.swap.slots_per_block).tolist() == [1, 1]
    guest.close()


def test_storage_follows_what_is_swapped(guest: Guest) -> None:
    def allocated() -> int:
        os.sync()
        return guest.path.stat().st_blocks * 512

    empty = allocated()
    assert empty < guest.swap.data_offset + 2 * SMALL_BLOCK
    guest.out(range(320))
    assert allocated() - empty >= 20 * SMALL_BLOCK
    guest.bring_in(range(320))
    guest.close()
    assert allocated() - empty < SMALL_BLOCK
    assert check_swap(guest.path).clean


def test_the_whole_memory_fits(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "vm.swap", frames=64)
    guest.out(range(64))
    assert guest.swap.blocks_allocated == guest.swap.blocks_optimal == 4
    guest.close()
    guest.verify()


def test_what_cannot_be_swapped_is_refused_and_changes_nothing(guest: Guest) -> None:
    guest.out([1])
    page = memoryview(bytearray(PAGE))
    with pytest.raises(UsageError, match="frame 1 is swapped already"):
        guest.swap.swap_out(np.array([0, 1]), [page, page])
    with pytest.raises(NotFoundError, match="frame 2 is not swapped"):
        guest.swap.swap_in(2, page)
    with pytest.raises(NotFoundError):
        guest.swap.forget(np.array([1, 2]))
    with pytest.raises(UsageError):
        guest.swap.touch(1)
    guest.close()
    guest.verify()


def test_a_full_file_system_leaves_pages_in_memory_and_the_file_clean(small_tmpfs: Path) -> None:
    guest = Guest(small_tmpfs / "vm.swap", frames=4096)
    frames = iter(range(4096))
    with pytest.raises(NoSpaceError, match=r"vm\.swap"):
        while True:
            guest.out([next(frames) for _ in range(64)])
    failed = guest.version
    guest.verify()
    assert guest.swap.used_slots == len(guest.swapped) == 64 * (failed - 1)
    # With room again, the same frames go out.
    guest.bring_in(range(128))
    guest.swap.commit()
    guest.out(range(64 * (failed - 1), 64 * failed))
    guest.close()
    guest.verify()
    result = check_swap(guest.path)
    assert result.clean
    assert "does not tell" in result.not_compared


@pytest.mark.parametrize("frames", [1, 16, 17, 511, 512, 513])
def test_odd_sizes_of_memory_work(frames: int, tmp_path: Path) -> None:
    guest = Guest(tmp_path / "vm.swap", frames=frames)
    guest.out(range(frames))
    guest.close()
    guest.verify()
    assert check_swap(guest.path).clean


@pytest.mark.parametrize(
    ("memory", "block"),
    [(0, SMALL_BLOCK), (PAGE + 1, SMALL_BLOCK), (1 << 45, 1 << 20), (1 << 30, 3 << 16), (1 << 30, PAGE), (1 << 30, 1 << 25)],
)
def test_sizes_that_cannot_be_are_refused(memory: int, block: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        create_swap(tmp_path / "vm.swap", memory_bytes=memory, block_bytes=block)
    assert list(tmp_path.iterdir()) == []


def test_create_never_replaces_a_file(guest: Guest) -> None:
    guest.out([1])
    guest.close()
    with pytest.raises(ExistsError):
        create_swap(guest.path, memory_bytes=1 << 20)
    guest.verify()


def test_a_second_writer_is_told_who_has_the_file(guest: Guest) -> None:
    guest.close()
    code = f"""
import sys
from nvmtool.swap.swapfile import SwapFile
with SwapFile.open({str(guest.path)!r}, writable=True):
    print("open", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(BusyError, match=f"vm.swap: in use by process {holder.pid} "):
            SwapFile.open(guest.path, writable=True)
        with SwapFile.open(guest.path) as reader:
            assert f"process {holder.pid} " in swap_info(reader)["in_use_by"]
        assert check_swap(guest.path).not_compared
    finally:
        holder.stdin.close()
        assert holder.wait(30) == 0
        holder.stdout.close()
    with SwapFile.open(guest.path) as reader:
        assert swap_info(reader)["in_use_by"] is None


def test_a_reader_sees_the_last_committed_state_beside_a_writer(guest: Guest) -> None:
    guest.out(range(100))
    guest.bring_in([0])
    with SwapFile.open(guest.path) as reader:
        assert reader.used_slots == 100
        assert reader.state_of(0) >= 0
    guest.swap.commit()
    with SwapFile.open(guest.path) as reader:
        assert reader.used_slots == 99
        assert reader.state_of(0) == IN_MEMORY
    guest.close()


def test_a_check_beside_a_busy_writer_finds_nothing(guest: Guest) -> None:
    for version in range(30):
        guest.out(range(version * 8, version * 8 + 8))
        assert check_swap(guest.path).findings == []
        guest.bring_in([version * 8])
    guest.close()


def _names(path: Path) -> str:
    with pytest.raises((FormatError, DamagedError)) as caught:
        SwapFile.open(path)
    with pytest.raises((FormatError, DamagedError)):
        check_swap(path)
    return str(caught.value)


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "other"
    for content, what in ((b"\0" * 8192, "zeros"), (b"NVMTOOL\0" + b"\1" * 9000, "a device image"), (b"garbage" * 2000, "not a swap file")):
        path.write_bytes(content)
        message = _names(path)
        assert what in message
        assert str(path) in message
    path.write_bytes(bytes(1 << 20))
    subprocess.run(["mkswap", path], check=True, capture_output=True)
    assert "mkswap" in _names(path)


def test_truncated_at_the_edge_of_each_structure_is_named(guest: Guest) -> None:
    guest.out(range(1024))
    guest.close()
    fields = guest.swap.fields
    whole = guest.path.read_bytes()
    edges = [0, 1, 2, *(fields[f"{area}_start"] for area in ("log", "frame", "storage", "data"))]
    for edge in sorted({edge * PAGE for edge in edges} | {len(whole)}, reverse=True):
        for size in (edge, edge - 1, edge - PAGE):
            if 0 <= size < len(whole):
                os.truncate(guest.path, size)
                assert str(guest.path) in _names(guest.path), size


def test_page_contents_of_the_tests_differ() -> None:
    assert len({page_of(frame, version) for frame in range(20) for version in range(20)}) == 400


def test_opening_a_large_file_reads_only_frame_words_that_were_written(tmp_path: Path) -> None:
    path = tmp_path / "vm.swap"
    create_swap(path, memory_bytes=256 << 30)  # 512 MiB of frame words
    with SwapFile.open(path, writable=True) as swap:
        swap.swap_out(np.array([5, swap.nframes - 1]), [row.data for row in page_buffer(2)])
    code = (
        "import sys; from pathlib import Path; from nvmtool.swap.swapfile import SwapFile\n"
        "with SwapFile.open(sys.argv[1], writable=True) as swap:\n"
        "    assert swap.used_slots == 2 and swap.state_of(swap.nframes - 1) >= 0\n"
        "print(next(line.split()[1] for line in Path('/proc/self/status').read_text().splitlines() if 'VmHWM' in line))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 300 << 10


def test_a_pipe_is_refused_at_once_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for writable in (False, True):
        with pytest.raises(StorageError, match="pipe: neither a regular file nor a block device"):
            SwapFile.open(tmp_path / "pipe", writable=writable)


def test_a_vm_waits_for_a_reader_that_holds_up_the_log(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "vm.swap", frames=4096)
    guest.swap.serve()
    reader = SwapFile.open(guest.path)
    leaving = threading.Timer(1.0, reader.close)
    leaving.start()
    rounds = 0
    while leaving.is_alive():
        guest.out(range(2048))
        guest.bring_in(range(2048))
        rounds += 1
    guest.out(range(2048))
    guest.close()
    assert rounds > 1
    guest.verify()
