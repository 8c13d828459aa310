"""Memory of a guest's control group given back by the kernel's own choice (cgroup v2, memory.reclaim), where there is such a group."""

from __future__ import annotations

import errno
from pathlib import Path

from ..errors import NotFoundError, StorageError

_ROOT = Path("/sys/fs/cgroup")


def group_of(pid: int) -> Path | None:
    """Return the folder of a process's own cgroup v2 that can reclaim, or None: a group that others share is nobody's own."""
    try:
        lines = (Path("/proc") / str(pid) / "cgroup").read_text().splitlines()
    except OSError as error:
        raise NotFoundError(f"process {pid}: is gone") from error
    for line in lines:
        number, _, rest = line.partition(":")
        place = rest.partition(":")[2]
        if number == "0" and place != "/":
            for root in (_ROOT, _ROOT / "unified"):
                folder = root / place.lstrip("/")
                if (folder / "memory.reclaim").exists() and _processes(folder) == [pid]:
                    return folder
    return None


def reclaim(folder: Path, size_bytes: int) -> int:
    """Ask the kernel to take so much from a group; return how much it took, as the group's own counter says. Raises StorageError."""
    before = int((folder / "memory.current").read_text())
    try:
        (folder / "memory.reclaim").write_text(str(size_bytes))
    except OSError as error:
        # It took less than was asked for.
        if error.errno != errno.EAGAIN:
            raise StorageError(f"{folder}/memory.reclaim: {error.strerror}") from error
    return max(before - int((folder / "memory.current").read_text()), 0)


def _processes(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "cgroup.procs").read_text().split()]
