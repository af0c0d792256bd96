"""The `ground` command; it talks to the API and imports no server code."""
