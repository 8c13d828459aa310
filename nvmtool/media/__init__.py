"""The only code that writes: stores and fences, sealed words, the redo log, locks, new files."""
