"""Swap files: what is recorded, how a state is judged, and the bugs that are planted."""
