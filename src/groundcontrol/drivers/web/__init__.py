"""Addresses on the web: asks those that the operator named, and nothing else."""
