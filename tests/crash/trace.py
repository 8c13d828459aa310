"""Traces: every store, fence and acknowledgement of a workload in order, on as many media as it has."""

from __future__ import annotations

from dataclasses import dataclass, field

STORE, FENCE, ACK = "store", "fence", "ack"


@dataclass(frozen=True)
class Event:
    """One step of a trace.

    `store`: bytes at an offset of a medium; `atomic` ones are never torn, `logged` ones are also in the record that follows.
    `fence`: all earlier stores to the medium are durable, or those of one range alone. `ack`: the step was acknowledged.
    """

    what: str
    medium: str = ""
    offset: int = 0
    data: bytes = b""
    atomic: bool = False
    logged: bool = False
    # Of a fence: bytes that it covers from `offset` on; -1 for the whole medium.
    length: int = -1
    punched: bool = False


@dataclass
class Trace:
    """The ordered events of all media."""

    events: list[Event] = field(default_factory=list)

    def store(self, medium: str, offset: int, data: bytes, *, atomic: bool = False, logged: bool = False, punched: bool = False) -> None:
        """Note a store."""
        self.events.append(Event(STORE, medium, offset, data, atomic, logged, punched=punched))

    def fence(self, medium: str, offset: int = 0, length: int = -1) -> None:
        """Note a fence."""
        self.events.append(Event(FENCE, medium, offset, length=length))

    def ack(self) -> None:
        """Note that all steps up to here were acknowledged."""
        self.events.append(Event(ACK))


Media = dict[str, bytes]


@dataclass(frozen=True)
class Recording:
    """A workload's trace on media with known contents.

    `allowed`: the digests that may be seen, for each stretch of the trace that an acknowledgement ends. `start`: the event from which
    on crash states are enumerated. `tolerated`: beginnings of problems that the documents allow before the first acknowledgement.
    `rules`: whether the cheap rules apply.
    """

    name: str
    media: Media
    events: list[Event]
    allowed: list[set[str]]
    start: int = 0
    tolerated: tuple[str, ...] = ()
    rules: bool = True
