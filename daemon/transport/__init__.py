"""Sockets, rings, and which users may connect."""
