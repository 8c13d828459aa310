"""A helper that copies for a VM: no copy comes late, whoever is stopped, killed or interrupted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nvmtool.errors import RefusedError
from nvmtool.media.imagefile import open_file
from nvmtool.swap.check import check_swap
from nvmtool.swap.defrag import defragment
from nvmtool.swap.interrupts import interrupts_deferred
from nvmtool.swap.moves import Mover
from nvmtool.swap.remote import RemoteMover
from nvmtool.swap.swapfile import SwapFile

from .guest import PAGE, Guest

NVMTOOL = [sys.executable, "-m", "nvmtool"]
NOBODY = 65534

# A helper that is stopped with slots held for it: after its first read, before its first write.
_STOPPED_HELPER = """
import os, signal, sys
from nvmtool.media.pagefile import PageFile
from nvmtool.swap import defrag

class Stopping(PageFile):
    stops = 1

    def write(self, offset, chunks):
        if self.stops:
            self.stops = 0
            os.kill(os.getpid(), signal.SIGSTOP)
        super().write(offset, chunks)

defrag.PageFile = Stopping
defrag.defragment(sys.argv[1])
"""


def sparse_guest(path: Path) -> Guest:
    guest = Guest(path, frames=2048)
    guest.fill(1, share=0.4)
    return guest


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([*NVMTOOL, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_vm_does_not_take_the_slots_that_a_helper_of_a_killed_vm_still_writes_to(tmp_path: Path) -> None:
    path, stamps = tmp_path / "vm.swap", tmp_path / "vm.stamps"
    subprocess.run([*NVMTOOL, "swap", "create", path, "--memory", "32M", "--block-size", "64K", "-q"], check=True)
    run = ["swap", "run", path, "--resident", "24M", "--stamps", stamps, "--verify"]
    assert start(*run, "--ops", 30000).wait() == 0
    vm = start(*run)
    helper = None
    try:
        time.sleep(2)
        helper = subprocess.Popen([sys.executable, "-c", _STOPPED_HELPER, path], stderr=subprocess.PIPE, text=True)
        assert os.WIFSTOPPED(os.waitpid(helper.pid, os.WUNTRACED)[1])
        vm.kill()
        vm.communicate()
        following = start(*run, "--ops", 20000, "--seed", 2)
        time.sleep(1)
        assert following.poll() is None, "it waits"
        helper.send_signal(signal.SIGCONT)
        assert "the VM has gone" in helper.communicate()[1]
        out, err = following.communicate()
        assert (following.returncode, err) == (0, ""), out
        assert check_swap(path).clean
    finally:
        vm.kill()
        if helper is not None:
            helper.kill()


def test_a_vm_that_runs_out_of_slots_waits_for_a_stopped_helper_that_holds_them(tmp_path: Path) -> None:
    path, stamps = tmp_path / "vm.swap", tmp_path / "vm.stamps"
    subprocess.run([*NVMTOOL, "swap", "create", path, "--memory", "32M", "--block-size", "64K", "-q"], check=True)
    run = ["swap", "run", path, "--stamps", stamps, "--verify"]
    assert start(*run, "--resident", "24M", "--ops", 30000).wait() == 0
    vm = start(*run, "--resident", "24M")
    helper = None
    try:
        time.sleep(2)
        helper = subprocess.Popen([sys.executable, "-c", _STOPPED_HELPER, path], stderr=subprocess.PIPE, text=True)
        assert os.WIFSTOPPED(os.waitpid(helper.pid, os.WUNTRACED)[1])
        vm.terminate()  # everything is to be swapped out: more than the slots that nobody holds
        time.sleep(2)
        assert vm.poll() is None
        helper.send_signal(signal.SIGCONT)
        out, err = vm.communicate(timeout=60)
        assert (vm.returncode, err) == (0, ""), out
        helper.wait()
        assert check_swap(path).clean
    finally:
        vm.kill()
        if helper is not None:
            helper.kill()


def test_a_vm_that_ends_lets_its_helper_finish_the_batch(tmp_path: Path) -> None:
    guest = sparse_guest(tmp_path / "vm.swap")
    guest.swap.serve()
    moved = []

    def help_slowly() -> None:
        fd = open_file(guest.path, writable=True)
        with RemoteMover(guest.path, fd) as mover:
            mover.begin()
            moves = mover.plan(50)
            for source, target in zip(moves.sources.tolist(), moves.targets.tolist(), strict=True):
                os.pwrite(fd, os.pread(fd, PAGE, guest.swap.offset_of(source)), guest.swap.offset_of(target))
            os.fsync(fd)
            planned.set()
            time.sleep(0.5)
            moved.append(mover.commit())
        os.close(fd)

    planned = threading.Event()
    helper = threading.Thread(target=help_slowly)
    helper.start()
    while not planned.is_set():
        guest.swap.poll()
    guest.close()
    helper.join()
    assert moved == [50]
    guest.verify()
    assert check_swap(guest.path).clean


def test_planning_again_drops_the_plan_before(tmp_path: Path) -> None:
    guest = sparse_guest(tmp_path / "vm.swap")
    mover = Mover(guest.swap)
    mover.begin()
    for _ in range(3):
        mover.plan(20)
    mover.end()
    assert guest.swap.density.total == guest.swap.used_slots, "no slot stays held"
    guest.close()


def test_interrupts_wait_until_no_copy_is_on_its_way() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        done = True
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_helper_obeys_nobody_but_the_owner_of_the_file(tmp_path: Path) -> None:
    path = sparse_guest(tmp_path / "vm.swap").path  # open for writing, but it serves nobody
    status = path.stat()
    address = f"\0nvmtool-swap-{status.st_dev:x}-{status.st_ino:x}"
    child = os.fork()
    if child == 0:
        os.setuid(NOBODY)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(address)
        listener.listen(1)
        time.sleep(30)
        os._exit(0)
    try:
        while address.replace("\0", "@") not in Path("/proc/net/unix").read_text():
            time.sleep(0.01)
        with pytest.raises(RefusedError, match=f"user {NOBODY} listens"):
            defragment(path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_can_be_opened_again_at_once_when_no_helper_is_there(tmp_path: Path) -> None:
    guest = sparse_guest(tmp_path / "vm.swap")
    guest.close()
    begun = time.monotonic()
    with SwapFile.open(guest.path, writable=True):
        assert time.monotonic() - begun < 1


def test_a_helper_that_comes_right_after_another_is_served(tmp_path: Path) -> None:
    guest = sparse_guest(tmp_path / "vm.swap")
    guest.swap.serve()
    ended = threading.Event()
    results = []

    def help_often() -> None:
        try:
            for _ in range(3):
                fd = open_file(guest.path, writable=True)
                with RemoteMover(guest.path, fd) as mover:
                    results.append(mover.begin())
                os.close(fd)
        finally:
            ended.set()

    threading.Thread(target=help_often).start()
    while not ended.is_set():
        guest.swap.poll()
        time.sleep(0.001)
    assert len(results) == 3
    guest.close()
    guest.verify()


def test_a_vm_whose_name_is_taken_runs_without_defragmentation(tmp_path: Path) -> None:
    guest = sparse_guest(tmp_path / "vm.swap")
    status = guest.path.stat()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as thief:
        thief.bind(f"\0nvmtool-swap-{status.st_dev:x}-{status.st_ino:x}")
        guest.swap.serve()
        assert not any(guest.swap.poll() for _ in range(100))
        guest.close()
    guest.verify()
