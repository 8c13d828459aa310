"""Real Linux guests under QEMU, for tests, the bench and sessions of the README."""
