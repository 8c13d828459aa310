"""Crash tests: the recorder of stores, the enumeration of crash states, planted bugs, and real processes that are killed."""
