"""Damaged images that something went wrong with once, each with the function that makes it: python -m tests.corpus.make

Run it again after a change of the format. An archive holds the image and its mass store; `test_corpus.py` says what must come of it.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from nvmtool.media import word
from nvmtool.region import layout as lay
from tests.damage.anatomy import Word, anatomy
from tests.damage.edit import flip_bit, set_field, set_word, write_at
from tests.damage.images import KINDS, Image

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent


def _first(image: Image, structure: str, field: str) -> Word:
    return next(each for each in anatomy(image).of(structure) if each.field == field)


def _set(structure: str, field: str, payload: int) -> Callable[[Image], None]:
    return lambda image: set_word(image.path, _first(image, structure, field), payload, mended=True)


def _zero_first_pointer(image: Image) -> None:
    write_at(image.path, _first(image, "table-1", "entry").index * 8, bytes(8))


def _zero_array(image: Image) -> None:
    write_at(image.path, _first(image, "array header", "owner").index // 512 * lay.BLOCK_SIZE, bytes(lay.BLOCK_SIZE))


def _no_mass_path(image: Image) -> None:
    for copy in lay.HEADER_BLOCKS:
        set_field(image.path, copy * lay.BLOCK_SIZE, lay.HEADER, "mass_path", b"", mended=True)


def _flip_in_second_record(image: Image) -> None:
    flip_bit(image.path, anatomy(image).log_records[1][0] + 60, 3)


def _cycle(image: Image) -> None:
    target = _first(image, "table-2", "entry")
    set_word(image.path, target, word.TABLE << word.VALUE_BITS | target.index // 512, mended=True)


# name: (kind of image, what damages it)
CORPUS: dict[str, tuple[str, Callable[[Image], None]]] = {
    "sound-virtblock": ("virtblock", lambda image: None),
    "sound-direct": ("direct", lambda image: None),
    "sound-logged": ("logged", lambda image: None),
    "sound-mixed": ("mixed", lambda image: None),
    "count-of-unknown-kind": ("virtblock", _set("count", "word", 15 << word.VALUE_BITS | 1)),
    "group-of-another-kind": ("virtblock", _set("group", "word", word.BLOCK << word.VALUE_BITS | 20)),
    "region-id-too-large": ("virtblock", _set("region record", "id", word.RECORD << word.VALUE_BITS | word.VALUE_MASK)),
    "region-flags-unknown": ("direct", _set("region record", "flags", 1 << 40)),
    "region-of-other-mapping": ("virtblock", _set("region record", "flags", 0)),
    "snapshot-marked-deleted": ("virtblock", _set("snapshot record", "parent", 1 << 51)),
    "pointer-of-kind-zero": ("direct", _set("table-1", "entry", 7)),
    "pointer-zeroed": ("virtblock", _zero_first_pointer),
    "array-lost": ("virtblock", _zero_array),
    "mass-path-is-a-folder": ("virtblock", _no_mass_path),
    "log-record-before-a-whole-one": ("logged", _flip_in_second_record),
    "table-names-itself": ("virtblock", _cycle),
    "counter-too-low": ("virtblock", _set("region record", "nvm_blocks", 0)),
    "counter-at-its-end": ("virtblock", _set("root", "used_slots", word.PAYLOAD_MASK)),
}


def make(name: str, folder: Path) -> Path:
    """Make one image and its archive."""
    kind, damage = CORPUS[name]
    image = KINDS[kind](folder, 7)
    damage(image)
    path = HERE / f"{name}.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for file in (image.path, image.mass):
            data = file.read_bytes()
            member = tarfile.TarInfo(file.name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def main() -> int:
    """Make all of them."""
    for name in CORPUS:
        with tempfile.TemporaryDirectory() as folder:
            path = make(name, Path(folder))
        print(f"{path.stat().st_size:8} {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
