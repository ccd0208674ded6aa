"""What a model is: its spec, the backends that run it, the features it reads, its training."""
