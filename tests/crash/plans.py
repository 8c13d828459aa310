"""Which subsets of the words in flight between two fences are tried: all of them where few commit something, chosen ones of bulk data."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Words = NDArray[np.uint64]
    Rows = NDArray[np.bool_]

_RECORD_HEAD = 5
_LOW = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class InFlight:
    """The words in flight that would change something: `at` (distinct), their new values, whether each is of an atomic store,
    whether each commits (log, headers), which store it is of, and the values that were stored to the same word earlier in the epoch."""

    at: Ints
    values: Words
    atomic: Rows
    commits: Rows
    stores: Ints
    earlier: list[tuple[int, int]]


@dataclass(frozen=True)
class Plan:
    """Subsets: each row says which units have reached the medium; a unit is some words with values."""

    units: list[tuple[Ints, Words]]
    rows: Rows
    complete: bool


def plans(flight: InFlight, old: Words, rng: np.random.Generator, *, most: int, samples: int) -> list[Plan]:
    """Return the plans for one epoch.

    `most`: up to so many words are tried completely; of longer log records so many critical words (the head's, the first, the last
    and others at random), with all others present and with all absent. `samples` bounds the sampled subsets of each sort; `old` are
    the durable values.
    """
    if len(flight.at) <= most:
        every = [_unit(flight, np.array([number])) for number in range(len(flight.at))]
        found = [Plan(every, _every(len(every)), complete=True)]
    else:
        found = [_critical(flight, rng, most)] if flight.commits.any() else []
        found += [_sampled(flight, rng, samples), *_by_store(flight)]
    torn = _torn(flight, old, rng, samples)
    return [*found, torn] if torn is not None else found


def _critical(flight: InFlight, rng: np.random.Generator, most: int) -> Plan:
    commits = np.flatnonzero(flight.commits)
    if len(commits) > most:
        others = rng.choice(commits[_RECORD_HEAD:-1], most - _RECORD_HEAD - 1, replace=False)
        commits = np.concatenate([commits[:_RECORD_HEAD], np.sort(others), commits[-1:]])
    rest = np.setdiff1d(np.arange(len(flight.at)), commits)
    units = [_unit(flight, np.array([number])) for number in commits.tolist()]
    if not len(rest):
        return Plan(units, _every(len(units)), complete=True)
    return Plan([*units, _unit(flight, rest)], _every(len(units) + 1), complete=True)


def _sampled(flight: InFlight, rng: np.random.Generator, samples: int) -> Plan:
    """None, all, one word present or missing, two words present or missing, and random subsets."""
    total = len(flight.at)
    alone = np.sort(rng.choice(total, min(samples, total), replace=False))
    rest = np.setdiff1d(np.arange(total), alone)
    rng.shuffle(rest)
    chunks = [np.sort(part) for part in np.array_split(rest, 8) if len(part)]
    units = [_unit(flight, np.array([number])) for number in alone.tolist()] + [_unit(flight, part) for part in chunks]
    n = len(alone)
    near = [np.zeros(len(units), bool)]
    for chosen in [(i,) for i in range(n)] + list(combinations(range(min(n, 12)), 2)):
        row = np.zeros(len(units), bool)
        row[list(chosen)] = True
        near.append(row)
    rows = np.array(near)
    return Plan(units, np.concatenate([rows, ~rows, rng.random((2 * samples, len(units))) < 0.5]), complete=False)


def _by_store(flight: InFlight) -> list[Plan]:
    """Whole stores: all subsets within two stores of none and of all."""
    numbers = np.unique(flight.stores)
    if not 1 < len(numbers) <= 64:
        return []
    units = [_unit(flight, np.flatnonzero(flight.stores == number)) for number in numbers.tolist()]
    chosen = [(i,) for i in range(len(units))] + list(combinations(range(len(units)), 2))
    rows = np.zeros((len(chosen), len(units)), bool)
    for row, members in enumerate(chosen):
        rows[row, list(members)] = True
    return [Plan(units, np.concatenate([rows, ~rows]), complete=False)]


def _torn(flight: InFlight, old: Words, rng: np.random.Generator, samples: int) -> Plan | None:
    """Half words of stores that may tear, and values that a later store of the epoch replaced, each with none, all, parts of the rest."""
    tearable = np.flatnonzero(~flight.atomic)
    torn = []
    for number in rng.choice(tearable, min(max(samples // 8, 2), len(tearable)), replace=False).tolist():
        new, before = flight.values[number], old[number]
        for half in ((new & _LOW) | (before & ~_LOW), (before & _LOW) | (new & ~_LOW)):
            if half not in (new, before):
                torn.append((int(flight.at[number]), half))
    picked = rng.permutation(len(flight.earlier))[:samples].tolist()
    torn += [(flight.earlier[each][0], np.uint64(flight.earlier[each][1])) for each in picked]
    if not torn:
        return None
    apart = np.isin(flight.at, [at for at, _ in torn])
    rest = np.flatnonzero(~apart)
    chunks = [np.sort(part) for part in np.array_split(rng.permutation(rest), 4) if len(part)]
    units = [(np.array([at]), np.array([value], np.uint64)) for at, value in torn]
    units += [_unit(flight, np.flatnonzero(apart))] if apart.any() else []
    units += [_unit(flight, part) for part in chunks]
    rows = np.zeros((len(torn), 2 + len(chunks), len(units)), bool)
    first = len(units) - len(chunks)
    for position in range(len(torn)):
        rows[position, :, position] = True
        rows[position, 1, first:] = True
        for part in range(len(chunks)):
            rows[position, 2 + part, first : first + part + 1] = True
    return Plan(units, rows.reshape(-1, len(units)), complete=False)


def _unit(flight: InFlight, which: Ints) -> tuple[Ints, Words]:
    return flight.at[which], flight.values[which]


def _every(nunits: int) -> Rows:
    numbers = np.arange(1 << nunits, dtype=np.int64)
    return (numbers[:, None] >> np.arange(nunits) & 1).astype(bool)
