"""Device images for the enumeration: an image with its log, and a mass store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.errors import NvmtoolError
from nvmtool.region import layout as lay
from nvmtool.region.header import choose_header

from ..recovered import Log, Logs
from ..subject import PER_BLOCK, Layout
from .media import MASS, NVM, open_recorded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nvmtool.region.header import Header

    from ..subject import Mask, Words
    from ..trace import Event, Media, Trace

MASS_SLOTS = 64
_PATH = Path("state.nvm")


class DeviceSubject:
    """Device images of one geometry."""

    # A record that is still in the log would bring an older word back over one that was stored too early.
    sticky = True

    def __init__(self, header: Header) -> None:
        """Take the areas from a header."""
        self._header = header
        self.layout = Layout({NVM: header.size_blocks, MASS: MASS_SLOTS})
        self._nvm = header.size_blocks * PER_BLOCK
        log = Log(self.layout.slices[NVM], header.log_start, header.log_blocks)
        self.logs = Logs(log)
        self.home = self.layout.mask(self.layout.slices[NVM])
        self.commits = self.layout.mask(log.area, slice(0, 2 * PER_BLOCK))
        self._counts = slice(header.count_start * PER_BLOCK, header.count_start * PER_BLOCK + header.data_blocks)

    def read_at_home(self, words: Words) -> Mask:
        """Return the words of all blocks but the log's and those whose count word is 0."""
        header = self._header
        used = np.zeros(len(words) // PER_BLOCK, bool)
        used[: header.size_blocks] = True
        used[header.log_start : header.log_start + header.log_blocks] = False
        used[header.data_start : header.data_start + header.data_blocks] = words[self._counts] != 0
        return np.repeat(used, PER_BLOCK)

    def read_far(self, words: Words) -> Mask:
        """Return the words of slots that have a slot word."""
        return self._far(self._used_slots(words))

    def leaks(self, words: Words) -> Mask:
        """Return the words of free slots."""
        return self._far(~self._used_slots(words))

    def decides(self, at: NDArray[np.int64]) -> Mask:
        """Tell which words count references."""
        return (at >= self._counts.start) & (at < self._counts.stop)

    def opens(self, words: Words) -> str:
        """Return what is wrong with both headers."""
        try:
            choose_header(words[:PER_BLOCK].tobytes(), words[PER_BLOCK : 2 * PER_BLOCK].tobytes(), _PATH)
        except NvmtoolError as problem:
            return str(problem)
        return ""

    def exempt(self, event: Event, durable: Words) -> bool:
        """Let the tag be stored (pairing.py proves its order, the enumeration tries it), and a header copy beside a sound one."""
        if event.medium == MASS:
            return event.atomic and event.offset < lay.BLOCK_SIZE
        block = event.offset // lay.BLOCK_SIZE
        if block not in lay.HEADER_BLOCKS:
            return False
        headers = durable[: 2 * PER_BLOCK].copy()
        headers[block * PER_BLOCK : (block + 1) * PER_BLOCK] = 0
        return not self.opens(headers)

    def contents(self, words: Words, lengths: dict[str, int]) -> Media:
        """Return the files; the mass store is as short as its words allow."""
        slots = np.flatnonzero(words[self._nvm :].reshape(-1, PER_BLOCK).any(axis=1))
        size = max(lengths[MASS], (int(slots[-1]) + 1) * lay.BLOCK_SIZE)
        return {NVM: words[: self._nvm].tobytes(), MASS: words[self._nvm :].tobytes()[:size]}

    def recover(self, trace: Trace, media: Media) -> None:
        """Open a device for writing and close it."""
        open_recorded(trace, media[NVM], media[MASS]).close()

    def _far(self, slots: Mask) -> Mask:
        return np.concatenate([np.zeros(self._nvm, bool), np.repeat(slots, PER_BLOCK)])

    def _used_slots(self, words: Words) -> Mask:
        """Return, per slot, whether its slot word is present; all where the table is broken, for the oracle to say so."""
        used = np.zeros(MASS_SLOTS, bool)
        used[0] = True
        tables = [(3, 0, int(words[lay.ROOT_BLOCK * PER_BLOCK + lay.field_index(lay.ROOT, "slot_table")]))]
        for level, first, pointer in tables:
            block = pointer >> 8 & lay.ADDRESS_MASK
            if pointer == 0:
                continue
            if block >= self._header.size_blocks:
                return np.ones(MASS_SLOTS, bool)
            found = words[block * PER_BLOCK : (block + 1) * PER_BLOCK]
            for position in np.flatnonzero(found).tolist():
                index = first << lay.TABLE_BITS | position
                if level:
                    tables.append((level - 1, index, int(found[position])))
                elif index < MASS_SLOTS:
                    used[index] = True
        return used
