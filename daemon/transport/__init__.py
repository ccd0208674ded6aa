"""Sockets, rings and who may use them."""
