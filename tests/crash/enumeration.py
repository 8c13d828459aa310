"""The enumeration: every prefix of a trace, and for each epoch the subsets of its words in flight that the plans name.

How states are counted: a crash state is a content of both media. `states` counts the distinct ones of all workloads together.
`duplicates` are those of them whose recovered content was judged before: the key of `recovered.py` is the same, so they differ in
what nothing reads. `judged` were opened, checked, read, recovered and written to in full; of the duplicates a random sample (`proven`)
is judged in full too and must get the same verdict.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.errors import NvmtoolError
from nvmtool.region import layout as lay

from .oracle import Oracle, Verdict
from .plans import InFlight, Plan, plans
from .recorder import FENCE, MASS, STORE, Event, Recording, Trace, open_recorded
from .recovered import PER_BLOCK, Outcome, Replayer, hash_words, mix
from .rules import Rules

if TYPE_CHECKING:
    from nvmtool.region.header import Header

    from .recovered import Words

MASS_SLOTS = 64
_PLACES = np.array([257**power for power in range(7)], np.int64)


@dataclass(frozen=True)
class Effort:
    """How much is tried: `most` words completely, `samples` subsets of each sort, one of so many duplicates proven, recoveries cut off."""

    most: int = 10
    samples: int = 24
    prove_one_of: int = 3000
    depth: int = 2


@dataclass
class Tally:
    """What was done and what was found."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def fail(self, workload: str, what: str) -> None:
        """Note a broken promise."""
        self.counts["failures"] += 1
        if len(self.failures) < 200:
            self.failures.append(f"{workload}: {what}")

    def add(self, other: Tally) -> None:
        """Take in another tally."""
        self.counts += other.counts
        self.failures += other.failures


class Enumerator:
    """Judges the crash states of traces; verdicts and states that were seen are kept from one to the next."""

    def __init__(self, header: Header, effort: Effort, seed: int, oracle: Oracle | None = None) -> None:
        """Serve images of the header's geometry."""
        self.effort = effort
        self.seed = seed
        self.tally = Tally()
        self.seen: set[int] = set()
        self._verdicts: dict[tuple[object, ...], Verdict] = {}
        self._oracle = oracle or Oracle()
        self._replayer = Replayer(header)
        self._nvm = header.size_blocks * PER_BLOCK
        self._prover = np.random.default_rng(seed)

    def close(self) -> None:
        """Release the oracle's files."""
        self._oracle.close()

    def run(self, recording: Recording) -> None:
        """Enumerate the crash states of a workload; at its end free slots of the mass store must occupy no storage."""
        self.tally.counts["workloads"] += 1
        run = _Run(self, recording, depth=1)
        run.follow()
        run.check_end()


class _Run:
    """The enumeration of one trace."""

    def __init__(self, parent: Enumerator, recording: Recording, depth: int) -> None:
        self._parent, self._recording, self._depth = parent, recording, depth
        self._replayer, self._nvm = parent._replayer, parent._nvm
        self._acks = 0
        self._random = np.random.default_rng([parent.seed, zlib.crc32(recording.name.encode())])
        image, mass = recording.image, recording.mass
        self._durable = np.zeros(self._nvm + MASS_SLOTS * PER_BLOCK, np.uint64)
        self._durable[: self._nvm] = np.frombuffer(image, "<u8")
        self._durable[self._nvm : self._nvm + len(mass) // 8] = np.frombuffer(mass, "<u8")
        self._mass_bytes = len(mass)
        self._pending: list[Event] = []
        self._hash = hash_words(self._durable)
        self._scratch = self._durable[: self._nvm].copy()
        effort = parent.effort
        self._most, self._samples = (effort.most, effort.samples) if depth == 1 else (min(effort.most, 8), 4)

    # --- following the trace

    def follow(self) -> None:
        """Go through the trace; enumerate at each fence and acknowledgement from the recording's start on."""
        rules = Rules(self._replayer, self._durable, self._nvm) if self._depth == 1 and self._recording.rules else None
        for number, event in enumerate(self._recording.events):
            if event.what == STORE:
                if rules:
                    rules.store(event, self._pending)
                self._pending.append(event)
                continue
            if number >= self._recording.start:
                self._epoch()
            if event.what == FENCE:
                covered = [each for each in self._pending if _covers(event, each)]
                if rules:
                    rules.fence(covered)
                self._make_durable(covered)
                if rules and event.medium != MASS:
                    rules.recover()
            else:
                if rules:
                    rules.ack(self._pending)
                self._acks += 1
        self._epoch()
        if rules:
            rules.end(self._pending)
            for problem in rules.problems:
                self._fail(problem)

    def check_end(self) -> None:
        """Judge the media with all stores done, as an orderly end leaves them."""
        self._make_durable(list(self._pending))
        verdict = self._parent._oracle.glance(*self._bytes(self._durable, self._mass_bytes))
        if verdict.leaks or verdict.problem or verdict.digest not in self._recording.allowed[-1]:
            self._fail(f"at the end: {verdict.problem or 'free slots occupy storage, or another state is shown'}")

    def _make_durable(self, covered: list[Event]) -> None:
        for event in covered:
            at = np.arange(self._at(event), self._at(event) + len(event.data) // 8)
            values = np.frombuffer(event.data, "<u8")
            self._hash = self._hash + self._delta(at, values) & 0xFFFFFFFFFFFFFFFF
            self._durable[at] = values
            if event.medium == MASS:
                self._mass_bytes = max(self._mass_bytes, event.offset + len(event.data))
        self._pending = [each for each in self._pending if not any(each is other for other in covered)]
        self._scratch[:] = self._durable[: self._nvm]

    def _at(self, event: Event) -> int:
        return event.offset // 8 + (self._nvm if event.medium == MASS else 0)

    def _in_flight(self) -> InFlight:
        at = np.concatenate([np.arange(self._at(each), self._at(each) + len(each.data) // 8) for each in self._pending])
        values = np.concatenate([np.frombuffer(each.data, "<u8") for each in self._pending])
        atomic = np.concatenate([np.full(len(each.data) // 8, each.atomic) for each in self._pending])
        stores = np.repeat(np.arange(len(self._pending)), [len(each.data) // 8 for each in self._pending])
        last = len(at) - 1 - np.unique(at[::-1], return_index=True)[1]
        replaced = np.setdiff1d(np.arange(len(at)), last)
        earlier = [(int(at[n]), int(values[n])) for n in replaced[values[replaced] != self._durable[at[replaced]]].tolist()]
        last = last[values[last] != self._durable[at[last]]]
        at, values, atomic, stores = at[last], values[last], atomic[last], stores[last]
        commits = (at >= self._replayer.log.start) & (at < self._replayer.log.stop) | (at < 2 * PER_BLOCK)
        return InFlight(at, values, atomic, commits, stores, earlier)

    # --- one epoch

    def _epoch(self) -> None:
        if not self._pending:
            return
        flight = self._in_flight()
        if not len(flight.at) and not flight.earlier:
            return
        counts = self._parent.tally.counts
        found = plans(flight, self._durable[flight.at], self._random, most=self._most, samples=self._samples)
        kind = "complete_epochs" if found[0].complete else "sampled_epochs"
        counts[kind if self._depth == 1 else f"recovery_{kind}"] += 1
        if flight.commits.any():
            counts["commit_epochs"] += 1
        for plan in found:
            self._plan(plan)

    def _plan(self, plan: Plan) -> None:
        """Count the plan's new states and judge each distinct recovered content."""
        deltas = np.array([self._delta(at, values) for at, values in plan.units], np.uint64)
        hashes = plan.rows.astype(np.uint64) @ deltas + np.uint64(self._hash)
        _, first = np.unique(hashes, return_index=True)
        fresh = np.array([row for row in first.tolist() if int(hashes[row]) not in self._parent.seen], np.int64)
        if not len(fresh):
            return
        self._parent.seen.update(hashes[fresh].tolist())
        counts = self._parent.tally.counts
        counts["states"] += len(fresh)
        if plan.complete:
            counts["states_complete"] += len(fresh)
        if self._depth > 1:
            counts["states_of_recovery"] += len(fresh)
        rows = plan.rows[fresh]
        for outcome, members in self._outcomes(plan, rows):
            self._judge_outcome(plan, rows[members], outcome)

    def _delta(self, at: np.ndarray, values: Words) -> int:
        places = at.astype(np.uint64)
        return int((mix(values, places) - mix(self._durable[at], places)).sum())

    def _outcomes(self, plan: Plan, rows: np.ndarray) -> list[tuple[Outcome, np.ndarray]]:
        """Return what the journal finds in the log for each row, rows with the same outcome together."""
        log = self._replayer.log
        units = [number for number, (at, _) in enumerate(plan.units) if ((at >= log.start) & (at < log.stop)).any()]
        if not units:
            return [(self._replayer.replay(self._scratch, restore=self._durable[: self._nvm]), np.arange(len(rows)))]
        packed = np.packbits(rows[:, units], axis=1)
        _, first, inverse = np.unique(packed @ _PLACES[: packed.shape[1]], return_index=True, return_inverse=True)
        at = np.concatenate([plan.units[unit][0] for unit in units])
        values = np.concatenate([plan.units[unit][1] for unit in units])
        owner = np.repeat(np.arange(len(units)), [len(plan.units[unit][0]) for unit in units])
        in_log = (at >= log.start) & (at < log.stop)
        at, values, owner = at[in_log], values[in_log], owner[in_log]
        found: dict[tuple[object, ...], tuple[Outcome, list[int]]] = {}
        scan = self._replayer.scan(self._scratch, self._durable[: self._nvm], int(at.min()))
        for number, row in enumerate(first.tolist()):
            chosen = rows[row, units][owner]
            self._scratch[at[chosen]] = values[chosen]
            outcome = scan()
            self._scratch[at] = self._durable[at]
            found.setdefault(outcome.tag, (outcome, []))[1].append(number)
        return [(outcome, np.flatnonzero(np.isin(inverse, numbers))) for outcome, numbers in found.values()]

    def _judge_outcome(self, plan: Plan, rows: np.ndarray, outcome: Outcome) -> None:
        """Group the rows by what recovery makes of the words at home and on the mass store, and judge one of each group."""
        image = self._durable[: self._nvm].copy()
        image.reshape(-1, PER_BLOCK)[outcome.pages] = outcome.contents
        free = self._replayer.free_mask(image)
        overridden = self._overridden(plan, outcome)
        counts = self._replayer.counts
        counts_move = any(((at >= counts.start) & (at < counts.stop) & ~overridden(at)).any() for at, _ in plan.units)

        def is_read(at: np.ndarray) -> np.ndarray:
            inside = at < self._nvm
            blocks = np.where(inside, at // PER_BLOCK, 0)
            in_log = (at >= self._replayer.log.start) & (at < self._replayer.log.stop)
            return inside & ~in_log & ~overridden(at) & (~free[blocks] | counts_move)

        for members in self._groups(plan, rows, is_read):
            media = self._state(plan, rows[members[0]])
            home = media[: self._nvm].copy()
            at_home = home.reshape(-1, PER_BLOCK)
            at_home[outcome.pages] = self._replayed(media, outcome)
            slots = self._replayer.used_slots(home, MASS_SLOTS)

            def is_on_mass(at: np.ndarray, slots: np.ndarray = slots) -> np.ndarray:
                outside = at >= self._nvm
                return outside & slots[np.where(outside, (at - self._nvm) // PER_BLOCK, 0)]

            leaks = self._leaks(plan, rows[members], slots)
            for part in self._groups(plan, rows[members], is_on_mass):
                for leaking in (False, True):
                    chosen = rows[members[part[leaks[part] == leaking]]]
                    if len(chosen):
                        state = self._state(plan, chosen[0])
                        self._judge((*self._replayer.key(home, state[self._nvm :], outcome), leaking), plan, chosen)

    def _leaks(self, plan: Plan, rows: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Return, per row, whether any free slot holds data, which the next orderly end must give back."""
        free = np.repeat(~slots, PER_BLOCK)
        held = int(np.count_nonzero(self._durable[self._nvm :][free]))
        more = []
        for at, values in plan.units:
            mine = at >= self._nvm
            mine[mine] = free[at[mine] - self._nvm]
            more.append(np.count_nonzero(values[mine]) - np.count_nonzero(self._durable[at[mine]]))
        leaks: np.ndarray = held + rows @ np.array(more, np.int64) > 0
        return leaks

    def _replayed(self, media: Words, outcome: Outcome) -> Words:
        """Return the blocks that the log changes, replayed over this very state: words of theirs that no record names stay."""
        if not len(outcome.pages):
            return outcome.contents
        image = media[: self._nvm].copy()
        return self._replayer.replay(image).contents

    def _overridden(self, plan: Plan, outcome: Outcome):  # type: ignore[no-untyped-def]
        """Return a function that tells which words come out of the replay the same, whatever was at home."""
        pages = np.zeros(self._nvm // PER_BLOCK, bool)
        pages[outcome.pages] = True
        if not any(pages[at[at < self._nvm] // PER_BLOCK].any() for at, _ in plan.units):
            return lambda at: np.zeros(len(at), bool)
        ends = []
        for flip in (np.uint64(0), np.uint64(0xFFFFFFFFFFFFFFFF)):
            image = self._durable[: self._nvm] ^ flip
            image[self._replayer.log] = self._durable[self._replayer.log]
            self._replayer.replay(image)
            ends.append(image)
        same = ends[0] == ends[1]
        return lambda at: (at < self._nvm) & same[np.where(at < self._nvm, at, 0)]

    def _groups(self, plan: Plan, rows: np.ndarray, counts: object) -> list[np.ndarray]:
        """Return the row numbers grouped by the words for which `counts` says that they matter."""
        deltas = np.array([self._delta(at[m], values[m]) if (m := counts(at)).any() else 0 for at, values in plan.units], np.uint64)  # type: ignore[operator]
        if not deltas.any():
            return [np.arange(len(rows))]
        _, inverse = np.unique(rows.astype(np.uint64) @ deltas, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(inverse[order])) + 1)

    def _state(self, plan: Plan, row: np.ndarray) -> Words:
        state = self._durable.copy()
        for unit in np.flatnonzero(row).tolist():
            at, values = plan.units[unit]
            state[at] = values
        return state

    # --- judging

    def _judge(self, key: tuple[object, ...], plan: Plan, rows: np.ndarray) -> None:
        counts, verdicts = self._parent.tally.counts, self._parent._verdicts
        verdict = verdicts.get(key)
        nduplicates = len(rows)
        if verdict is None:
            nduplicates -= 1
            verdict = verdicts[key] = self._full(self._state(plan, rows[0]))
            counts["judged"] += 1
        counts["duplicates"] += nduplicates
        if problem := self._problem(verdict):
            self._fail(problem)
            return
        if nduplicates and self._parent._prover.random() < nduplicates / self._parent.effort.prove_one_of:
            counts["proven"] += 1
            again = self._parent._oracle.judge(*self._state_bytes(self._state(plan, rows[-1])))
            if (again.digest, again.problem) != (verdict.digest, verdict.problem):
                self._fail(f"the pruning is wrong: {again} is not {verdict}")

    def _full(self, state: Words) -> Verdict:
        image, mass = self._state_bytes(state)
        verdict = self._parent._oracle.judge(image, mass)
        if not verdict.problem and self._depth < self._parent.effort.depth:
            self._cut_recovery(image, mass, verdict)
        return verdict

    def _cut_recovery(self, image: bytes, mass: bytes, verdict: Verdict) -> None:
        """Enumerate the crash states of the recovery of a crash state: it must show what it showed."""
        trace = Trace()
        try:
            open_recorded(trace, image, mass).close()
        except NvmtoolError as error:
            self._fail(f"recovery: {error}")
            return
        if trace.events:
            self._parent.tally.counts["recoveries"] += 1
            name = f"{self._recording.name}, recovery"
            _Run(self._parent, Recording(name, image, mass, trace.events, [{verdict.digest}]), self._depth + 1).follow()

    def _problem(self, verdict: Verdict) -> str:
        if verdict.problem:
            tolerated = self._acks == 0 and verdict.problem.startswith(self._recording.tolerated)
            return "" if tolerated else verdict.problem
        return "" if verdict.digest in self._recording.allowed[self._acks] else "shows a state that is none of the documented ones"

    def _fail(self, what: str) -> None:
        self._parent.tally.fail(self._recording.name, f"step {self._acks + 1}: {what}")

    def _state_bytes(self, state: Words) -> tuple[bytes, bytes]:
        """Return the files; the mass store is as short as its words allow."""
        slots = np.flatnonzero(state[self._nvm :].reshape(-1, PER_BLOCK).any(axis=1))
        return self._bytes(state, max(self._mass_bytes, (int(slots[-1]) + 1) * lay.BLOCK_SIZE))

    def _bytes(self, state: Words, mass_bytes: int) -> tuple[bytes, bytes]:
        return state[: self._nvm].tobytes(), state[self._nvm :].tobytes()[:mass_bytes]


def _covers(fence: Event, store: Event) -> bool:
    if fence.medium != store.medium:
        return False
    return fence.length < 0 or (fence.offset <= store.offset and store.offset + len(store.data) <= fence.offset + fence.length)
