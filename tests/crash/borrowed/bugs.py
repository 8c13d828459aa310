"""Planted bugs."""

from __future__ import annotations

from ..planting import Plant

BUGS: list[Plant] = []
