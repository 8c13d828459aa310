"""Swap files with a reservation: two files, four media, one of which speaks first and last (docs/format.md)."""
