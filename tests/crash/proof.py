"""The proof on real files: at each fence they equal the replayed trace byte for byte, so that no store escapes the seam, and the kernel was
asked to make it durable."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from nvmtool.media.store import FileStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from nvmtool.media.store import Chunk


class Watch:
    """One file under proof: what the seam was told to store, and whether a synchronising call came after it."""

    def __init__(self, path: Path) -> None:
        """Start with what the file holds."""
        self.path = path
        self.expected = bytearray(path.read_bytes())
        self.unsynced = False
        self.problems: list[str] = []

    def stored(self, offset: int, data: bytes) -> None:
        """Note a store at the seam."""
        self.unsynced = True
        if len(self.expected) < offset + len(data):
            self.expected.extend(bytes(offset + len(data) - len(self.expected)))
        self.expected[offset : offset + len(data)] = data

    def fenced(self, what: str) -> None:
        """Hold the file, read through a descriptor of its own, against the trace."""
        if self.unsynced:
            self.problems.append(f"proof: {what} of {self.path.name} did not reach the kernel")
        if self.path.read_bytes() != bytes(self.expected):
            self.problems.append(f"proof: {self.path.name} is not what the trace says")


def proven_store(watch: Watch) -> type[FileStore]:
    """Return a file store that tells a watch what it is told to store."""

    class ProvenStore(FileStore):
        _inside = False

        def _seam(self, name: str, stores: list[tuple[int, bytes]], *arguments: Any) -> None:
            outer, self._inside = self._inside, True
            for offset, data in () if outer else stores:
                watch.stored(offset, data)
            getattr(super(), name)(*arguments)
            self._inside = outer
            if name in ("fence", "store_durable") and not outer:
                watch.fenced(name)

        def store_word(self, offset: int, value: int) -> None:
            self._seam("store_word", [(offset, value.to_bytes(8, "little"))], offset, value)

        def store_bytes(self, offset: int, chunks: Sequence[Chunk]) -> None:
            self._seam("store_bytes", [(offset, b"".join(chunks))], offset, chunks)

        def store_logged(self, offset: int, content: Chunk) -> None:
            synced = not watch.unsynced
            self._seam("store_logged", [(offset, bytes(content))], offset, content)
            if synced:  # the log record that follows holds it too
                watch.unsynced = False

        def fence(self) -> None:
            self._seam("fence", [])

        def store_durable(self, offset: int, chunks: Sequence[Chunk]) -> None:
            self._seam("store_durable", [(offset, b"".join(chunks))], offset, chunks)

    return ProvenStore


@contextmanager
def watched_kernel(*watches: Watch) -> Iterator[None]:
    """Note which synchronising calls reach the kernel, and for which file."""
    fdatasync, pwritev = os.fdatasync, os.pwritev

    def note(fd: int) -> None:
        for watch in watches:
            if os.path.samestat(os.fstat(fd), os.stat(watch.path)):
                watch.unsynced = False

    def watched_fdatasync(fd: int) -> None:
        fdatasync(fd)
        note(fd)

    def watched_pwritev(fd: int, chunks: Any, offset: int, flags: int = 0) -> int:
        done = pwritev(fd, chunks, offset, flags)
        if flags & os.RWF_DSYNC:
            note(fd)
        return done

    with mock.patch.object(os, "fdatasync", watched_fdatasync), mock.patch.object(os, "pwritev", watched_pwritev):
        yield
