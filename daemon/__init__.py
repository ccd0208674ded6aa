"""The serving process: command line, listener, sessions, batcher, idle strategies."""
