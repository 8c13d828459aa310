"""Damage to whole structures: swapped blocks, aliases, cycles, cut files, foreign parts."""

from __future__ import annotations

import itertools
import shutil
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from nvmtool.media import word
from nvmtool.region import layout as lay

from .anatomy import Anatomy, Word, anatomy
from .cases import BLIND, FOUND, FREE, STRICT, Case
from .edit import read_at, reseal, set_word, swap_blocks, truncate, write_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .images import Image

_POINTERS = (word.TABLE, word.BLOCK, word.ENTRY, word.SLOT, word.ARRAY, word.LEAF)
_MOST_ALIASES = 12


def structure_cases(image: Image) -> Iterator[Case]:
    """Yield every structure damage of an image."""
    whole = anatomy(image)
    if not whole.log_records:  # else the log may bring the right words back
        yield from swaps(whole)
        yield from aliases(whole)
        yield from cycles(whole)
        yield from lost_blocks(whole)
    yield from cuts(image, whole)
    yield from foreign_parts(image)


def swaps(whole: Anatomy) -> Iterator[Case]:
    """Two metadata blocks exchanged."""
    for first, second in itertools.combinations(sorted(whole.blocks), 2):
        if {first, second} != {0, 1}:
            name = f"swapped: {whole.blocks[first]} {first} and {whole.blocks[second]} {second}"
            # Two states' tables for one logical place carry the same seals: nothing tells one from the other but their counts.
            alike = _first_place(whole, first) == _first_place(whole, second)
            yield Case(name, lambda image, a=first, b=second: swap_blocks(image.path, a, b), BLIND if alike else FOUND)


def _first_place(whole: Anatomy, block: int) -> int | None:
    first = whole.words.get(block * lay.WORDS_PER_BLOCK)
    return first.place if first is not None else block


def aliases(whole: Anatomy) -> Iterator[Case]:
    """A pointer that names what another one names, rightly sealed for its own place."""
    pointers: dict[tuple[str, int], list[Word]] = {}
    for each in whole.words.values():
        if each.value and each.value >> 60 in _POINTERS and each.structure not in ("count", "slots-0"):
            pointers.setdefault((each.structure, each.value >> 60), []).append(each)
    for (structure, kind), words in pointers.items():
        pairs = [(a, b) for a, b in itertools.permutations(sorted(words), 2) if a.value >> 8 != b.value >> 8]
        for source, target in pairs[:_MOST_ALIASES] + pairs[_MOST_ALIASES:][-_MOST_ALIASES:]:
            name = f"alias: {structure} {word.KIND_NAMES[kind]} at 0x{target.index * 8:x} named as at 0x{source.index * 8:x}"
            yield Case(name, lambda image, a=source, b=target: reseal(image.path, a, b), FOUND)


def cycles(whole: Anatomy) -> Iterator[Case]:
    """A pointer that leads back to its own block, or to any other metadata block; rightly sealed."""
    for target in whole.words.values():
        kind = target.value >> 60
        if not target.value or kind not in (word.TABLE, word.ARRAY, word.LEAF) or target.structure == "count":
            continue
        named = target.value >> 8 & lay.ADDRESS_MASK
        for block, structure in whole.blocks.items():
            if block >= whole.data_start and block != named:
                payload = target.value >> 8 & ~lay.ADDRESS_MASK | block
                what = "itself" if block == target.index // lay.WORDS_PER_BLOCK else f"{structure} {block}"
                name = f"cycle: {target.name} at 0x{target.index * 8:x} leads to {what}"
                yield Case(name, lambda image, t=target, p=payload: set_word(image.path, t, p, mended=True), FOUND)
    for target in whole.words.values():
        if target.structure == "array header" and target.field in ("next", "prev") and not target.value:
            for block in (b for b, structure in whole.blocks.items() if structure == "array"):
                payload = word.ARRAY << word.VALUE_BITS | block
                name = f"cycle: {target.name} at 0x{target.index * 8:x} leads to array {block}"
                yield Case(name, lambda image, t=target, p=payload: set_word(image.path, t, p, mended=True), FOUND)


def lost_blocks(whole: Anatomy) -> Iterator[Case]:
    """A metadata block that reads as zeros, as all ones, or as an older self: its neighbour's contents."""
    for block, structure in whole.blocks.items():
        for label, data in (("zeros", bytes(lay.BLOCK_SIZE)), ("ones", b"\xff" * lay.BLOCK_SIZE)):
            # Words that are 0 say that nothing is there.
            demand = STRICT if label == "ones" or structure == "header" else FOUND
            yield Case(
                f"lost: {structure} {block} reads as {label}",
                lambda image, b=block, d=data: write_at(image.path, b * lay.BLOCK_SIZE, d),
                demand,
            )


def cuts(image: Image, whole: Anatomy) -> Iterator[Case]:
    """The files cut off at the edges of their structures."""
    end = whole.size_blocks * lay.BLOCK_SIZE
    edges = {block * lay.BLOCK_SIZE for block in whole.blocks} | {(block + 1) * lay.BLOCK_SIZE for block in whole.blocks}
    for edge in sorted(edges | {end}):
        for size in (edge - 1, edge, edge + 1):
            if 0 <= size < end:
                yield Case(f"cut: image at {size}", lambda image, s=size: truncate(image.path, s), STRICT)
    mass_end = image.mass.stat().st_size
    for edge in range(0, mass_end + 1, lay.BLOCK_SIZE):
        for size in (edge - 1, edge, edge + 1):
            if 0 <= size < mass_end:
                yield Case(f"cut: mass store at {size}", lambda image, s=size: truncate(image.mass, s), STRICT)
    yield Case("longer: image", lambda image: write_at(image.path, end, b"tail"), FREE)
    yield Case("longer: mass store", lambda image: write_at(image.mass, mass_end + lay.BLOCK_SIZE, b"tail"), FREE)


def foreign_parts(image: Image) -> Iterator[Case]:
    """Parts of another image of the same kind and size, made with another seed."""
    from .images import virtblock_image

    with TemporaryDirectory() as folder:
        other = virtblock_image(Path(folder), 99)
        mass = other.mass.read_bytes()
        headers = read_at(other.path, 0, 2 * lay.BLOCK_SIZE)
    yield Case("foreign mass store", lambda image: write_whole(image.mass, mass), STRICT)
    yield Case("no mass store", lambda image: image.mass.unlink(), STRICT)
    yield Case("the image as its own mass store", lambda image: shutil.copy(image.path, image.mass), STRICT)
    yield Case("headers of another image", lambda image: write_at(image.path, 0, headers), STRICT)
    yield Case("header A of another image", lambda image: write_at(image.path, 0, headers[: lay.BLOCK_SIZE]), FREE)
    yield Case("mass store empty", partial(_empty_mass), STRICT)
    yield Case("empty image", lambda image: write_whole(image.path, b""), STRICT)


def _empty_mass(image: Image) -> None:
    write_whole(image.mass, b"")


def write_whole(path: Path, data: bytes) -> None:
    """Replace the contents of a file."""
    path.write_bytes(data)
