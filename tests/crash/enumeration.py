"""The enumeration: every prefix of a trace, and for each epoch the subsets of its words in flight that the plans name.

How states are counted: a crash state is a content of all media. `states` counts the distinct ones of all workloads together.
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

from .plans import InFlight, Plan, plans
from .recovered import Outcome, hash_words, key_of, mix
from .rules import Rules
from .subject import PER_BLOCK
from .trace import FENCE, STORE, Event, Media, Recording, Trace

if TYPE_CHECKING:
    from .subject import Judge, Mask, Subject, Verdict, Words

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

    def __init__(self, subject: Subject, judge: Judge, effort: Effort, seed: int) -> None:
        """Serve media of one geometry; the judge is closed with this."""
        self.subject = subject
        self.effort = effort
        self.seed = seed
        self.tally = Tally()
        self.seen: set[int] = set()
        self._verdicts: dict[tuple[object, ...], Verdict] = {}
        self._judge = judge
        self._prover = np.random.default_rng(seed)

    def close(self) -> None:
        """Close the judge."""
        self._judge.close()

    def run(self, recording: Recording) -> None:
        """Enumerate the crash states of a workload; at its end nothing may occupy storage for nothing."""
        self.tally.counts["workloads"] += 1
        run = _Run(self, recording, depth=1)
        run.follow()
        run.check_end()


class _Run:
    """The enumeration of one trace."""

    def __init__(self, parent: Enumerator, recording: Recording, depth: int) -> None:
        self._parent, self._recording, self._depth = parent, recording, depth
        self._subject = parent.subject
        self._layout, self._logs = self._subject.layout, self._subject.logs
        self._acks = 0
        self._random = np.random.default_rng([parent.seed, zlib.crc32(recording.name.encode())])
        self._durable = self._layout.state(recording.media)
        self._lengths = {name: len(content) for name, content in recording.media.items()}
        self._pending: list[Event] = []
        self._hash = hash_words(self._durable)
        self._scratch = self._durable.copy()
        effort = parent.effort
        self._most, self._samples = (effort.most, effort.samples) if depth == 1 else (min(effort.most, 8), 4)

    # --- following the trace

    def follow(self) -> None:
        """Go through the trace; enumerate at each fence and acknowledgement from the recording's start on."""
        rules = Rules(self._subject, self._durable) if self._depth == 1 and self._recording.rules else None
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
                if rules:
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
        verdict = self._parent._judge.glance(self._contents(self._durable))
        if verdict.leaks or verdict.problem or verdict.digest not in self._recording.allowed[-1]:
            self._fail(f"at the end: {verdict.problem or 'storage is occupied for nothing, or another state is shown'}")

    def _make_durable(self, covered: list[Event]) -> None:
        for event in covered:
            at = np.arange(self._layout.at(event), self._layout.at(event) + len(event.data) // 8)
            values = np.frombuffer(event.data, "<u8")
            self._hash = self._hash + self._delta(at, values) & 0xFFFFFFFFFFFFFFFF
            self._durable[at] = values
            self._lengths[event.medium] = max(self._lengths[event.medium], event.offset + len(event.data))
        self._pending = [each for each in self._pending if not any(each is other for other in covered)]
        self._scratch[:] = self._durable

    def _in_flight(self) -> InFlight:
        at = np.concatenate([np.arange(self._layout.at(each), self._layout.at(each) + len(each.data) // 8) for each in self._pending])
        values = np.concatenate([np.frombuffer(each.data, "<u8") for each in self._pending])
        atomic = np.concatenate([np.full(len(each.data) // 8, each.atomic) for each in self._pending])
        stores = np.repeat(np.arange(len(self._pending)), [len(each.data) // 8 for each in self._pending])
        last = len(at) - 1 - np.unique(at[::-1], return_index=True)[1]
        replaced = np.setdiff1d(np.arange(len(at)), last)
        earlier = [(int(at[n]), int(values[n])) for n in replaced[values[replaced] != self._durable[at[replaced]]].tolist()]
        last = last[values[last] != self._durable[at[last]]]
        at, values, atomic, stores = at[last], values[last], atomic[last], stores[last]
        return InFlight(at, values, atomic, self._subject.commits[at], stores, earlier)

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
        """Return what the journals find in the logs for each row, rows with the same outcome together."""
        units = [number for number, (at, _) in enumerate(plan.units) if self._logs.contain(at).any()]
        if not units:
            return [(self._logs.replay(self._scratch, restore=self._durable), np.arange(len(rows)))]
        packed = np.packbits(rows[:, units], axis=1)
        _, first, inverse = np.unique(packed @ _PLACES[: packed.shape[1]], return_index=True, return_inverse=True)
        at = np.concatenate([plan.units[unit][0] for unit in units])
        values = np.concatenate([plan.units[unit][1] for unit in units])
        owner = np.repeat(np.arange(len(units)), [len(plan.units[unit][0]) for unit in units])
        in_log = self._logs.contain(at)
        at, values, owner = at[in_log], values[in_log], owner[in_log]
        found: dict[tuple[object, ...], tuple[Outcome, list[int]]] = {}
        scan = self._logs.scan(self._scratch, self._durable, at)
        for number, row in enumerate(first.tolist()):
            chosen = rows[row, units][owner]
            self._scratch[at[chosen]] = values[chosen]
            outcome = scan()
            self._scratch[at] = self._durable[at]
            found.setdefault(outcome.tags, (outcome, []))[1].append(number)
        return [(outcome, np.flatnonzero(np.isin(inverse, numbers))) for outcome, numbers in found.values()]

    def _judge_outcome(self, plan: Plan, rows: np.ndarray, outcome: Outcome) -> None:
        """Group the rows by what recovery makes of the home words, then by the far words that it names, and judge one of each group."""
        subject = self._subject
        recovered = self._durable.copy()
        recovered.reshape(-1, PER_BLOCK)[outcome.pages] = outcome.contents
        read = subject.read_at_home(recovered)
        overridden = self._overridden(plan, outcome)
        deciding = any((subject.decides(at) & ~overridden[at]).any() for at, _ in plan.units)
        matters = subject.home & ~overridden & (np.ones_like(read) if deciding else read)
        for log in self._logs.each:
            matters[log.area] = False
        for members in self._groups(plan, rows, matters):
            found = self._replayed(self._state(plan, rows[members[0]]), outcome)
            far = subject.read_far(found)
            leaks = self._leaks(plan, rows[members], subject.leaks(found))
            for part in self._groups(plan, rows[members], far):
                for leaking in (False, True):
                    chosen = rows[members[part[leaks[part] == leaking]]]
                    if len(chosen):
                        state = self._replayed(self._state(plan, chosen[0]), outcome)
                        self._judge((*key_of(subject, state, outcome), leaking), plan, chosen)

    def _leaks(self, plan: Plan, rows: np.ndarray, free: Mask) -> np.ndarray:
        """Return, per row, whether any far word that nothing needs is not 0, which the next orderly end must give back."""
        held = int(np.count_nonzero(self._durable[free]))
        more = []
        for at, values in plan.units:
            mine = free[at]
            more.append(np.count_nonzero(values[mine]) - np.count_nonzero(self._durable[at[mine]]))
        leaks: np.ndarray = held + rows @ np.array(more, np.int64) > 0
        return leaks

    def _replayed(self, state: Words, outcome: Outcome) -> Words:
        """Replay the logs over this very state: words of changed blocks that no record names stay. Return it."""
        if len(outcome.pages):
            self._logs.replay(state)
        return state

    def _overridden(self, plan: Plan, outcome: Outcome) -> Mask:
        """Return which words come out of the replay the same, whatever was at home."""
        pages = np.zeros(len(self._durable) // PER_BLOCK, bool)
        pages[outcome.pages] = True
        if not any(pages[at // PER_BLOCK].any() for at, _ in plan.units):
            return np.zeros(len(self._durable), bool)
        ends = []
        for flip in (np.uint64(0), np.uint64(0xFFFFFFFFFFFFFFFF)):
            state = self._durable ^ flip
            for log in self._logs.each:
                state[log.area] = self._durable[log.area]
            self._logs.replay(state)
            ends.append(state)
        same: Mask = ends[0] == ends[1]
        return same

    def _groups(self, plan: Plan, rows: np.ndarray, matters: Mask) -> list[np.ndarray]:
        """Return the row numbers grouped by the words that matter."""
        deltas = np.array([self._delta(at[m], values[m]) if (m := matters[at]).any() else 0 for at, values in plan.units], np.uint64)
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
            again = self._parent._judge.judge(self._contents(self._state(plan, rows[-1])))
            if (again.digest, again.problem) != (verdict.digest, verdict.problem):
                self._fail(f"the pruning is wrong: {again} is not {verdict}")

    def _full(self, state: Words) -> Verdict:
        media = self._contents(state)
        verdict = self._parent._judge.judge(media)
        if not verdict.problem and self._depth < self._parent.effort.depth:
            self._cut_recovery(media, verdict)
        return verdict

    def _cut_recovery(self, media: Media, verdict: Verdict) -> None:
        """Enumerate the crash states of the recovery of a crash state: it must show what it showed."""
        trace = Trace()
        try:
            self._subject.recover(trace, media)
        except NvmtoolError as error:
            self._fail(f"recovery: {error}")
            return
        if trace.events:
            self._parent.tally.counts["recoveries"] += 1
            name = f"{self._recording.name}, recovery"
            _Run(self._parent, Recording(name, media, trace.events, [{verdict.digest}]), self._depth + 1).follow()

    def _problem(self, verdict: Verdict) -> str:
        if verdict.problem:
            tolerated = self._acks == 0 and verdict.problem.startswith(self._recording.tolerated)
            return "" if tolerated else verdict.problem
        return "" if verdict.digest in self._recording.allowed[self._acks] else "shows a state that is none of the documented ones"

    def _fail(self, what: str) -> None:
        self._parent.tally.fail(self._recording.name, f"step {self._acks + 1}: {what}")

    def _contents(self, state: Words) -> Media:
        return self._subject.contents(state, self._lengths)


def _covers(fence: Event, store: Event) -> bool:
    if fence.medium != store.medium:
        return False
    return fence.length < 0 or (fence.offset <= store.offset and store.offset + len(store.data) <= fence.offset + fence.length)
