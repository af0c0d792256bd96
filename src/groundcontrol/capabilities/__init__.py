"""The capabilities: one folder each, bringing kinds, reconcilers and a manifest."""
