"""Virtual machines on tiered memory: device images of byte-addressable NVM, their snapshots and their purging."""

__version__ = "0.1.0"
