"""A real Vault on one port of this machine: built once from pinned sources, then started with data of its own."""
