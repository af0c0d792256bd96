"""Clouds that run OpenStack: one region, reached with one service account."""
