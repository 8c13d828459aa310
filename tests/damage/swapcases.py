"""Every bit, field and structure of a swap file damaged."""

from __future__ import annotations

import itertools
import mmap
import random
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.media import word
from nvmtool.swap import layout as lay

from .bits import BitRun, judge, sound_bits
from .cases import BLIND, FOUND, STRICT, Case
from .edit import swap_blocks, truncate, write_at
from .fields import chosen_words, header_cases, log_cases, word_cases, word_values
from .swapfiles import PER_PAGE, SwapImage, SwapProbe, anatomy_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .anatomy import Anatomy, Word

# Another number of frames for which all areas stay the same, and a record that changes nothing: rightly sealed, they are as good.
_UNTOLD = ("nframes:", "nwords: 0,")


def field_cases(image: SwapImage) -> Iterator[Case]:
    """Yield a case for each field and value; what the log holds stands for the words at home."""
    whole = anatomy_of(image)
    for target in whole.of("log") if whole.log_records else chosen_words(whole):
        for label, payload in word_values(whole, target).items():
            for case in word_cases(target, label, payload, free=target.name in ("root.working", "log.generation")):
                yield Case(case.name, case.apply, _demand(image, whole, target, payload, case))
    for case in (*header_cases(lay.SWAP_HEADER, whole.size_blocks), *log_cases(whole)):
        blind = case.name.endswith("mended") and any(part in case.name for part in _UNTOLD)
        yield Case(case.name, case.apply, BLIND if blind else case.demand)


def _demand(image: SwapImage, whole: Anatomy, target: Word, payload: int, case: Case) -> str:
    """Return what is demanded: a frame word that is sealed for its place may name another free slot of the same block, or say that
    a page was never touched instead of being in memory; nothing else in the file says which is right."""
    if target.structure != "frame" or case.demand != FOUND:
        return case.demand
    payload = 0 if case.name.endswith("zeroed") else payload
    old, new = _block_of(image, target.value >> 8), _block_of(image, payload)
    named = {each.value >> 8 for each in whole.of("frame")}
    return BLIND if old == new and payload not in named - {target.value >> 8, word.MEMORY << word.VALUE_BITS | 1} else case.demand


def _block_of(image: SwapImage, payload: int) -> int:
    """Return the storage block that a frame word's payload names, -1 for none."""
    if payload >> word.VALUE_BITS != word.SLOT:
        return -1
    return ((payload & word.VALUE_MASK) - 1) // int(image.fields["slots_per_block"])


def structure_cases(image: SwapImage) -> Iterator[Case]:
    """Yield damages of whole structures: exchanged, lost, cut off, of another format or version."""
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
        yield from _swapped_words(whole, "frame")
        yield from _swapped_words(whole, "storage")
    end = len(image.contents())
    edges = {block * lay.PAGE for block in blocks} | {whole.data_start * lay.PAGE, end}
    edges |= {(whole.data_start + block * image.fields["slots_per_block"]) * lay.PAGE for block in range(image.fields["nblocks"])}
    for size in sorted({max(edge + more, 0) for edge in edges for more in (-1, 0, 1)}):
        if size < end:
            yield Case(f"cut: at {size}", lambda image, s=size: truncate(image.path, s), STRICT)
    for magic in (b"NVMTOOL\0", b"NVMRSRV\0", b"NVMSWAQ\0", b"SWAPSPAC", bytes(8)):
        yield Case(f"magic: {magic!r}", lambda image, m=magic: _both_headers(image, m), STRICT)
    yield Case("magic: of copy A alone", lambda image: write_at(image.path, 0, b"NVMRSRV\0"), STRICT)


def _swap(first: int, second: int, image: SwapImage) -> None:
    swap_blocks(image.path, first, second)


def _both_headers(image: SwapImage, magic: bytes) -> None:
    for copy in (0, 1):
        write_at(image.path, copy * lay.PAGE, magic)


def _swapped_words(whole: Anatomy, structure: str) -> Iterator[Case]:
    present = whole.of(structure)
    for one, other in itertools.pairwise(present):
        if one.value != other.value:
            yield Case(
                f"swapped: {structure} words at 0x{one.index * 8:x} and 0x{other.index * 8:x}",
                lambda image, a=one, b=other: _exchange(image, a, b),
                STRICT,
            )


def _exchange(image: SwapImage, one: Word, other: Word) -> None:
    write_at(image.path, one.index * 8, other.value.to_bytes(8, "little"))
    write_at(image.path, other.index * 8, one.value.to_bytes(8, "little"))


class SwapFlipper:
    """Flips bits of one swap file's metadata in place and probes each."""

    def __init__(self, image: SwapImage) -> None:
        """Map the file."""
        self.image = image
        self.anatomy = anatomy_of(image)
        self.probe = SwapProbe(image)
        self.good = image.contents()
        self._sound = sound_bits(self.anatomy)
        with image.path.open("r+b") as file:
            self._file = mmap.mmap(file.fileno(), 0)

    def targets(self, bits: int, seed: int) -> list[tuple[int, int]]:
        """Return (byte offset, bit) of every bit of words that are not 0, of headers and of frame and storage words; `bits` of others."""
        rng, found = random.Random(seed), []
        header_words = -(-lay.SWAP_HEADER.itemsize // 8)
        for block, structure in sorted(self.anatomy.blocks.items()):
            if self.anatomy.log_records and not structure.startswith("log"):
                continue  # what the log holds stands for it
            for position, value in enumerate(np.frombuffer(self.good, "<u8", PER_PAGE, block * lay.PAGE).tolist()):
                index = block * PER_PAGE + position
                whole = value or index in self.anatomy.words or (structure == "header" and position < header_words) or bits >= 64
                chosen = range(64) if whole else sorted({*rng.sample(range(64), bits), *self._sound.get(index, ())})
                found += [(index * 8 + bit // 8, bit % 8) for bit in chosen]
        return found

    def structure(self, offset: int) -> str:
        """Name what a byte belongs to."""
        return self.anatomy.blocks[offset // lay.PAGE]

    def run(self, targets: list[tuple[int, int]]) -> BitRun:
        """Flip each target; collect the figures."""
        figures = BitRun()
        for offset, bit in targets:
            self._file[offset] ^= 1 << bit
            bad = self._file[offset]
            outcome = self.probe.run(writing=False)
            if self._file[offset] != bad:
                outcome.faults.append("the damaged byte was written")
            self._file[offset] = self.good[offset]
            if memoryview(self._file) != memoryview(self.good):
                outcome.faults.append("a reading command changed the file")
                self._file[:] = self.good
            figures.flips += 1
            name = self.structure(offset)
            judge(figures, outcome, name, f"{name} byte 0x{offset:x} bit {bit}", in_log=name == "log record")
        figures.slowest = self.probe.slowest
        return figures
