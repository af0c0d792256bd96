"""The drivers: one folder per product that does what a port asks."""
