"""Another model while requests go on."""
