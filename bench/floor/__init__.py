"""What this machine can do at best."""
