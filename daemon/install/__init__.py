"""sigd as a systemd service."""
