"""What a stamped page holds: every word follows from the swap file, the page frame and the version of its contents.

Word 0 is the page frame, word 1 the version, each of the other 510 a constant of its own XOR a mix of all three. So a page tells by itself
which page it is, and a page of another frame, another version, another file, or put together of two pages is never taken for it.
Version 0 is a page that was never written: zeros.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from .layout import PAGE, WORDS_PER_PAGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

MAX_VERSION = (1 << 62) - 1
_MASK = (1 << 64) - 1
_FRAME_FACTOR = 0x9E3779B97F4A7C15
_VERSION_FACTOR = 0xC2B2AE3D27D4EB4F
ZEROS = bytes(PAGE)


class Pattern:
    """The contents of one swap file's pages."""

    def __init__(self, uuid: bytes) -> None:
        """Take the swap file's UUID, so that no other file's page passes."""
        digest = hashlib.blake2b(uuid, digest_size=16).digest()
        self._seed = int.from_bytes(digest[:8], "little")
        self._base = np.random.default_rng(list(digest)).integers(0, 1 << 64, WORDS_PER_PAGE, np.uint64)
        self._scratch = np.empty(WORDS_PER_PAGE, np.uint64)

    def stamp(self, page: Words, frame: int, version: int) -> None:
        """Fill one page, shape (512,), for a version from 1."""
        mix = (frame * _FRAME_FACTOR ^ version * _VERSION_FACTOR ^ self._seed) & _MASK
        np.bitwise_xor(self._base, np.uint64(mix), out=page)
        page[0] = frame
        page[1] = version

    def holds(self, page: Words, frame: int, version: int) -> bool:
        """Tell whether one page, shape (512,), is this version of this frame, in all 4096 bytes."""
        # Comparing bytes is several times quicker than numpy's comparison of so few words.
        if version == 0:
            return page.tobytes() == ZEROS
        self.stamp(self._scratch, frame, version)
        return page.tobytes() == self._scratch.tobytes()

    def identify(self, page: Words) -> tuple[int, int] | None:
        """Return the frame and the version of which one page, shape (512,), is a whole copy; (-1, 0) for zeros, None for anything else."""
        frame, version = int(page[0]), int(page[1])
        if version == 0:
            return (-1, 0) if not page.any() else None
        return (frame, version) if version <= MAX_VERSION and self.holds(page, frame, version) else None

    def hold(self, pages: NDArray[np.uint8], frames: NDArray[np.int64], versions: Words) -> NDArray[np.bool_]:
        """Tell for each page of shape (n, 4096), u1, whether it is that version of that frame, in all 4096 bytes."""
        words = pages.view("<u8")
        unsigned = frames.astype(np.uint64)
        mix = unsigned * np.uint64(_FRAME_FACTOR) ^ versions * np.uint64(_VERSION_FACTOR) ^ np.uint64(self._seed)
        expected = self._base ^ mix[:, None]
        expected[:, 0] = unsigned
        expected[:, 1] = versions
        expected[versions == 0] = 0
        same: NDArray[np.bool_] = (words == expected).all(axis=1)
        return same
