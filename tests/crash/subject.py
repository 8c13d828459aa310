"""What the enumeration needs to know of a format: its media, its logs, which words of a state anything reads, and how a state is judged.

A state is one array of words: the media one behind the other, each in whole blocks of 4 KiB. Masks are bool arrays of the same length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .recovered import Logs
    from .trace import Event, Media, Trace

    Mask = NDArray[np.bool_]
    Words = NDArray[np.uint64]

PER_BLOCK = 512


class Layout:
    """Where each medium lies in a state; `nwords` is the whole state's length."""

    def __init__(self, nblocks: dict[str, int]) -> None:
        """Put media of so many blocks one behind the other."""
        self.slices: dict[str, slice] = {}
        self.nwords = 0
        for name, count in nblocks.items():
            self.slices[name] = slice(self.nwords, self.nwords + count * PER_BLOCK)
            self.nwords += count * PER_BLOCK

    def at(self, event: Event) -> int:
        """Return the index of an event's first word."""
        return self.slices[event.medium].start + event.offset // 8

    def mask(self, *ranges: slice) -> Mask:
        """Return a mask of some words."""
        found = np.zeros(self.nwords, bool)
        for each in ranges:
            found[each] = True
        return found

    def state(self, media: Media) -> Words:
        """Return the state that media with these contents are; those that are shorter end in zeros."""
        words = np.zeros(self.nwords, np.uint64)
        for name, content in media.items():
            start = self.slices[name].start
            words[start : start + len(content) // 8] = np.frombuffer(content, "<u8")
        return words


@dataclass(frozen=True)
class Verdict:
    """What a crash state shows; `problem` says which part of the promise it breaks, empty for none.

    `leaks`: storage is occupied that nothing names, as the protocol allows after a crash and not after an orderly end.
    """

    digest: str
    problem: str = ""
    leaks: bool = False


class Judge(Protocol):
    """Judges states by the product's own ways in."""

    def judge(self, media: Media) -> Verdict:
        """Return what a state shows and whether all promises hold in it; any exception is a broken promise."""

    def glance(self, media: Media) -> Verdict:
        """Return what a state shows by reading and checking alone."""

    def close(self) -> None:
        """Release what the judge holds."""


class Subject(Protocol):
    """A format under trial. Words are home words, which a log or a transaction changes, or far ones: pages, slots, storage."""

    layout: Layout
    logs: Logs
    # Home words; commit words (logs, headers), of which epochs are tried completely.
    home: Mask
    commits: Mask
    # Whether what a durable state reached stays untouched until the next checkpoint of its log.
    sticky: bool

    def read_at_home(self, words: Words) -> Mask:
        """Return which home words of a replayed state anything reads, logs apart."""

    def read_far(self, words: Words) -> Mask:
        """Return which far words of a replayed state anything reads."""

    def leaks(self, words: Words) -> Mask:
        """Return which far words of a replayed state occupy storage for nothing, where they are not 0."""

    def decides(self, at: NDArray[np.int64]) -> Mask:
        """Tell of some home words whether `read_at_home` depends on them."""

    def opens(self, words: Words) -> str:
        """Return why a state cannot be opened at all (its headers); empty where it can."""

    def exempt(self, event: Event, durable: Words) -> bool:
        """Tell whether a store may change a word that is read: one that is safe for a reason of its own."""

    def contents(self, words: Words, lengths: dict[str, int]) -> Media:
        """Return the media of a state; `lengths` are the bytes that each one had reached."""

    def recover(self, trace: Trace, media: Media) -> None:
        """Open media for writing and close them, with everything that is stored in the trace; raises NvmtoolError."""
