"""Engines on an NVIDIA GPU."""
