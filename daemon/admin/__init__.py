"""The admin socket: questions about a running daemon, and metrics."""
