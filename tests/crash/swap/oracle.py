"""The full judgement of one crash state of a swap file, by the product's own ways in: open, read, recover, open again, swap out."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.errors import NvmtoolError
from nvmtool.swap.check import check_swap
from nvmtool.swap.swapfile import SwapFile

from ..subject import Verdict
from .media import FILE, PAGES
from .model import PAGE, Model, digest_of, pattern, read_model
from .operations import into_memory, out

if TYPE_CHECKING:
    from typing import Any

    from ..trace import Media

_PROBE = 999


class SwapOracle:
    """Judges crash states in a memory file that it reuses."""

    def __init__(self, fields: dict[str, Any]) -> None:
        """Make the file, for swap files with such a header."""
        self._fd = os.memfd_create("swap")
        self.path = f"/proc/self/fd/{self._fd}"
        self._block_bytes = fields["slots_per_block"] * PAGE
        self._nblocks = fields["nblocks"]
        self._data_bytes = self._nblocks * self._block_bytes
        self._home_bytes = fields["data_start"] * PAGE

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def load(self, media: Media) -> None:
        """Let the file hold a crash state, with storage where the state says so and where it holds data."""
        os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, self._home_bytes + self._data_bytes)
        os.pwrite(self._fd, media[FILE], 0)
        marks = np.frombuffer(media[PAGES], "<u8", self._nblocks, self._data_bytes)
        for block in range(self._nblocks):
            at = block * self._block_bytes
            data = media[PAGES][at : at + self._block_bytes]
            if marks[block] and any(data):
                os.pwrite(self._fd, data, self._home_bytes + at)
            elif marks[block]:
                os.posix_fallocate(self._fd, self._home_bytes + at, self._block_bytes)
            else:
                for page in range(0, self._block_bytes, PAGE):
                    if any(data[page : page + PAGE]):
                        os.pwrite(self._fd, data[page : page + PAGE], self._home_bytes + at + page)

    def judge(self, media: Media) -> Verdict:
        """Return what a state shows and whether all promises hold in it; any exception is a broken promise."""
        self.load(media)
        try:
            return self._judge(media)
        except NvmtoolError as error:
            return Verdict("", f"does not open: {type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - a traceback is what is looked for
            return Verdict("", f"traceback: {type(error).__name__}: {error}")

    def glance(self, media: Media) -> Verdict:
        """Return what an orderly end has left."""
        self.load(media)
        verdict = self._read(media)
        return verdict if verdict.problem else self._ended(verdict)

    def _judge(self, media: Media) -> Verdict:
        before = self._read(media)
        if before.problem:
            return before
        if self._content()[: self._home_bytes] != media[FILE]:
            return Verdict(before.digest, "a reading command wrote")
        with SwapFile.open(self.path, writable=True):
            pass
        recovered = self._content()
        if (after := self._ended(self._read())).problem or after.digest != before.digest:
            return Verdict(before.digest, f"recovery shows another state, or: {after.problem}")
        if after.leaks:
            return Verdict(before.digest, "after recovery storage is occupied for nothing")
        with SwapFile.open(self.path, writable=True):
            pass
        if self._content() != recovered:
            return Verdict(before.digest, "opening again changed something")
        return Verdict(before.digest, self._next_operation(), before.leaks)

    def _ended(self, verdict: Verdict) -> Verdict:
        """Return what a state shows that an orderly end has left: nobody works on it, and no storage block is empty."""
        with SwapFile.open(self.path) as swap:
            if not verdict.problem and swap.root.get("working"):
                return replace(verdict, problem="closed, and still says that somebody works on it")
            return replace(verdict, leaks=verdict.leaks or bool((swap.used == 0).any()))

    def _content(self) -> bytes:
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    def _read(self, media: Media | None = None) -> Verdict:
        """Check the file and read all its pages; `media` say more exactly than the file which storage blocks have storage."""
        found = [each for each in check_swap(self.path).findings if each.severity != "leak"]
        if found:
            return Verdict("", f"check: {found[0].structure} {found[0].where} {found[0].what}")
        with SwapFile.open(self.path) as swap:
            digest, used, working = digest_of(read_model(swap)), swap.used, swap.root.get("working")
        occupied = os.fstat(self._fd).st_blocks * 512 - self._home_bytes
        present = int((used >= 0).sum()) * self._block_bytes
        leaks = occupied > present
        if media is not None:
            marks = np.frombuffer(media[PAGES], "<u8", self._nblocks, self._data_bytes)
            if (marks[used > 0] == 0).any():
                return Verdict(digest, "a storage block holds pages and has no storage of its own")
            data = np.frombuffer(media[PAGES], "<u8", self._data_bytes // 8).reshape(self._nblocks, -1)
            leaks = bool(((used < 0) & ((marks != 0) | data.any(axis=1))).any())
        elif occupied < present:
            return Verdict(digest, "a storage block is said to have storage and has none")
        if leaks and not working:
            return Verdict(digest, "storage is occupied for nothing, and the file says that nobody works on it")
        return Verdict(digest, "", leaks)

    def _next_operation(self) -> str:
        """Swap pages out, and read all of them again after another open."""
        with SwapFile.open(self.path, writable=True) as swap:
            model = read_model(swap)
            into_memory(swap, [0] if isinstance(model[0], bytes) else [])
            others = [frame for frame, state in model.items() if frame and not isinstance(state, bytes)][:20]
            out(swap, [0, *others], _PROBE)
        with SwapFile.open(self.path) as swap:
            found = read_model(swap)
        wanted: Model = {**model, **{frame: pattern(frame * 1000 + _PROBE) for frame in (0, *others)}}
        if found != wanted:
            return "the next swap-out is not there, or took another page's place"
        after = self._ended(self._read())
        return after.problem or ("after the next swap-out storage is occupied for nothing" if after.leaks else "")
