"""Building engines: a model file in, an engine with its manifest out."""
