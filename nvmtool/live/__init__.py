"""The outside world: regions and snapshots as block devices, and the management of an image that is being served."""
