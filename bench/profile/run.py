"""One run of the profile: a model opened as a daemon opens it, on a core of its own."""

from __future__ import annotations

import gc
from pathlib import Path

from sigd.bench.profile.times import Times, measure
from sigd.daemon.errors import UsageError
from sigd.daemon.runtime.process import ignore_overflow, pin_to_cpu
from sigd.models.registry import open_backend
from sigd.models.zoo import default_model_path


def measure_model(model: Path | None, name: str, rows: int, seconds: float, cpu: int | None) -> Times:
    """Time the stages of that model on that backend, on that core.

    Raises:
        UsageError: the backend runs batches beside the daemon.
        DaemonError, ModelError: the model or the core cannot be had.
    """

    if cpu is not None:
        pin_to_cpu(cpu)
    ignore_overflow()
    backend = open_backend(model or default_model_path(), name, batch_rows_max=rows)
    try:
        if not backend.synchronous:
            raise UsageError(
                f"the backend {name} runs a batch beside the daemon, and only what the daemon does itself is"
                " timed"
                " here: choose one that runs on the CPU, or echo"
            )
        gc.collect()
        gc.disable()
        return measure(backend, rows, seconds)
    finally:
        gc.enable()
        backend.close()
