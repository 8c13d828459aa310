"""Every bit, field and structure of a reservation damaged."""

from __future__ import annotations

import itertools
import random
from functools import partial
from typing import TYPE_CHECKING

from nvmtool.media import word
from nvmtool.swap import layout as lay

from .bits import BitRun, judge, sound_bits
from .cases import BLIND, FOUND, FREE, STRICT, Case
from .edit import flip_bit, swap_blocks, truncate, write_at
from .fields import chosen_words, header_cases, log_cases, word_cases, word_values
from .reservationfiles import PER_PAGE, ReservationImage, ReservationProbe, anatomy_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .anatomy import Anatomy, Word


def field_cases(image: ReservationImage) -> Iterator[Case]:
    """Yield a case for each field and value; what the log holds stands for the words at home."""
    whole = anatomy_of(image)
    for target in whole.of("log") if whole.log_records else chosen_words(whole):
        for label, payload in word_values(whole, target).items():
            for case in word_cases(target, label, payload, free=target.name == "log.generation"):
                yield Case(case.name, case.apply, _demand(image, target, payload, case))
    for case in (*header_cases(lay.RESERVATION_HEADER, whole.size_blocks), *log_cases(whole)):
        blind = case.name.endswith("mended") and "nwords: 0," in case.name
        yield Case(case.name, case.apply, BLIND if blind else case.demand)


def _demand(image: ReservationImage, target: Word, payload: int, case: Case) -> str:
    """Return what is demanded: another promise that can be kept, or the other mechanism, rightly sealed, is as good as what was there.

    A lender with another uuid or path is one whose swap file is gone, which check says, and repair takes back what it was promised.
    """
    if case.demand != FOUND:
        return case.demand
    if target.structure == "lender" and target.field != "promise":
        return BLIND
    if case.name.endswith("zeroed"):
        return FOUND
    kind, value = payload >> word.VALUE_BITS, payload & word.VALUE_MASK
    lent = 3
    if target.name == "root.mechanism" and payload in _numbers(1, 2):
        return BLIND
    if target.name == "lender.promise" and target.value and kind == word.RECORD and lent <= value - 1 <= image.nblocks:
        return BLIND
    return case.demand


def _numbers(*values: int) -> list[int]:
    return [word.NUMBER << word.VALUE_BITS | value for value in values] + list(values)


def structure_cases(image: ReservationImage) -> Iterator[Case]:
    """Yield damages of whole structures: exchanged, lost, cut off, of another format or version, without its swap file."""
    whole = anatomy_of(image)
    blocks = sorted(whole.blocks)
    if not whole.log_records:
        for first in blocks:
            for second in blocks:
                if first < second and {whole.blocks[first], whole.blocks[second]} != {"header"}:
                    yield Case(f"swapped: blocks {first} and {second}", partial(_swap, first, second), STRICT)
        for block in blocks:
            yield Case(f"ones: block {block}", lambda image, b=block: write_at(image.path, b * lay.PAGE, b"\xff" * lay.PAGE), STRICT)
            yield Case(f"zeros: block {block}", lambda image, b=block: write_at(image.path, b * lay.PAGE, bytes(lay.PAGE)), FOUND)
        present = whole.of("block")
        for one, other in itertools.pairwise(present):
            yield Case(f"swapped: words of blocks at 0x{one.index * 8:x} and behind it", partial(_exchange, one, other), STRICT)
    end = image.path.stat().st_size
    for edge in sorted({block * lay.PAGE for block in blocks} | {whole.data_start * lay.PAGE, end}):
        for size in (edge - 1, edge, edge + 1):
            if 0 <= size < end:
                yield Case(f"cut: at {size}", lambda image, s=size: truncate(image.path, s), STRICT)
    for magic in (b"NVMTOOL\0", b"NVMSWAP\0", b"NVMRSRW\0", bytes(8)):
        yield Case(f"magic: {magic!r}", partial(_both_headers, magic), STRICT)
    yield Case("magic: of copy A alone", lambda image: write_at(image.path, 0, b"NVMSWAP\0"), FREE)


def _swap(first: int, second: int, image: ReservationImage) -> None:
    swap_blocks(image.path, first, second)


def _exchange(one: Word, other: Word, image: ReservationImage) -> None:
    write_at(image.path, one.index * 8, other.value.to_bytes(8, "little"))
    write_at(image.path, other.index * 8, one.value.to_bytes(8, "little"))


def _both_headers(magic: bytes, image: ReservationImage) -> None:
    for copy in (0, 1):
        write_at(image.path, copy * lay.PAGE, magic)


class ReservationFlipper:
    """Flips bits of one reservation's metadata in place and probes each."""

    def __init__(self, image: ReservationImage) -> None:
        """Stand on an image."""
        self.image = image
        self.anatomy: Anatomy = anatomy_of(image)
        self.probe = ReservationProbe(image)
        self._sound = sound_bits(self.anatomy)

    def targets(self, bits: int, seed: int) -> list[tuple[int, int]]:
        """Return (byte offset, bit): all bits of headers, log records and sealed words that are not 0; of others sound ones and `bits`."""
        rng, found = random.Random(seed), []
        header_words = range(-(-lay.RESERVATION_HEADER.itemsize // 8))
        in_log = [word for offset, size in self.anatomy.log_records for word in range(offset // 8, -(-(offset + size) // 8))]
        if not self.anatomy.log_records:
            in_log = [copy * PER_PAGE + index for copy in (0, 1) for index in header_words]
        for index in [*in_log, *(() if self.anatomy.log_records else sorted(self.anatomy.words))]:
            sealed = self.anatomy.words.get(index)
            whole = sealed is None or sealed.value or bits >= 64
            chosen = range(64) if whole else sorted({*rng.sample(range(64), bits), *self._sound.get(index, ())})
            found += [(index * 8 + bit // 8, bit % 8) for bit in chosen]
        return found

    def run(self, targets: list[tuple[int, int]]) -> BitRun:
        """Flip each target; collect the figures."""
        figures = BitRun()
        for offset, bit in targets:
            flip_bit(self.image.path, offset, bit)
            outcome = self.probe.run(writing=False)
            flip_bit(self.image.path, offset, bit)
            figures.flips += 1
            name = self.anatomy.blocks[offset // lay.PAGE]
            judge(figures, outcome, name, f"{name} byte 0x{offset:x} bit {bit}", in_log=name == "log record")
        figures.slowest = self.probe.slowest
        return figures
