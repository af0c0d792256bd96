"""The interfaces: how people and programs reach the kernel, derived from the kinds."""
