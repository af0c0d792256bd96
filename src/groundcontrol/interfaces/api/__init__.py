"""The HTTP API, derived from the kinds."""
