"""sigd: a low-latency trading-signal inference daemon."""

__version__ = "0.1.0"
