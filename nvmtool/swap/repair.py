"""Apply what a check of a swap file proved: counts, unused words, a damaged header copy; and have leaked storage given back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..media.header import COPIES
from . import layout as lay

if TYPE_CHECKING:
    from .check import Walk


def apply_fixes(walk: Walk) -> None:
    """Store the proven words in small commits, then rewrite a damaged header copy; killed anywhere, a second repair goes on.

    The file then looks like that of a killed process: whoever opens it for writing next gives back the storage that no page needs.
    The walk must have seen the file as it is now: its words are absolute.
    """
    raw = walk.raw
    journal, step = raw.journal, raw.journal.max_words // 2
    log_words = range(raw.fields["log_start"] * lay.WORDS_PER_PAGE, raw.frame_base)
    with raw.file.transaction():
        raw.root.put("working", 1)
        journal.commit()
        for indexes, values in walk.fixes:
            in_log = (indexes >= log_words.start) & (indexes < log_words.stop)
            for index in indexes[in_log].tolist():
                # No log record may name the log itself; these words mean nothing, so they go one by one.
                raw.store.store_word(index * 8, 0)
            indexes, values = indexes[~in_log], values[~in_log]
            for start in range(0, len(indexes), step):
                journal.set_words(indexes[start : start + step], values[start : start + step])
                journal.commit()
    if any(finding.structure == "header" for finding in walk.findings):
        block = lay.SWAP_FORMAT.encode(raw.fields)
        for copy in COPIES:
            # One at a time: the other copy is whole while this one is written.
            raw.store.store_bytes(copy * lay.PAGE, [block])
            raw.store.fence()
