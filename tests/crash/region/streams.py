"""Streams made by hand, without the image that they would be sent from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nvmtool.region import stream_format as form

from .model import BLOCK

if TYPE_CHECKING:
    Piece = tuple[int, bytes | int]


def stream_of(header: form.StreamHeader, pieces: tuple[Piece, ...]) -> bytes:
    """Return a stream of pieces in ascending order: whole blocks of data from a logical block on, or a number of holes."""
    parts, nblocks = [header.encode()], 0
    for sequence, (first, what) in enumerate(pieces):
        if isinstance(what, int):
            count, part = what, form.encode_record(sequence, form.HOLE, first, what)
        else:
            data = np.frombuffer(what, np.uint8).reshape(-1, BLOCK)
            count, part = len(data), form.encode_record(sequence, form.DATA, first, len(data), form.crcs_of(data)) + what
        parts.append(part)
        nblocks += count
    return b"".join([*parts, form.encode_record(len(pieces), form.END, len(pieces), nblocks)])
