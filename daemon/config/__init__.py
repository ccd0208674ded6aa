"""What can be configured: files, flags and bounds."""
