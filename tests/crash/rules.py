"""The cheap rules: what the order of stores and fences alone must obey.

- At an acknowledgement nothing is in flight, but for blocks that a durable log record carries too, and punched slots, which nobody needs.
- The log's generation word is alone in its epoch; a log record travels with nothing but the blocks that it carries, never over a valid one.
- No store changes a block that a durable root reaches, now or at any commit since the last checkpoint: a checkpoint may store home
  what the log says already, and one header copy may be stored while the other is sound. The same holds for slots of the mass store.
- No fence without a store.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.errors import NvmtoolError
from nvmtool.region import layout as lay
from nvmtool.region.header import choose_header

from .recorder import MASS, NVM, Event

if TYPE_CHECKING:
    from .recovered import Replayer, Words

_PER_BLOCK = lay.WORDS_PER_BLOCK


class Rules:
    """Follows one trace; `problems` are the broken rules."""

    def __init__(self, replayer: Replayer, durable: Words, nvm_words: int) -> None:
        """Start from a durable state of both media, NVM first, in one array that the caller keeps up to date."""
        self._replayer = replayer
        self._durable = durable
        self._nvm = nvm_words
        self._generation: object = None
        self.problems: list[str] = []
        self.recover()

    def recover(self) -> None:
        """Take note of a new durable state: what it reaches must not be stored to before the next checkpoint."""
        self._recovered = self._durable[: self._nvm].copy()
        outcome = self._replayer.replay(self._recovered)
        blocks = ~self._replayer.free_mask(self._recovered)
        slots = self._replayer.used_slots(self._recovered, (len(self._durable) - self._nvm) // _PER_BLOCK)
        if len(outcome.tag) > 1 and outcome.tag[0] == self._generation:
            blocks |= self._blocks
            slots |= self._slots
        self._generation, self._tail = outcome.tag[0], outcome.tail
        self._blocks, self._slots = blocks, slots

    def store(self, event: Event, pending: list[Event]) -> None:
        """Judge a store; `pending` are the stores in flight before it."""
        at = event.offset // 8
        if event.medium == MASS:
            if event.atomic and event.offset < lay.BLOCK_SIZE:  # the tag: pairing.py proves its order, the enumeration tries it
                return
            first, end = event.offset // lay.BLOCK_SIZE, -(-(event.offset + len(event.data)) // lay.BLOCK_SIZE)
            if self._slots[first:end].any():
                self._find(f"slot {first} is stored to while a durable word may name it")
            return
        if at in range(self._replayer.log.start, self._replayer.log.stop):
            self._log_store(event, pending)
            return
        values = np.frombuffer(event.data, "<u8")
        for block in range(at // _PER_BLOCK, -(-(at + len(values)) // _PER_BLOCK)):
            start, end = max(block * _PER_BLOCK, at), min((block + 1) * _PER_BLOCK, at + len(values))
            if not self._blocks[block] or (self._recovered[start:end] == values[start - at : end - at]).all():
                continue
            if block not in lay.HEADER_BLOCKS or not self._other_header(block):
                self._find(f"block {block} is stored to while a durable root reaches it")

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

    def _log_store(self, event: Event, pending: list[Event]) -> None:
        is_generation = event.offset // 8 == self._replayer.generation_word
        if event.offset // lay.BLOCK_SIZE == self._replayer.log_start and not is_generation:
            return  # the words behind the generation mean nothing
        if is_generation and not event.atomic:
            self._find("the generation word is stored in a way that may tear")
        if not is_generation and event.offset // 8 < self._tail:
            self._find("a log record is stored over a valid one")
        for other in pending:
            if not other.punched and (is_generation or not other.logged) and not (other.logged and self._is_recovered(other)):
                what = "generation word" if is_generation else "log record"
                self._find(f"{what} in one epoch with a store to {other.medium} 0x{other.offset:x}")

    def _is_recovered(self, event: Event) -> bool:
        at = event.offset // 8
        values = np.frombuffer(event.data, "<u8")
        return event.medium == NVM and bool((self._recovered[at : at + len(values)] == values).all())

    def _other_header(self, block: int) -> bool:
        headers = self._durable[: 2 * _PER_BLOCK].copy()
        headers[block * _PER_BLOCK : (block + 1) * _PER_BLOCK] = 0
        try:
            choose_header(headers[:_PER_BLOCK].tobytes(), headers[_PER_BLOCK:].tobytes(), Path("state.nvm"))
        except NvmtoolError:
            return False
        return True

    def _find(self, what: str) -> None:
        self.problems.append(f"rule: {what}")
