"""sigd beside what teams use instead: one load generator, one schedule, one oracle, in turns in one run."""
