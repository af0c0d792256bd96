"""In-memory implementations of the ports, for tests; each passes its port's contract tests."""
