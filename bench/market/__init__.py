"""Synthetic and recorded markets through a daemon."""
