"""Fail or kill single system calls of real commands through strace's injection."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .commands import launch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .commands import Bench
    from .host_commands import HostBench
    from .swap_commands import SwapBench

_WRITES = ("pwrite64", "pwritev", "pwritev2", "write", "writev", "ftruncate", "fallocate")
_OF_DATA = (*_WRITES, "fdatasync", "fsync", "msync", "linkat", "rename", "renameat", "unlink", "pread64", "preadv", "preadv2", "fcntl")
# Python itself needs these to import what it has not imported yet: they fail once, not from then on.
_OF_PYTHON = ("mmap", "openat", "ioctl", "lseek", "fstat", "newfstatat", "statx", "readlink", "madvise", "access")
CALLS = _OF_DATA + _OF_PYTHON
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)$")
_CURRENT_FOLDER = re.compile(r"AT_FDCWD<[^>]*>")
_OF_HOSTS = ("host.nvh", "host/memory", "volatile/frames", ".map", "/reservation", ".vswp", "host/pools", "host/vms", "host/volatile")
ONCE, ON, KILLED = "once", "from then on", "killed"


@dataclass(frozen=True)
class Point:
    """One system call of a command: its name, its number among those of its thread, and what it was about."""

    call: str
    number: int
    about: str


@dataclass(frozen=True)
class Fault:
    """What happens at a point."""

    point: Point
    mode: str
    error: str = "EIO"

    def expression(self) -> str:
        """Return it as strace wants it."""
        when = f"{self.point.number}+" if self.mode == ON else str(self.point.number)
        what = "signal=KILL" if self.mode == KILLED else f"error={self.error}"
        return f"inject={self.point.call}:{what}:when={when}"

    def __str__(self) -> str:
        return f"{self.point.call} {self.point.number} ({self.point.about}) {self.mode}{'' if self.mode == KILLED else ' ' + self.error}"


def have_strace() -> bool:
    """Tell whether strace is installed."""
    return shutil.which("strace") is not None


def points(bench: Bench | SwapBench | HostBench) -> list[Point]:
    """Run the command under strace without faults; return its calls that are about files of its folder."""
    folder = bench.fresh()
    done = _traced(bench, ["-y", "--seccomp-bpf"], CALLS)
    assert done.returncode == 0, done.stderr
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    for line in (folder / "trace").read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        thread, call, rest = match.groups()
        counts[thread, call] += 1
        about = _subject(rest, folder)
        if about:
            found.append(Point(call, counts[thread, call], about))
    return list(dict.fromkeys(found))


def _subject(rest: str, folder: Path) -> str:
    """Return which file of the folder a traced call is about, or nothing."""
    rest = _CURRENT_FOLDER.sub("AT_FDCWD", rest)
    for name in ("disk.nvm", "disk.mass", "out.raw", "import.raw", ".nvms", "vm.swap", "vm.stamps", "pool.rsv", *_OF_HOSTS):
        if name in rest:
            return name
    return "a file without a name" if f"{folder}/#" in rest or "O_TMPFILE" in rest else "the folder" if '"."' in rest else ""


def faults(every: list[Point]) -> Iterator[Fault]:
    """Yield the faults for each point."""
    for point in every:
        yield Fault(point, KILLED)
        for error in ("EIO", "ENOSPC") if point.call in _WRITES else ("EIO",):
            yield Fault(point, ONCE, error)
            if point.call in _OF_DATA:
                yield Fault(point, ON, error)


def run_fault(bench: Bench | SwapBench | HostBench, fault: Fault) -> tuple[bool, list[str]]:
    """Run the command with a fault; return whether it struck a call of the folder, and what is wrong afterwards."""
    folder = bench.fresh()
    try:
        # With --seccomp-bpf, which is faster, strace 6.1 fails calls but delivers no signals.
        faster = [] if fault.mode == KILLED else ["--seccomp-bpf"]
        done = _traced(bench, ["-y", "-e", fault.expression(), *faster], (fault.point.call,))
    except subprocess.TimeoutExpired:
        return True, ["it hangs"]
    trace = (folder / "trace").read_text(errors="replace")
    killed = done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    first = next((line for line in trace.splitlines() if "(INJECTED)" in line), "")
    struck = killed or bool(_subject(first, folder)) or "/proc/self/fd" in first
    mute = fault.point.call == "write" and fault.mode == ON
    return struck, bench.problems(done, killed, mute=mute) if struck else []


def _traced(bench: Bench | SwapBench | HostBench, options: list[str], calls: tuple[str, ...]) -> subprocess.CompletedProcess[bytes]:
    words = ["strace", "-f", "-qq", "-o", "trace", "-e", f"trace={','.join(calls)}", *options]
    return launch([*words, sys.executable, "-m", "nvmtool", *bench.command.arguments], bench.command, bench.work)
