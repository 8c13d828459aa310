"""Flip every bit of the metadata, one at a time.

What is flipped: every bit of every word that is not 0 in the headers, the root words, the log, count and group words, tables, arrays,
slot tables, records and the mass store's header. Of a word that is 0, every bit that alone makes a sound checksum (one in 256 does by
chance; its kind is then wrong), and `bits` of the others (all with `bits=64`): with these the checksum is wrong whichever of them is set,
and no reader looks at the payload of such a word.

What is not flipped: blocks that are free, the log behind its last record, and data blocks (they carry no checksum by design).
States that do not read a block are not read again when it is damaged: `readers` finds them by filling the block with noise.
"""

from __future__ import annotations

import mmap
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.media import word
from nvmtool.region import layout as lay
from nvmtool.region.device import Device

from .anatomy import Anatomy, anatomy
from .probe import Outcome, Probe, listing, read_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .images import Image

BLOCK = lay.BLOCK_SIZE


@dataclass
class BitRun:
    """Figures of one run over one image."""

    flips: int = 0
    skipped_words: int = 0
    reads: dict[str, int] = field(default_factory=dict)
    checks: dict[str, int] = field(default_factory=dict)
    harmless: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0


class Flipper:
    """Flips bits of one image's files in place and probes each."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.anatomy: Anatomy = anatomy(image)
        self.good = image.contents()
        self.probe = Probe(image)
        self.files = [_mapped(path) for path in (image.path, image.mass)]
        self.sound_bits = sound_bits(self.anatomy)
        self.keys = {block: self.readers(block) for block in self.anatomy.blocks}

    def readers(self, block: int) -> list[tuple[str, str | None]]:
        """Return the states whose reading changes or fails when a block is filled with noise: those that read it."""
        noise = random.Random(block)
        found = {}
        for filling in (noise.randbytes(BLOCK), b"\xff" * BLOCK, bytes(BLOCK)):
            self.files[0][block * BLOCK : (block + 1) * BLOCK] = filling
            for key, state in self.image.model.items():
                try:
                    with Device.open(self.image.path) as device:
                        if read_state(device, *key) != state or listing(device) != self.probe.listing:
                            found[key] = True
                except Exception:  # noqa: BLE001 - whatever noise does, this state reads the block
                    found[key] = True
            self.files[0][block * BLOCK : (block + 1) * BLOCK] = self.good[0][block * BLOCK : (block + 1) * BLOCK]
        return list(found)

    def targets(self, bits: int, seed: int) -> Iterator[tuple[int, int, int]]:
        """Yield (file, byte offset, bit) of what is to be flipped, image first; `bits` of each word that is 0."""
        rng = random.Random(seed)
        for block, structure in sorted(self.anatomy.blocks.items()):
            if self.anatomy.log_records and not structure.startswith("log"):
                continue  # what the log holds stands for it; the other images have these blocks
            words = np.frombuffer(self.good[0], "<u8", lay.WORDS_PER_BLOCK, block * BLOCK)
            for position, value in enumerate(words.tolist()):
                yield from self._bits_of(0, block * BLOCK + position * 8, value, bits, rng)
        words = np.frombuffer(self.good[1], "<u8", lay.WORDS_PER_BLOCK, 0)
        for position, value in enumerate(words.tolist()):
            yield from self._bits_of(1, position * 8, value, bits, rng)

    def _bits_of(self, file: int, offset: int, value: int, bits: int, rng: random.Random) -> Iterator[tuple[int, int, int]]:
        # The header's structure is one checksum's: there a 0 is like any other value.
        in_header = (offset < 2 * BLOCK and offset % BLOCK < lay.HEADER.itemsize) if file == 0 else offset < lay.MASS_HEADER.itemsize
        chosen = range(64)
        if not (value or in_header or bits >= 64):
            chosen = sorted({*rng.sample(range(64), bits), *self.sound_bits.get(offset // 8 if file == 0 else -1, ())})
        for bit in chosen:
            yield file, offset + bit // 8, bit % 8

    def flip(self, file: int, offset: int, bit: int) -> Outcome:
        """Flip a bit, probe, and flip it back; a file that the probe changed is a fault."""
        files, keys = self.files, self.keys.get(offset // BLOCK, []) if file == 0 else list(self.image.model)
        good = files[file][offset]
        files[file][offset] = good ^ 1 << bit
        outcome = self.probe.run(keys, all_readers=False)
        if files[file][offset] != good ^ 1 << bit:
            outcome.faults.append("the damaged byte was written")
        files[file][offset] = good
        for number, content in enumerate(self.good):
            # Comparing the mapping itself spares a copy of the file.
            if memoryview(files[number]) != memoryview(content):
                outcome.faults.append(f"a reading command changed {self.image.path if number == 0 else self.image.mass}")
                files[number][:] = content
        return outcome

    def structure(self, file: int, offset: int) -> str:
        """Name what a byte belongs to."""
        if file:
            return "mass header"
        at = self.anatomy.words.get(offset // 8)
        return at.structure if at is not None else self.anatomy.blocks[offset // BLOCK]

    def run(self, bits: int, seed: int, part: int = 0, parts: int = 1) -> BitRun:
        """Flip each target, or every `parts`-th of them; collect the figures."""
        figures = BitRun(skipped_words=(self.anatomy.size_blocks - len(self.anatomy.blocks)) * lay.WORDS_PER_BLOCK)
        for number, (file, offset, bit) in enumerate(self.targets(bits, seed)):
            if number % parts != part:
                continue
            outcome = self.flip(file, offset, bit)
            figures.flips += 1
            name = self.structure(file, offset)
            judge(figures, outcome, name, f"{name} file {file} byte 0x{offset:x} bit {bit}", in_log=name == "log record")
        figures.slowest = self.probe.slowest
        return figures


def judge(figures: BitRun, outcome: Outcome, name: str, where: str, *, in_log: bool) -> None:
    """Count an outcome; what breaks the promise is a failure."""
    figures.reads[outcome.reads] = figures.reads.get(outcome.reads, 0) + 1
    figures.checks[outcome.check] = figures.checks.get(outcome.check, 0) + 1
    if outcome.check == "clean" and not outcome.faults:
        figures.harmless[name] = figures.harmless.get(name, 0) + 1
    # The last record of the log with a wrong checksum is a torn one: its transaction has not happened.
    torn = in_log and outcome.reads in ("same", "earlier")
    if outcome.silent or (not torn and (outcome.check == "clean" or outcome.reads == "earlier")):
        figures.failures.append(f"{where}: reads {outcome.reads}, check {outcome.check}, {outcome.faults + outcome.errors[:1]}")


def sound_bits(image_anatomy: Anatomy) -> dict[int, list[int]]:
    """Return, per word index, the bits whose flip alone leaves a word that is absent or has a sound checksum at its place.

    The seal promises that only words that are 0 have such bits.
    """
    every = list(image_anatomy.words.values())
    values = np.array([each.value for each in every], np.uint64)
    places = np.array([each.place for each in every], np.uint64)
    found: dict[int, list[int]] = {}
    for bit in range(64):
        flipped = values ^ np.uint64(1 << bit)
        for position in np.flatnonzero((word.syndrome_array(flipped, places) == 0) | (flipped == 0)).tolist():
            found.setdefault(every[position].index, []).append(bit)
    return found


def _mapped(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)
