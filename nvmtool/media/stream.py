"""Bytes written from front to back, to stdout, a pipe or a character device."""

from __future__ import annotations

import os

from ..errors import RefusedError

STREAM = "-"
_ZEROS = bytes(1 << 20)


class OutStream:
    """An open file that is written in order; raises RefusedError for a terminal, and OSError from the writes."""

    def __init__(self, fd: int) -> None:
        """Stand on an open descriptor, which stays the caller's."""
        if os.isatty(fd):
            raise RefusedError("standard output is a terminal; redirect it")
        self._fd = fd

    def write(self, data: memoryview | bytes) -> None:
        """Write all of it, however the other side takes it."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def write_zeros(self, count: int) -> None:
        """Write so many bytes of zeros."""
        while count > 0:
            self.write(memoryview(_ZEROS)[:count])
            count -= len(_ZEROS)
