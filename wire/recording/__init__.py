"""Recordings: their format, and reading them."""
