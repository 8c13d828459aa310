"""Apply what a check proved: counts that were too high, group words, counters, a damaged header copy, storage of free slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import layout as lay
from .header import encode_header

if TYPE_CHECKING:
    from .check import Walk
    from .device import Device


def apply_fixes(device: Device, walk: Walk) -> None:
    """Store the proven words in small commits, then rewrite a damaged header copy; killed anywhere, a second repair goes on.

    The walk must have seen the device as it is now: its words are absolute.
    """
    journal = device.journal
    step = journal.max_words // 2
    header = device.header
    log = range(header.log_start * lay.WORDS_PER_BLOCK, (header.log_start + header.log_blocks) * lay.WORDS_PER_BLOCK)
    with device.transaction():
        for indexes, values in walk.fixes:
            in_log = (indexes >= log.start) & (indexes < log.stop)
            for index in indexes[in_log].tolist():
                # No log record may name the log itself; these words mean nothing, so they go one by one.
                device.store.store_word(index * 8, 0)
            indexes, values = indexes[~in_log], values[~in_log]
            for start in range(0, len(indexes), step):
                journal.set_words(indexes[start : start + step], values[start : start + step])
                journal.commit()
        for group, _, used in device.blocks.iter_wrong_groups():
            device.blocks.store_group(group, used)
    device.slots.pairing.begin()
    if device.mass is not None:
        for slots in walk.free_slots_with_data:
            device.mass.punch(slots)
    if any(finding.structure == "header" for finding in walk.findings):
        block = encode_header(device.header)
        for copy in lay.HEADER_BLOCKS:
            # One at a time: the other copy is whole while this one is written.
            device.store.store_bytes(copy * lay.BLOCK_SIZE, [block])
            device.store.fence()
