"""Every field of every structure set to telling values, with and without its checksum mended; the fields come from the dtypes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.media import word
from nvmtool.media.journal import LOG_RECORD
from nvmtool.region import layout as lay

from .anatomy import Anatomy, Word, anatomy
from .cases import FOUND, FREE, STRICT, TORN, Case
from .edit import set_field, set_word

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .images import Image

# Fields of which every value is as good as another: nothing else in the image says what they ought to be.
FREE_FIELDS = {
    *(f"{record} record.{field}" for record in ("region", "snapshot") for field in ("created", *(f"name[{i}]" for i in range(9)))),
    "region record.next_state",
    "region record.size_blocks",
    "log.generation",
    # Another tag before says that a process was cut off, which costs nothing.
    "root.mass_tag",
    "root.mass_tag_before",
}
FREE_HEADER_FIELDS = {"generation", "created"}
_OF_EACH = 2
_MOST_PARENT = 8


def is_free(target: Word, payload: int) -> bool:
    """Tell whether a rightly sealed value is as good as the one that is there."""
    if target.name == "region record.flags":
        return payload < 2 * lay.SWEEPING  # a deletion or conversion under way looks just so
    if target.field == "parent":
        return payload < _MOST_PARENT  # another snapshot, perhaps
    if target.name == "root.lender_tag":
        return bool(target.value) and 0 < payload < lay.LENDER_TAGS  # another host, perhaps; while there is none, no tag is right
    return target.name in FREE_FIELDS


def field_cases(image: Image) -> Iterator[Case]:
    """Yield a case for each field and value."""
    whole = anatomy(image)
    # What the log holds stands for the words at home; the other images have those.
    targets = whole.of("log") if whole.log_records else chosen_words(whole)
    for target in targets:
        for label, payload in word_values(whole, target).items():
            yield from word_cases(target, label, payload, free=is_free(target, payload))
    yield from header_cases(lay.HEADER, whole.size_blocks)
    yield from _mass_header_cases()
    yield from log_cases(whole)


def chosen_words(whole: Anatomy) -> list[Word]:
    """Return a few words of every field of every structure: the first that are present, the last one, and one that is absent."""
    by_name: dict[str, list[Word]] = {}
    for each in whole.words.values():
        by_name.setdefault(each.name, []).append(each)
    chosen = []
    for words in by_name.values():
        words.sort()
        present = [each for each in words if each.value]
        chosen += present[:_OF_EACH] + present[_OF_EACH:][-1:] + [each for each in words if not each.value][:1]
    return chosen


def word_values(whole: Anatomy, target: Word) -> dict[str, int]:
    """Return the payloads that a word is set to, by what they are."""
    kind = target.value >> 60
    value = target.value >> 8 & word.VALUE_MASK
    bare = {
        "0": 0,
        "1": 1,
        "max": word.VALUE_MASK,
        "one more": value + 1,
        "one less": max(value - 1, 0),
        "own offset": target.index * 8,
        "own block": target.index // lay.WORDS_PER_BLOCK,
        "last block": whole.size_blocks - 1,
        "end": whole.size_blocks,
        "past the end": whole.size_blocks + 1,
        "before the data": whole.data_start - 1,
    }
    values = {f"value {label}": kind << word.VALUE_BITS | (number & word.VALUE_MASK) for label, number in bare.items()}
    values |= {f"payload {label}": number for label, number in (("0", 0), ("1", 1), ("max", word.PAYLOAD_MASK))}
    values |= {f"kind {other & 15}": (other & 15) << word.VALUE_BITS | value for other in (0, kind - 1, kind + 1, 15)}
    others = [each for each in whole.of(target.structure) if each.index != target.index]
    for each in others[:2] + others[-2:]:
        values[f"that of {each.field} at 0x{each.index * 8:x}"] = each.value >> 8
    return {label: payload for label, payload in values.items() if payload != target.value >> 8}


def word_cases(target: Word, label: str, payload: int, *, free: bool) -> Iterator[Case]:
    """Yield a word set to a payload, its checksum mended and not; `free`: rightly sealed it is as good as the one that is there."""
    for mended in (True, False):
        stored = word.seal(payload, target.place) if mended else payload << 8 | target.value & 0xFF
        sound = word.is_sealed(stored, target.place) or stored == 0
        demand = FOUND if sound else STRICT
        if sound and free:
            # Another generation voids what the log holds.
            demand = TORN if target.structure == "log" else FREE
        if mended or not sound:
            how = "mended" if mended else "as it was"
            name = f"{target.name} at 0x{target.index * 8:x}: {label}, checksum {how}"
            yield Case(name, partial(_set_word, target, payload, mended), demand)
    if target.value:
        yield Case(f"{target.name} at 0x{target.index * 8:x}: zeroed", partial(_zero_word, target), FOUND)


def _set_word(target: Word, payload: int, mended: bool, image: Image) -> None:
    set_word(image.path, target, payload, mended=mended)


def _zero_word(target: Word, image: Image) -> None:
    with image.path.open("r+b") as file:
        file.seek(target.index * 8)
        file.write(bytes(8))


def numbers(dtype: np.dtype[np.void], field: str, end: int) -> dict[str, int | bytes]:
    """Return the values that a field is set to, by what they are; `end` is the end of what such numbers count."""
    fields = dtype.fields
    assert fields is not None
    kind, offset = fields[field][:2]
    if kind.kind != "u":
        return {"zeros": b"", "ones": b"\xff" * kind.itemsize, "text": b"NVMTOOL2"[: kind.itemsize]}
    top = (1 << 8 * kind.itemsize) - 1
    return {
        "0": 0,
        "1": 1,
        "2": 2,
        "max": top,
        "max - 1": top - 1,
        "own offset": offset,
        "end - 1": end - 1,
        "end": end,
        "end + 1": end + 1,
    }


def header_cases(dtype: np.dtype[np.void], end: int) -> Iterator[Case]:
    """Yield the fields of one header copy or both set to other values; `end` is the end of what their numbers count."""
    for field in dtype.names or ():
        for label, value in numbers(dtype, field, end).items():
            for copies in ((0,), (1,), (0, 1)):
                for mended in (True, False):
                    how = "mended" if mended else "as it was"
                    demand = FREE if mended or field == "crc" else STRICT
                    name = f"header {'AB'[copies[0]] if len(copies) == 1 else 'A and B'} {field}: {label}, checksum {how}"
                    yield Case(name, partial(_set_header, dtype, copies, field, value, mended), demand)


def _set_header(dtype: np.dtype[np.void], copies: tuple[int, ...], field: str, value: int | bytes, mended: bool, image: Image) -> None:
    for copy in copies:
        set_field(image.path, copy * lay.BLOCK_SIZE, dtype, field, value, mended=mended)


def _mass_header_cases() -> Iterator[Case]:
    for field in lay.MASS_HEADER.names or ():
        for label, value in numbers(lay.MASS_HEADER, field, lay.BLOCK_SIZE).items():
            for mended in (True, False):
                free = mended and field == "reserved"
                yield Case(
                    f"mass header {field}: {label}, checksum {'mended' if mended else 'as it was'}",
                    partial(_set_mass_header, field, value, mended),
                    FREE if free or field == "crc" else STRICT,
                )


def _set_mass_header(field: str, value: int | bytes, mended: bool, image: Image) -> None:
    set_field(image.mass, 0, lay.MASS_HEADER, field, value, mended=mended)


def log_cases(whole: Anatomy) -> Iterator[Case]:
    """Yield the fields of every log record set to other values."""
    for number, (offset, _) in enumerate(whole.log_records):
        for field in LOG_RECORD.names or ():
            for label, value in numbers(LOG_RECORD, field, whole.size_blocks).items():
                for mended in (True, False):
                    name = f"log record {number} {field}: {label}, checksum {'mended' if mended else 'as it was'}"
                    yield Case(name, partial(_set_log, offset, field, value, mended), TORN)


def _set_log(offset: int, field: str, value: int | bytes, mended: bool, image: Image) -> None:
    set_field(image.path, offset, LOG_RECORD, field, value, mended=mended)
