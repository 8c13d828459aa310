"""Each rule of a swap file, broken by hand: it is found, mended where that is provable, and else nothing is changed."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nvmtool.errors import BusyError, DamagedError
from nvmtool.media import sysio, word
from nvmtool.media.journal import LOG_RECORD, Journal
from nvmtool.media.store import FileStore
from nvmtool.swap import layout as lay
from nvmtool.swap.check import SwapCheckResult, check_swap
from nvmtool.swap.frames import slot_word, storage_words
from nvmtool.swap.swapfile import SwapFile

from .guest import PAGE, SMALL_BLOCK, Guest

if TYPE_CHECKING:
    from pathlib import Path

FRAMES = 600


class Damaged:
    """A closed swap file with 600 swapped frames in slots of the same number, whose words can be overwritten."""

    def __init__(self, folder: Path) -> None:
        guest = Guest(folder / "vm.swap", frames=700)
        guest.out(range(FRAMES))
        guest.close()
        self.guest, self.path, self.fields = guest, guest.path, guest.swap.fields
        self.data_offset = guest.swap.data_offset

    def write(self, offset: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def flip(self, offset: int) -> None:
        with self.path.open("rb") as file:
            file.seek(offset)
            self.write(offset, bytes([file.read(1)[0] ^ 0x40]))

    def frame_offset(self, frame: int) -> int:
        return self.fields["frame_start"] * PAGE + frame * 8

    def storage_offset(self, block: int) -> int:
        return self.fields["storage_start"] * PAGE + block * 8

    def set_count(self, block: int, used: int, *, present: bool = True) -> None:
        self.write(self.storage_offset(block), storage_words(np.array([block]), np.array([used]), np.array([present])).tobytes())

    def allocate(self, block: int) -> None:
        with self.path.open("r+b") as file:
            assert sysio.allocate(file.fileno(), self.data_offset + block * SMALL_BLOCK, SMALL_BLOCK)

    def punch(self, first_slot: int, nslots: int) -> None:
        with self.path.open("r+b") as file:
            assert sysio.punch_hole(file.fileno(), self.data_offset + first_slot * PAGE, nslots * PAGE)

    def digest(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def assert_mended(self) -> SwapCheckResult:
        """Find, without a change; repair; find nothing, and every page as it was."""
        before = self.digest()
        found = check_swap(self.path)
        assert not found.clean
        assert self.digest() == before
        result = check_swap(self.path, repair=True)
        assert result.clean, result.findings
        assert result.repaired == len(found.findings)
        assert check_swap(self.path).findings == []
        self.guest.verify()
        self.guest.open()
        self.guest.close()
        return found

    def assert_refused(self) -> SwapCheckResult:
        """Find, and refuse to repair: the file stays byte for byte."""
        before = self.digest()
        result = check_swap(self.path, repair=True)
        assert not result.clean
        assert result.repaired == 0
        assert self.digest() == before
        return result


@pytest.fixture
def damaged(tmp_path: Path) -> Damaged:
    made = Damaged(tmp_path)
    assert check_swap(made.path) == SwapCheckResult(True, [], 0, 0, FRAMES, 0, 100, "")
    return made


@pytest.mark.parametrize("copy", [0, 1])
def test_a_damaged_header_copy_is_written_again(copy: int, damaged: Damaged) -> None:
    damaged.flip(copy * PAGE + 40)
    (finding,) = damaged.assert_mended().findings
    assert (finding.structure, finding.where) == ("header", f"block {copy}")


def test_two_damaged_header_copies_are_not_opened(damaged: Damaged) -> None:
    damaged.flip(40)
    damaged.flip(PAGE + 40)
    with pytest.raises(DamagedError, match="header"):
        check_swap(damaged.path, repair=True)


@pytest.mark.parametrize("value", [None, 2, 1 << 50])
def test_a_damaged_root_word_is_mended(value: int | None, damaged: Damaged) -> None:
    if value is None:
        damaged.flip(2 * PAGE + 3)
    else:
        damaged.write(2 * PAGE, word.seal(value, word.place(lay.SWAP_ROOT_PLACE, 0, 0)).to_bytes(8, "little"))
    (finding,) = damaged.assert_mended().findings
    assert finding.structure == "root word"


@pytest.mark.parametrize("area", ["root block", "log", "frame words", "storage words"])
def test_words_that_nobody_uses_must_be_0(area: str, damaged: Damaged) -> None:
    offset = {
        "root block": 2 * PAGE + 8 * 40,
        "log": damaged.fields["log_start"] * PAGE + 8 * 7,
        "frame words": damaged.frame_offset(700),
        "storage words": damaged.storage_offset(damaged.fields["nblocks"]),
    }[area]
    damaged.write(offset, b"\7" * 8)
    (finding,) = damaged.assert_mended().findings
    assert (finding.structure, finding.where) == (area, f"0x{offset:x}")


def test_a_frame_word_that_is_damaged_is_named_and_never_guessed(damaged: Damaged) -> None:
    damaged.flip(damaged.frame_offset(33) + 4)
    findings = damaged.assert_refused().findings
    assert findings[0].structure == "frame word"
    assert "frame 33" in findings[0].where
    with pytest.raises(DamagedError, match="frame word 33"):
        SwapFile.open(damaged.path, writable=True)


def test_a_frame_word_moved_to_another_frame_is_found(damaged: Damaged) -> None:
    damaged.write(damaged.frame_offset(650), slot_word(5, 5).to_bytes(8, "little"))
    assert "checksum does not match its place" in damaged.assert_refused().findings[0].what


@pytest.mark.parametrize("kind", [word.MEMORY, word.BLOCK, word.STORAGE, 0, 15])
def test_a_sealed_frame_word_of_another_kind_or_value_is_found(kind: int, damaged: Damaged) -> None:
    place = word.place(lay.FRAME_PLACE, 0, 650)
    damaged.write(damaged.frame_offset(650), word.pointer(kind, 77, place).to_bytes(8, "little"))
    assert "names neither memory nor" in damaged.assert_refused().findings[0].what


@pytest.mark.parametrize("slot", ["end", 1 << 51])
def test_a_slot_past_the_end_is_found(slot: int | str, damaged: Damaged) -> None:
    number = damaged.guest.swap.nslots if slot == "end" else int(slot)
    damaged.write(damaged.frame_offset(650), slot_word(650, number).to_bytes(8, "little"))
    assert f"one of {damaged.guest.swap.nslots} slots" in damaged.assert_refused().findings[0].what


def test_two_frames_in_one_slot_are_both_named(damaged: Damaged) -> None:
    damaged.write(damaged.frame_offset(40), slot_word(40, 7).to_bytes(8, "little"))
    (finding,) = [each for each in damaged.assert_refused().findings if each.structure == "slot"]
    assert finding.where == "slot 7"
    assert "frame 7" in finding.what
    assert "frame 40" in finding.what


def test_any_number_of_frames_in_one_slot_takes_one_finding(damaged: Damaged) -> None:
    for frame in range(500):
        damaged.write(damaged.frame_offset(frame), slot_word(frame, 0).to_bytes(8, "little"))
    (finding,) = [each for each in damaged.assert_refused().findings if each.structure == "slot"]
    assert finding.what == "is named by frame 0 and by frame 1, and by 498 more"


def test_many_findings_of_one_kind_are_counted_not_listed(damaged: Damaged) -> None:
    for frame in range(300):
        damaged.flip(damaged.frame_offset(frame) + 2)
    findings = [each for each in damaged.assert_refused().findings if each.structure == "frame word"]
    assert len(findings) == 101
    assert findings[-1].what == "200 more like these"


@pytest.mark.parametrize("used", [0, 3, 15])
def test_a_wrong_count_is_mended_although_no_vm_would_open_the_file(used: int, damaged: Damaged) -> None:
    damaged.set_count(4, used)
    with pytest.raises(DamagedError, match="storage block 4"):
        SwapFile.open(damaged.path, writable=True)
    (finding,) = damaged.assert_mended().findings
    assert finding.what == f"counts {used} used slots, frames name 16"


@pytest.mark.parametrize("used", [1, 9])
def test_a_count_of_slots_that_no_frame_names_is_not_mended(used: int, damaged: Damaged) -> None:
    damaged.allocate(39)
    damaged.set_count(39, used)
    finding = damaged.assert_refused().findings[0]
    assert finding.what == f"counts {used} used slots, frames name 0"


def test_a_lost_frame_word_is_found_and_its_page_is_not_given_up(damaged: Damaged) -> None:
    damaged.write(damaged.frame_offset(40), bytes(8))
    assert "used slots, frames name" in damaged.assert_refused().findings[0].what


def test_a_damaged_storage_word_is_mended(damaged: Damaged) -> None:
    damaged.flip(damaged.storage_offset(4) + 1)
    damaged.write(damaged.storage_offset(5), word.pointer(word.STORAGE, 18, word.place(lay.STORAGE_PLACE, 0, 5)).to_bytes(8, "little"))
    assert [finding.structure for finding in damaged.assert_mended().findings] == ["storage word"] * 2


def test_a_block_that_says_it_is_absent_is_mended_when_its_pages_are_there(damaged: Damaged) -> None:
    damaged.set_count(4, 0, present=False)
    (finding,) = damaged.assert_mended().findings
    assert finding.what == "says there is no storage, frames name 16 of its slots"


def test_pages_in_a_hole_are_an_error_that_names_slot_and_frame(damaged: Damaged) -> None:
    damaged.punch(67, 2)
    (finding,) = damaged.assert_refused().findings
    assert (finding.severity, finding.where) == ("error", "storage block 4")
    assert finding.what == "2 of its used slots have no data, the first is slot 67 of frame 67"


def test_pages_in_storage_that_was_never_written_are_an_error(damaged: Damaged) -> None:
    damaged.punch(64, 16)
    damaged.allocate(4)
    assert "16 of its used slots have no data" in damaged.assert_refused().findings[0].what


def test_an_absent_block_without_storage_is_not_mended(damaged: Damaged) -> None:
    damaged.set_count(4, 0, present=False)
    damaged.punch(64, 16)
    assert len(damaged.assert_refused().findings) == 2


def test_holes_among_free_slots_are_fine(damaged: Damaged) -> None:
    damaged.guest.open()
    damaged.guest.bring_in(range(64, 70))
    damaged.guest.close()
    damaged.punch(64, 6)
    assert check_swap(damaged.path).clean


def test_storage_that_no_page_needs_is_a_leak_and_given_back(damaged: Damaged) -> None:
    damaged.allocate(40)
    damaged.allocate(42)
    before = damaged.path.stat().st_blocks
    found = damaged.assert_mended()
    assert found.leaked_blocks == 2
    assert [finding.severity for finding in found.findings] == ["leak", "leak"]
    assert before - damaged.path.stat().st_blocks == 2 * SMALL_BLOCK // 512


def test_what_a_kill_leaves_is_no_leak(damaged: Damaged) -> None:
    damaged.guest.open()
    damaged.guest.out(range(650, 660))
    damaged.guest.bring_in(range(32))
    damaged.guest.swap.close(commit=False)
    damaged.allocate(42)
    assert check_swap(damaged.path).clean
    with SwapFile.open(damaged.path, writable=True):
        pass
    assert check_swap(damaged.path).clean


def test_beside_a_running_vm_only_words_are_checked_and_repair_names_it(damaged: Damaged) -> None:
    damaged.flip(40)
    damaged.guest.open()
    result = check_swap(damaged.path)
    assert [finding.structure for finding in result.findings] == ["header"]
    assert result.not_compared == "a process has the file open for writing"
    with pytest.raises(BusyError, match="in use by"):
        check_swap(damaged.path, repair=True)
    damaged.guest.close()
    assert check_swap(damaged.path, repair=True).clean


def test_a_clean_file_is_not_touched_by_repair(damaged: Damaged) -> None:
    before, stamp = damaged.digest(), damaged.path.stat().st_mtime_ns
    assert check_swap(damaged.path, repair=True).clean
    assert (damaged.digest(), damaged.path.stat().st_mtime_ns) == (before, stamp)


def test_one_thing_that_cannot_be_mended_leaves_all_as_it_is(damaged: Damaged) -> None:
    damaged.flip(40)
    damaged.set_count(3, 1)
    damaged.write(damaged.frame_offset(40), slot_word(40, 7).to_bytes(8, "little"))
    damaged.assert_refused()


def test_a_log_record_behind_a_damaged_one_is_found(damaged: Damaged) -> None:
    damaged.guest.open()
    damaged.guest.out([650])
    damaged.guest.out([651])
    damaged.guest.out([652])
    damaged.guest.swap.close(commit=False)
    log = damaged.fields["log_start"] * PAGE
    assert damaged.path.read_bytes()[log + 2 * PAGE :].startswith(b"NVMLOGR")
    damaged.flip(log + 2 * PAGE + LOG_RECORD.itemsize + 3)
    with pytest.raises(DamagedError, match=r"log record 1 .* is damaged"):
        check_swap(damaged.path)


def test_records_that_a_writer_appends_meanwhile_are_no_damage(damaged: Damaged) -> None:
    fd = os.open(damaged.path, os.O_RDONLY)
    store = FileStore(damaged.path, fd, damaged.data_offset, writable=False)
    journal = Journal(store, damaged.fields["log_start"], damaged.fields["log_blocks"], writable=False)
    damaged.guest.open()
    for frame in range(650, 656):
        damaged.guest.out([frame])
    journal.require_no_later_record()
    damaged.flip(damaged.fields["log_start"] * PAGE + 3 * PAGE + LOG_RECORD.itemsize + 3)
    with pytest.raises(DamagedError, match="log record 2"):
        journal.require_no_later_record()
    damaged.guest.swap.close(commit=False)
    store.close()
    os.close(fd)


def test_the_tests_file_system_tells_what_has_storage(damaged: Damaged) -> None:
    with damaged.path.open("rb") as file:
        try:
            assert list(sysio.iter_extents(file.fileno(), 0, PAGE))
        except OSError as error:
            assert error.errno == errno.EOPNOTSUPP
            pytest.skip("no FIEMAP here")


def test_any_damaged_byte_of_the_metadata_is_found_and_no_repair_loses_a_page(damaged: Damaged) -> None:
    rng = random.Random(5)
    areas = [
        (0, 3 * PAGE),
        (damaged.fields["log_start"] * PAGE, 8),
        (damaged.fields["log_start"] * PAGE, PAGE),
        (damaged.fields["frame_start"] * PAGE, 705 * 8),
        (damaged.fields["storage_start"] * PAGE, 50 * 8),
        (damaged.fields["storage_start"] * PAGE, damaged.data_offset - damaged.fields["storage_start"] * PAGE),
    ]
    sound = damaged.path.read_bytes()[: damaged.data_offset]
    outcomes = set()
    for _ in range(250):
        start, length = rng.choice(areas)
        offset = start + rng.randrange(length)
        damaged.write(offset, bytes([sound[offset] ^ rng.randrange(1, 256)]))
        try:
            result = check_swap(damaged.path, repair=True)
        except DamagedError as error:
            outcomes.add("not opened")
            assert "log generation" in str(error)
        else:
            assert result.findings, f"0x{offset:x}"
            outcomes.add("mended" if result.clean else "refused")
            if result.clean:
                damaged.guest.verify()
        damaged.write(0, sound)
    assert outcomes == {"not opened", "mended", "refused"}
