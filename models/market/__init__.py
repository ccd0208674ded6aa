"""Market data: the events of one instrument, the capture they are read from, and the book built from them."""
