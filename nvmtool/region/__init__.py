"""Device images: regions, snapshots, virtblocks, purging (T1, T2), and the checks on all of it."""
