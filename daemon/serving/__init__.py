"""From a request to its answer, without I/O."""
