"""The demonstration: a small world to try the program on, imported by nothing else."""
