"""A host: machine memory, VMs in pools, and what survives a restart of the hypervisor (docs/host.md)."""
