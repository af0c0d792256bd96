"""The workloads and what they cost here. `make bench` runs them; nothing of this is a test."""
