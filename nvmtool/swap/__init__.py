"""Swap files: thin, defragmented while their VM runs (T4), backed by thick reservations (T8)."""
