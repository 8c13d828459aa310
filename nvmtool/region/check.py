"""Check a device image: every structure's own rules, and all counts against all that names something.

The walk goes over distinct tables only, level by level and vectorised. What it learns is what each count ought to be; a count that is too
high loses space
and nothing else (a leak), one that is too low could lose data (an error). `repair` mends what this walk proves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError
from ..findings import CheckResult, Finding
from ..media import word
from ..media.journal import distinct
from . import layout as lay
from .check_counts import check_block_counts, check_slot_counts
from .check_entries import Entries, add_counts
from .device import Device
from .header import choose_header
from .repair import apply_fixes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .records import Record
    from .region import Region

    Ints = NDArray[np.int64]
    Progress = Callable[[int, int, str], None] | None

_TABLES_AT_ONCE = 512
_SLOTS_AT_ONCE = 4096
_MOST_FINDINGS = 100


@dataclass
class Walk:
    """What the walk over a device learnt: expected counts, dense over the data area and lazily allocated, and the findings."""

    device: Device
    findings: list[Finding] = field(default_factory=list)
    # New values for words whose rightful contents the walk proves: (word indexes, values).
    fixes: list[tuple[Ints, NDArray[np.uint64]]] = field(default_factory=list)
    fixable: bool = True
    leaked_blocks: int = 0
    free_slots_with_data: list[Ints] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Allocate the expectations."""
        blocks = self.device.blocks
        self.start = blocks.start
        self.kinds = np.zeros(blocks.nblocks, np.uint8)
        self.references = np.zeros(blocks.nblocks, np.int32)
        self.mapped = np.zeros(blocks.nblocks, np.int64)
        self.purged = np.zeros(blocks.nblocks, np.int64)
        self.slots = np.zeros(max(self.device.slots.end(), 1), np.int32)

    def find(self, severity: str, structure: str, where: str, what: str, *, fixable: bool = False) -> None:
        """Note a broken rule."""
        self.findings.append(Finding(severity, structure, where, what))
        self.fixable &= fixable

    def fix(self, index: int, value: int) -> None:
        """Note the rightful contents of one word."""
        self.fixes.append((np.array([index], np.int64), np.array([value], np.uint64)))

    def damaged(self, structure: str, error: DamagedError) -> None:
        """Note damage that a structure's reader named."""
        where, _, what = str(error).partition(": ")
        self.find("error", structure, where, what)

    def expect(self, blocks: Ints, kind: int, structure: str) -> None:
        """Count one more reference to each block in the array (repeats count); a block has one kind only."""
        at = blocks - self.start
        mixed = (self.kinds[at] != 0) & (self.kinds[at] != kind)
        for position in np.flatnonzero(mixed)[:10].tolist():
            self.find(
                "error",
                structure,
                f"block {int(blocks[position])}",
                f"is named both as {word.KIND_NAMES[kind]} and as {word.KIND_NAMES[int(self.kinds[at[position]])]}",
            )
        self.kinds[at] = kind
        add_counts(self.references, at)

    def expect_slots(self, slots: Ints, structure: str) -> None:
        """Count one more reference to each slot in the array (repeats count)."""
        past = slots >= len(self.slots)
        if past.any():
            self.find("error", structure, f"slot {int(slots[past][0])}", f"is named, but the slot table ends at {len(self.slots)}")
        add_counts(self.slots, slots[~past])

    def compare(self, structure: str, where: Callable[[int], str], found: Ints, wanted: Ints) -> Ints:
        """Note counts that differ from what is expected; return the positions whose counts can be lowered."""
        for position in np.flatnonzero(found < wanted)[:_MOST_FINDINGS].tolist():
            self.find("error", structure, where(position), f"count is {found[position]}, named {wanted[position]} times")
        high = np.flatnonzero(found > wanted)
        # What nothing names would have to leave its array or table: its data may be all that is left of something.
        self.fixable &= not (wanted[high] == 0).any()
        for position in high[:_MOST_FINDINGS].tolist():
            self.find("leak", structure, where(position), f"count is {found[position]}, named {wanted[position]} times", fixable=True)
        return high[wanted[high] > 0]


def check_device(
    path: str | Path,
    *,
    repair: bool = False,
    scrub: bool = False,
    mass: str | Path | None = None,
    progress: Progress = None,
) -> CheckResult:
    """Check an image; `scrub` also reads every purged block and looks for data in free slots; `repair` mends what is proven.

    Opens for reading, and for writing only when there is something to repair and all of it can be; otherwise the files stay byte-identical.
    Raises FormatError, DamagedError or BusyError when the image cannot even be opened.
    """
    walk = _walk(path, scrub, mass, progress)
    if not (repair and walk.findings and walk.fixable):
        return CheckResult(not walk.findings, walk.findings, walk.leaked_blocks, 0)
    with Device.open(path, writable=True, mass=mass, any_pair=True) as device:
        # Another process may have written since, and opening finishes what a killed one began: mend only what is so now.
        walk = _walk(path, scrub, mass, progress)
        if not (walk.findings and walk.fixable):
            return CheckResult(not walk.findings, walk.findings, walk.leaked_blocks, 0)
        apply_fixes(device, walk)
    again = _walk(path, scrub, mass, progress)
    return CheckResult(not again.findings, walk.findings + again.findings, walk.leaked_blocks, len(walk.findings))


def _walk(path: str | Path, scrub: bool, mass: str | Path | None, progress: Progress) -> Walk:
    with Device.open(path, mass=mass) as device:
        walk = Walk(device)
        _check_headers(walk)
        _check_unused_words(walk)
        try:
            device.journal.require_no_later_record()
        except DamagedError as error:
            walk.damaged("log", error)
        try:
            regions = [device.any_region(record) for record in device.records]
            _check_root(walk, len(regions), scrub=scrub)
            _expect_record_blocks(walk, regions)
            _check_free_records(walk, regions)
        except DamagedError as error:
            walk.damaged("region table", error)
            return walk
        steps: list[Callable[[], None]] = [partial(_check_region, walk, each) for each in regions]
        steps += [partial(check_slot_counts, walk), partial(check_block_counts, walk)]
        if scrub:
            steps.append(partial(_scrub, walk, progress))
        for done, step in enumerate(steps):
            try:
                step()
            except DamagedError as error:
                walk.damaged("device", error)
            if progress is not None:
                progress(done + 1, len(steps), "steps")
        return walk


def _check_root(walk: Walk, nregions: int, *, scrub: bool) -> None:
    root = walk.device.root
    if root.get("nregions") != nregions:
        walk.find("error", "root word", "nregions", f"is {root.get('nregions')}, counted {nregions}")
    if not walk.device.slots.pairing.is_sound:
        # Every purged block must have been read before the store may become this image's own again.
        walk.find("error", "mass store", "header", "was last changed through another copy of this image", fixable=scrub)


def _check_headers(walk: Walk) -> None:
    with open(walk.device.path, "rb") as image:
        first, second = image.read(lay.BLOCK_SIZE), image.read(lay.BLOCK_SIZE)
    _, _, wrong = choose_header(first, second, walk.device.path)
    for message in wrong:
        walk.find("error", "header", "block 0" if "copy A" in message else "block 1", message, fixable=True)


def _expect_record_blocks(walk: Walk, regions: list[Region]) -> None:
    tables = [walk.device.records, *(region.snapshots for region in regions)]
    for table in tables:
        named = [block for _, block in table.iter_leaves()]
        if table.top_block():
            named.append(table.top_block())
        walk.expect(np.array(named, np.int64), word.LEAF, table.label)


def _check_unused_words(walk: Walk) -> None:
    """Words behind the root words, the log's generation, and the last count and group words are 0."""
    header = walk.device.header
    per_block = lay.WORDS_PER_BLOCK
    for name, start, end in (
        ("root block", lay.ROOT_BLOCK * per_block + lay.ROOT.itemsize // 8, (lay.ROOT_BLOCK + 1) * per_block),
        ("log", header.log_start * per_block + 1, (header.log_start + 1) * per_block),
        ("count words", header.count_start * per_block + header.data_blocks, (header.count_start + header.count_blocks) * per_block),
        (
            "group words",
            header.group_start * per_block - (-header.data_blocks // 512),
            (header.group_start + header.group_blocks) * per_block,
        ),
    ):
        _expect_zeros(walk, name, np.arange(start, end, dtype=np.int64))


def _check_free_records(walk: Walk, regions: list[Region]) -> None:
    for table in (walk.device.records, *(region.snapshots for region in regions)):
        for _, block in table.iter_leaves():
            at = block * lay.WORDS_PER_BLOCK + np.arange(lay.WORDS_PER_BLOCK, dtype=np.int64).reshape(-1, table.words_per_record)
            free = walk.device.journal.array[at[:, 0]] == 0
            # What looks like rubbish may be a record that lost its first word.
            _expect_zeros(walk, table.label, at[free].reshape(-1), fixable=False)


def _expect_zeros(walk: Walk, structure: str, at: Ints, *, fixable: bool = True) -> None:
    wrong = at[walk.device.journal.array[at] != 0]
    if len(wrong):
        first = int(wrong[0])
        what = f"{len(wrong)} unused words are not 0, the first is 0x{int(walk.device.journal.array[first]):016x}"
        walk.find("error", structure, f"0x{first * 8:x}", what, fixable=fixable)
        walk.fixes.append((wrong, np.zeros(len(wrong), np.uint64)))


def _check_region(walk: Walk, region: Region) -> None:
    states: list[Record] = [region.record, *region.snapshots]
    _check_records(walk, region)
    entries = Entries(walk, region, states)
    roots = np.array([state.get_pointer("root", word.TABLE) for state in states], np.int64)
    present = roots[roots != 0]
    walk.expect(present, word.TABLE, f"region {region.name!r} roots")
    nvm, slots = _check_tables(walk, region, entries, distinct(present))
    entries.compare()
    _check_counters(walk, region, states, roots, nvm + entries.in_nvm, slots + entries.purged)


def _check_records(walk: Walk, region: Region) -> None:
    """Read every field of every record: each seal is verified, and names and ids must be different."""
    seen: set[object] = set()
    flags = region.record.get("flags")
    if flags >= 2 * lay.SWEEPING:
        walk.find("error", "record", f"region {region.name!r}", f"flags 0x{flags:x} are not known")
    states = {0, *(record.id for record in region.snapshots)}
    next_state = region.record.get("next_state")
    for record in (region.record, *region.snapshots):
        try:
            own: list[int | str] = [record.get("state") if record is region.record else record.id]
            if record.name and record is not region.record:
                own.append(record.name)
            for each in own:
                if each in seen or (isinstance(each, int) and not 0 < each < next_state):
                    walk.find("error", "record", f"region {region.name!r}", f"id or name {each!r} is used twice or out of range")
                seen.add(each)
            for name in ("created", "mapped"):
                record.get(name)
            _check_parent(walk, region, record, states)
            record.check_spare()
        except DamagedError as error:
            walk.damaged("record", error)
    if len(list(region.snapshots)) != region.record.get("nsnapshots"):
        walk.find(
            "error",
            "record",
            f"region {region.name!r}",
            f"nsnapshots is {region.record.get('nsnapshots')}, there are {len(list(region.snapshots))}",
        )


def _check_parent(walk: Walk, region: Region, record: Record, states: set[int]) -> None:
    parent = record.get("parent")
    where = f"region {region.name!r} {record.name!r}"
    if record is not region.record and parent & lay.SNAPSHOT_DELETING:
        parent &= ~lay.SNAPSHOT_DELETING
        if not region.record.get("flags") & (lay.DELETING | lay.SWEEPING):
            walk.find("error", "record", where, "is marked as being deleted, but its region's flags do not say so")
    if parent not in states or (record is not region.record and parent == record.id):
        walk.find("error", "record", where, f"parent is {parent}, which is the id of no other snapshot")


def _check_tables(walk: Walk, region: Region, entries: Entries, roots: Ints) -> tuple[int, int]:
    """Walk all distinct tables, level by level; return how many distinct blocks and slots level-1 entries name directly."""
    pages, array = region.pages, walk.device.journal.array
    positions = np.arange(lay.TABLE_ENTRIES, dtype=np.int64)
    tables, prefixes = roots, np.zeros(len(roots), np.int64)
    uppers: list[tuple[Ints, Ints]] = []
    for level in range(pages.tables.levels, 1, -1):
        below: list[tuple[Ints, Ints]] = []
        for start in range(0, len(tables), _TABLES_AT_ONCE):
            part, first = tables[start : start + _TABLES_AT_ONCE], prefixes[start : start + _TABLES_AT_ONCE]
            at = (part[:, None] * lay.WORDS_PER_BLOCK + positions).reshape(-1)
            indexes = ((first << lay.TABLE_BITS)[:, None] + positions).reshape(-1)
            children = pages.tables.children(array[at], level, indexes, at)
            used = np.flatnonzero(children)
            walk.expect(children[used], word.TABLE, f"level-{level} table")
            uppers.append((np.repeat(part, lay.TABLE_ENTRIES)[used], children[used]))
            named, order = np.unique(children[used], return_index=True)
            below.append((named, indexes[used[order]]))
        tables, order = np.unique(np.concatenate([b[0] for b in below] or [roots[:0]]), return_index=True)
        prefixes = np.concatenate([b[1] for b in below] or [roots[:0]])[order]
    found = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(tables), _TABLES_AT_ONCE):
        part, first = tables[start : start + _TABLES_AT_ONCE], prefixes[start : start + _TABLES_AT_ONCE]
        blocks, slots = _check_leaves(walk, region, entries, part, first)
        found[0].append(blocks)
        found[1].append(slots)
    # From below: what a table maps is what its children map.
    for parents, children in reversed(uppers):
        np.add.at(walk.mapped, parents - walk.start, walk.mapped[children - walk.start])
        np.add.at(walk.purged, parents - walk.start, walk.purged[children - walk.start])
    return len(distinct(np.concatenate(found[0]))), len(distinct(np.concatenate(found[1])))


def _check_leaves(walk: Walk, region: Region, entries: Entries, tables: Ints, prefixes: Ints) -> tuple[Ints, Ints]:
    positions = np.arange(lay.TABLE_ENTRIES, dtype=np.int64)
    at = tables[:, None] * lay.WORDS_PER_BLOCK + positions
    words = walk.device.journal.array[at]
    rows, cells = np.nonzero(words)
    indexes = (prefixes[rows] << lay.TABLE_BITS) + cells
    kinds, values = region.pages.tables.decode(words[rows, cells], indexes)
    past = indexes >= region.nblocks
    if past.any():
        walk.find("error", "level-1 table", f"logical block {int(indexes[past][0])}", f"is past the region's end ({region.nblocks})")
    flags = region.record.get("flags")
    foreign = kinds == (word.BLOCK if flags & lay.VIRTBLOCK_MAPPING else word.ENTRY)
    if foreign.any() and not flags & lay.CONVERTING:
        what = f"names {word.KIND_NAMES[int(kinds[foreign][0])]}, but the region has {region.mapping} mapping"
        walk.find("error", "level-1 table", f"logical block {int(indexes[foreign][0])}", what)
    is_entry = kinds == word.ENTRY
    purged = kinds == word.SLOT
    purged[is_entry] = entries.name(values[is_entry], indexes[is_entry])
    walk.mapped[tables - walk.start] += np.bincount(rows, minlength=len(tables))
    walk.purged[tables - walk.start] += np.bincount(rows[purged], minlength=len(tables))
    blocks, slots = values[kinds == word.BLOCK], values[kinds == word.SLOT]
    walk.expect(blocks, word.BLOCK, "level-1 table")
    walk.expect_slots(slots, "level-1 table")
    return distinct(blocks), distinct(slots)


def _check_counters(walk: Walk, region: Region, states: list[Record], roots: Ints, nvm: int, slots: int) -> None:
    expected = [(region.record, {"nvm_blocks": nvm, "slots": slots})]
    for state, root in zip(states, roots.tolist(), strict=True):
        if state.get("flags") & lay.DELETING if state is region.record else state.get("parent") & lay.SNAPSHOT_DELETING:
            continue  # half taken apart, as a killed deletion leaves it
        mapped = int(walk.mapped[root - walk.start]) if root else 0
        purged = int(walk.purged[root - walk.start]) if root else 0
        expected.append((state, {"mapped": mapped, "mapped_purged": purged} if state is region.record else {"mapped": mapped}))
    for record, fields in expected:
        for name, value in fields.items():
            if record.get(name) != value:
                walk.find(
                    "error",
                    "record",
                    f"region {region.name!r} {record.name!r}",
                    f"{name} is {record.get(name)}, counted {value}",
                    # Another number of mapped blocks is a pointer that was lost, or is too many: what that was nobody can prove.
                    fixable=name in ("nvm_blocks", "slots"),
                )
                index, stored = record.sealed(name, value)
                walk.fixes.append((np.array([index]), np.array([stored], np.uint64)))


def _scrub(walk: Walk, progress: Progress) -> None:
    device = walk.device
    assert device.mass is not None
    used = np.flatnonzero(walk.slots)
    for start in range(0, len(used), _SLOTS_AT_ONCE):
        part = used[start : start + _SLOTS_AT_ONCE]
        crcs = device.slots.get(part)[1]
        for slot, message in device.mass.iter_damage(part, crcs):
            walk.find("error", "mass slot", f"slot {slot}", message)
        if progress is not None:
            progress((start + len(part)) * lay.BLOCK_SIZE, len(used) * lay.BLOCK_SIZE, "bytes")
    if not device.slots.pairing.is_settled:
        return  # free slots may hold what a process that is at work, or was cut off, has written: the next one gives it back
    for first, nslots in device.mass.iter_data():
        numbers = np.arange(first, first + nslots)
        free = numbers[(numbers >= len(walk.slots)) | (walk.slots[np.minimum(numbers, len(walk.slots) - 1)] == 0)]
        if len(free):
            walk.find("leak", "mass store", f"slot {int(free[0])}", f"{len(free)} free slots occupy storage", fixable=True)
            walk.free_slots_with_data.append(free)
