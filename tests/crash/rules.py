"""The cheap rules: what the order of stores and fences alone must obey.

- At an acknowledgement nothing is in flight, but for blocks that a durable log record carries too, and punched storage, which nobody needs.
- The log's generation word is alone in its epoch; a log record travels with nothing but the blocks that it carries, never over a valid one.
- No store changes a word that is read in a durable state (of sticky subjects: at any commit since the last checkpoint); a checkpoint may
  store home what the log says already. Slots are not stored to at all while a durable word names them.
- No fence without a store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .subject import PER_BLOCK

if TYPE_CHECKING:
    from .subject import Subject, Words
    from .trace import Event


class Rules:
    """Follows one trace; `problems` are the broken rules."""

    def __init__(self, subject: Subject, durable: Words) -> None:
        """Start from a durable state, which the caller keeps up to date."""
        self._subject = subject
        self._durable = durable
        self._generations: tuple[int | None, ...] = ()
        self.problems: list[str] = []
        self.recover()

    def recover(self) -> None:
        """Take note of a new durable state: what it reads must not be stored to, of sticky subjects before the next checkpoint."""
        self._recovered = self._durable.copy()
        outcome = self._subject.logs.replay(self._recovered)
        read = self._subject.read_at_home(self._recovered) | self._subject.read_far(self._recovered)
        if self._subject.sticky and outcome.generations == self._generations:
            read |= self._read
        self._generations, self._tails, self._read = outcome.generations, outcome.tails, read

    def store(self, event: Event, pending: list[Event]) -> None:
        """Judge a store; `pending` are the stores in flight before it."""
        at = self._subject.layout.at(event)
        log = self._subject.logs.find(at)
        if log is not None:
            self._log_store(log, at, event, pending)
            return
        inside = slice(at, at + len(event.data) // 8)
        wrong = self._read[inside] & ~(self._subject.home[inside] & (self._recovered[inside] == np.frombuffer(event.data, "<u8")))
        if wrong.any() and not self._subject.exempt(event, self._durable):
            first = event.offset + 8 * int(np.flatnonzero(wrong)[0])
            self._find(f"{event.medium} 0x{first:x} is stored to while a durable word reaches it")

    def fence(self, covered: list[Event]) -> None:
        """Judge a fence, by the stores that it makes durable."""
        if not covered:
            self._find("a fence without a store")

    def ack(self, pending: list[Event]) -> None:
        """Judge an acknowledgement."""
        for event in pending:
            if not event.punched and not (event.logged and self._is_recovered(event)):
                self._find(f"acknowledged while {len(event.data)} bytes at 0x{event.offset:x} of {event.medium} are in flight")

    def end(self, pending: list[Event]) -> None:
        """Judge an orderly end: nothing at all is in flight."""
        if pending:
            self._find(f"closed while {len(pending)} stores are in flight, the first to {pending[0].medium} 0x{pending[0].offset:x}")

    def _log_store(self, number: int, at: int, event: Event, pending: list[Event]) -> None:
        log = self._subject.logs.each[number]
        is_generation = at == log.generation_word
        if at - log.area.start < PER_BLOCK and not is_generation:
            return  # the words behind the generation mean nothing
        if is_generation and not event.atomic:
            self._find("the generation word is stored in a way that may tear")
        if not is_generation and at < self._tails[number]:
            self._find("a log record is stored over a valid one")
        for other in pending:
            if not other.punched and (is_generation or not other.logged) and not (other.logged and self._is_recovered(other)):
                what = "generation word" if is_generation else "log record"
                self._find(f"{what} in one epoch with a store to {other.medium} 0x{other.offset:x}")

    def _is_recovered(self, event: Event) -> bool:
        at = self._subject.layout.at(event)
        values = np.frombuffer(event.data, "<u8")
        return bool((self._recovered[at : at + len(values)] == values).all())

    def _find(self, what: str) -> None:
        self.problems.append(f"rule: {what}")
