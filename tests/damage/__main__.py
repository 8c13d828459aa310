"""Make small images, look inside them, and damage them.

    python -m tests.damage build virtblock FOLDER        an image of a kind, with its mass store, in a new folder
    python -m tests.damage words FOLDER [STRUCTURE]      its sealed words: index, structure, field, payload
    python -m tests.damage flip FILE OFFSET BIT          flip a bit
    python -m tests.damage set FOLDER INDEX PAYLOAD      set the payload of a word and mend its checksum (--stale: leave it)
    python -m tests.damage swap FILE BLOCK BLOCK         exchange two blocks
    python -m tests.damage cut FILE SIZE                 cut a file off
    python -m tests.damage cases FOLDER [PART]           list the damages of fields and structures whose names contain PART
    python -m tests.damage make FOLDER CASE              make one of them, by its name

Words, set and cases need the sound image: they read what each word is from it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nvmtool.region.device import Device

from .anatomy import anatomy
from .edit import flip_bit, set_word, swap_blocks, truncate
from .fields import field_cases
from .images import KINDS, Image
from .probe import read_state
from .structures import structure_cases


def opened(folder: str) -> Image:
    """Return a sound image that `build` made; its model is what it reads."""
    path = Path(folder) / "disk.nvm"
    with Device.open(path) as device:
        keys = [(region.name, name) for region in device.regions() for name in (None, *(each.name for each in region.snapshots))]
        model = {key: read_state(device, *key) for key in keys}
    return Image(path, Path(folder) / "disk.mass", model, [])


def number(text: str) -> int:
    """Read a decimal or hexadecimal number."""
    return int(text, 0)


def build(kind: str, folder: str) -> None:
    """Make an image of a kind in a new folder."""
    Path(folder).mkdir(parents=True)
    image = KINDS[kind](Path(folder), 0)
    print(image.path)


def words(folder: str, structure: str = "") -> None:
    """Print the words that are not 0."""
    for _, each in sorted(anatomy(opened(folder)).words.items()):
        if each.value and structure in each.structure:
            print(f"{each.index:8} 0x{each.index * 8:08x} {each.name:28} 0x{each.value >> 8:014x}")


def set_payload(folder: str, index: str, payload: str, *, mended: bool) -> None:
    """Set the payload of a word."""
    image = opened(folder)
    set_word(image.path, anatomy(image).words[number(index)], number(payload), mended=mended)


def cases(folder: str, part: str = "") -> None:
    """List the damages."""
    image = opened(folder)
    for case in (*field_cases(image), *structure_cases(image)):
        if part in case.name:
            print(f"{case.demand:7} {case.name}")


def make(folder: str, name: str) -> None:
    """Make one damage."""
    image = opened(folder)
    next(case for case in (*field_cases(image), *structure_cases(image)) if case.name == name).apply(image)


def main() -> int:
    """Run one action."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("build", "words", "flip", "set", "swap", "cut", "cases", "make"))
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--stale", action="store_true", help="leave the checksum as it is")
    options = parser.parse_args()
    given = options.arguments
    try:
        match options.action:
            case "flip":
                flip_bit(Path(given[0]), number(given[1]), number(given[2]))
            case "set":
                set_payload(*given, mended=not options.stale)
            case "swap":
                swap_blocks(Path(given[0]), number(given[1]), number(given[2]))
            case "cut":
                truncate(Path(given[0]), number(given[1]))
            case action:
                {"build": build, "words": words, "cases": cases, "make": make}[action](*given)
    except (IndexError, TypeError):
        parser.error(f"{options.action} takes other arguments")
    return 0


if __name__ == "__main__":
    sys.exit(main())
