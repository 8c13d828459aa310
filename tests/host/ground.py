"""Small hosts for tests: what VMs hold, where it is, and killing a process anywhere."""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nvmtool
from nvmtool.errors import NoSpaceError
from nvmtool.host import layout as lay
from nvmtool.host.accounting import account
from nvmtool.host.balance import find_frames
from nvmtool.host.check import check_host
from nvmtool.host.create import create_vm, init_host
from nvmtool.host.host import Host
from nvmtool.host.power import power_on
from nvmtool.host.space import Space
from nvmtool.host.transfer import dump
from nvmtool.region.format import format_device

MIB = 1 << 20
PAGE = lay.PAGE
_SOURCES = str(Path(nvmtool.__file__).parent) + os.sep


def page_of(seed: object) -> bytes:
    """Return the contents that a seed stands for; 0 is zeros."""
    return bytes(PAGE) if seed == 0 else random.Random(str(seed)).randbytes(PAGE)


def make_host(folder: Path, *, ram: int = 256, nvm_bytes: int = 0, vms: Mapping[str, int] | None = None, **terms: Any) -> Path:
    """Make a host with so many pages of RAM and VMs (name: pages) that are on; `terms` go to each VM."""
    path = folder / "host"
    nvm = None
    if nvm_bytes:
        nvm = folder / "disk.nvm"
        format_device(nvm, size_bytes=nvm_bytes, mass=folder / "disk.mass")
    init_host(path, ram_bytes=ram * PAGE, nvm=nvm)
    with Host.open(path, writable=True) as host:
        for name, pages in (vms or {}).items():
            create_vm(host, name, memory_bytes=pages * PAGE, **terms)
            power_on(host, name)
    return path


def write(host: Host, name: str, pages: Mapping[int, object], *, pressed: bool = False) -> None:
    """Write page frames of a running VM, each with the contents that its seed stands for; `pressed` makes room where memory is short."""
    number = host.vm(name).number
    with host.vm_turns([number]), ExitStack() as opened:
        space = Space(host, host.vm_numbered(number))
        opened.push(lambda *error: space.close(in_order=error[0] is None))
        for ppn, seed in pages.items():
            while True:
                try:
                    space.own(ppn)
                    break
                except NoSpaceError:
                    if not pressed:
                        raise
                    space = find_frames(space, 8)
            space.page(ppn)[:] = page_of(seed)


def memory_of(host: Host, name: str) -> bytes:
    """Return all of a VM's memory, through a dump."""
    target = host.path.parent / f".dump-{name}"
    dump(host, name, target)
    data = target.read_bytes()
    target.unlink()
    return data


def expected(pages: Mapping[int, object], npages: int) -> bytes:
    """Return the memory of a VM that holds what the seeds stand for."""
    return b"".join(page_of(pages.get(ppn, 0)) for ppn in range(npages))


def words_of(host: Host, name: str) -> NDArray[np.uint64]:
    """Return the map words of all page frames, the client node's and the VM's own."""
    vm = host.vm(name)
    words = np.zeros(vm.memory_pages, np.uint64)
    if vm.cursor:
        saved = host.saved_map_of(vm)
        words[: vm.cursor] = saved.read(0, vm.cursor)
        saved.close()
    if vm.state in (lay.ON, lay.SUSPENDING, lay.RESUMING):
        vm_map = host.map_of(vm)
        words[vm.cursor :] = vm_map.array[vm.cursor : vm.memory_pages]
        vm_map.close()
    return words


def mpns_of(host: Host, name: str) -> list[int]:
    """Return the machine frame of every page frame, -1 for none."""
    return [(word & ~lay.SHARED_FLAG) - 1 for word in words_of(host, name).tolist()]


def table_of(host: Host) -> list[tuple[int, int]]:
    """Return (kind, owner or count) of every machine frame."""
    mpns = np.arange(host.nram + host.nnvm)
    return list(zip(host.frames.kinds(mpns).tolist(), host.frames.values(mpns).tolist(), strict=True))


def require_sound(path: Path, *, may_leak: bool = False) -> None:
    """Insist on an account with difference 0 and a clean check, as another process would see them.

    Storage that a killed guest was just borrowing may be a leak until its VM's swap file is opened again.
    """
    with Host.open(path) as host:
        found = account(host)
        assert (found.difference_pages, found.refs_difference) == (0, 0), found
        assert sum(node.consumed_pages for node in found.nodes) == found.capacity_pages
        assert found.reserved_pages <= host.nram
        result = check_host(host)
        assert not [each for each in result.findings if not (may_leak and each.severity == "leak")], result.findings


def killed_at(work: Callable[[], object], line: int) -> bool:
    """Run work in a forked process that kills itself (-9) at so many lines of nvmtool's source; False when it ended before.

    `line` counts the lines that the process runs.
    """
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the work failed; its traceback is on stderr"
        return os.WIFSIGNALED(status)
    try:
        left = line

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            if not frame.f_code.co_filename.startswith(_SOURCES):
                return None
            if event == "line":
                left -= 1
                if left <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        work()
        sys.settrace(None)
    except BaseException:  # noqa: BLE001 - a forked child must end here, whatever happened
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def lines_of(work: Callable[[], object]) -> int:
    """Return about how many lines of nvmtool's source work runs, by running it (on something that may change)."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(_SOURCES):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count
