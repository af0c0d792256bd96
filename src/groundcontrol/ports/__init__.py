"""The ports: one file per thing the world can do, protocols and values only."""
