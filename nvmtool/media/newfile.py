"""New files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ..errors import NoSpaceError
from . import sysio
from .store import translated


class NewFile:
    """A nameless file in the target's folder that `publish` gives its name; killed before that, it leaves nothing behind.

    Only one that replaces a file has a second, hidden name for a moment, `.NAME.PID`, which a kill in just that moment leaves.
    A target that is a block or character device, or a pipe, is opened and written in place.
    """

    def __init__(self, path: Path) -> None:
        """Open the file for writing; raises StorageError or NoSpaceError."""
        self.path = path
        # A link stays what it is: what it points to is replaced.
        self._target = Path(os.path.realpath(path))
        self.in_place = path.exists() and not stat.S_ISREG(path.stat().st_mode)
        self._temporary: Path | None = None
        with translated(path):
            if self.in_place:
                self.fd = os.open(path, os.O_RDWR if self.is_block_device else os.O_WRONLY)
            else:
                self.fd = self._open_nameless()
                if path.exists():
                    os.fchmod(self.fd, stat.S_IMODE(path.stat().st_mode))

    @property
    def is_stream(self) -> bool:
        """Whether this is a pipe or a character device, written from front to back."""
        return self.in_place and not self.is_block_device

    @property
    def is_block_device(self) -> bool:
        """Whether this is a block device."""
        return self.in_place and stat.S_ISBLK(self.path.stat().st_mode)

    def clear(self, size: int) -> None:
        """Let the first bytes of a block device read as zeros, as a new file's do; raises StorageError."""
        if not self.is_block_device:
            return
        with translated(self.path):
            if not sysio.punch_hole(self.fd, 0, size):
                zeros = bytes(1 << 20)
                for start in range(0, size, len(zeros)):
                    os.pwrite(self.fd, zeros[: size - start], start)

    def allocate(self, size: int, *, sparse: bool, hint: str = "") -> None:
        """Set the size, with all storage allocated unless sparse; raises NoSpaceError, whose line ends with the hint."""
        if self.in_place:
            return
        with translated(self.path):
            os.ftruncate(self.fd, size)
        if not sparse:
            try:
                os.posix_fallocate(self.fd, 0, size)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                    raise NoSpaceError(f"{self.path}: no space for {size} bytes{hint}") from error
                raise

    def publish(self, *, durable: bool = True) -> None:
        """Give the contents the target's name, replacing what was there; durable leaves nothing to the kernel's own pace."""
        with translated(self.path):
            if durable and not self.is_stream:
                os.fsync(self.fd)
            if self.in_place:
                return
            folder = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if self._temporary is not None or not self._link(self._target, folder):
                    self._replace(folder)
                if durable:
                    os.fsync(folder)
            finally:
                os.close(folder)

    def _replace(self, folder: int) -> None:
        """Take the target's place; killed between the two steps, the second name is left."""
        if self._temporary is None:
            self._temporary = self._hidden_name()
            self._temporary.unlink(missing_ok=True)  # of a process with this number, long ago
            self._link(self._temporary, folder)
        os.rename(self._temporary, self._target)
        self._temporary = None

    def _link(self, name: Path, folder: int) -> bool:
        """Give the nameless file a name in one step; False when something has that name already."""
        try:
            # A folder descriptor makes Python call linkat, which alone follows the link in /proc.
            os.link(f"/proc/self/fd/{self.fd}", name, src_dir_fd=folder, follow_symlinks=True)
        except FileExistsError:
            return False
        return True

    def close(self) -> None:
        """Close the file; one that was not published disappears."""
        os.close(self.fd)
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def _open_nameless(self) -> int:
        try:
            return os.open(self._target.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
            self._temporary = self._hidden_name()
            return os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)

    def _hidden_name(self) -> Path:
        return self._target.parent / f".{self._target.name}.{os.getpid()}"


def remove_file(path: Path) -> None:
    """Remove a file, and the link that names it, durably; raises NotFoundError or StorageError."""
    target = Path(os.path.realpath(path))
    with translated(path):
        for name in {target, path.parent.resolve() / path.name}:
            name.unlink()
            folder = os.open(name.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
