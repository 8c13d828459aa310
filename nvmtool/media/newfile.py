"""New files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from ..errors import NoSpaceError
from .store import translated

if TYPE_CHECKING:
    from pathlib import Path


class NewFile:
    """A nameless file in the target's folder that `publish` gives its name; killed before that, it leaves nothing behind.

    A target that is a block or character device, or a pipe, is opened and written in place.
    """

    def __init__(self, path: Path) -> None:
        """Open the file for writing; raises StorageError or NoSpaceError."""
        self.path = path
        self.in_place = path.exists() and not stat.S_ISREG(path.stat().st_mode)
        self._temporary: Path | None = None
        with translated(path):
            if self.in_place:
                self.fd = os.open(path, os.O_RDWR if stat.S_ISBLK(path.stat().st_mode) else os.O_WRONLY)
            else:
                self.fd = self._open_nameless()

    def allocate(self, size: int, *, sparse: bool) -> None:
        """Set the size, with all storage allocated unless sparse; raises NoSpaceError."""
        if self.in_place:
            return
        with translated(self.path):
            os.ftruncate(self.fd, size)
        if not sparse:
            try:
                os.posix_fallocate(self.fd, 0, size)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                    raise NoSpaceError(f"{self.path}: no space for {size} bytes; --sparse allocates later") from error
                raise

    def publish(self, *, durable: bool = True) -> None:
        """Give the contents the target's name, replacing what was there; durable leaves nothing to the kernel's own pace."""
        with translated(self.path):
            if durable:
                os.fsync(self.fd)
            if self.in_place:
                return
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if self._temporary is None:
                    self._temporary = self._hidden_name()
                    # A folder descriptor makes Python call linkat, which alone follows the link in /proc.
                    os.link(f"/proc/self/fd/{self.fd}", self._temporary, src_dir_fd=folder, follow_symlinks=True)
                os.rename(self._temporary, self.path)
                self._temporary = None
                if durable:
                    os.fsync(folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Close the file; one that was not published disappears."""
        os.close(self.fd)
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def _open_nameless(self) -> int:
        try:
            return os.open(self.path.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
            self._temporary = self._hidden_name()
            return os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)

    def _hidden_name(self) -> Path:
        return self.path.parent / f".{self.path.name}.{os.getpid()}"
