"""What the TensorRT backend costs the host for each batch, on the simulated driver without device time.

    python tests/simcuda/prepare.py -- python tests/simcuda/measure.py

From `submit()` to a `ready()` that says yes: flushing denormals, launching the graph, recording the event,
asking for it, and the two copies of the simulated driver; a kernel that does nothing. Exit code 1 where p50
is over its bound, or the driver counts anything but one graph launch and one event record for each batch, or
an allocation.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEATURES: Final = 64
OUTPUTS: Final = 3
P50_US_MAX: Final = {1: 5.0, 64: 10.0}
"""Bound of the median, by rows."""
EXPECTED: Final = {"cuGraphLaunch": 1, "cuEventRecord": 1, "cuEventQuery": 1}
"""Calls of the driver for each batch; nothing else, so nothing is allocated either."""


def write_model(path: Path) -> None:
    """A dense layer, [N, 64] -> [N, 3]; what it computes does not matter here."""
    weights = numpy_helper.from_array(np.ones((FEATURES, OUTPUTS), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "w"], ["logits"])],
        "measured",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", OUTPUTS])],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def times_ns(backend: Any, rows: int, batches: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Host time of each batch, and of taking the time subtracted, as a sorted array."""
    submit, ready = backend.submit, backend.ready
    taken = np.empty(batches, np.int64)
    for batch in range(batches):
        start = perf_counter_ns()
        submit(rows)
        while not ready():
            pass
        taken[batch] = perf_counter_ns() - start
    return np.sort(taken)


def measure(rows: int, batches: int, *, mapped: bool) -> dict[str, Any]:
    """One line of the report."""
    import simcuda_control  # type: ignore[import-not-found]

    from sigd.models.build.pipeline import build_engine
    from sigd.models.build.request import Batches, BuildRequest
    from sigd.models.gpu.options import GpuOptions
    from sigd.models.gpu.tensorrt import tensorrt_backend

    control = simcuda_control.loaded()
    with tempfile.TemporaryDirectory() as folder:
        model, engine = Path(folder) / "model.onnx", Path(folder) / "model.engine"
        write_model(model)
        build_engine(BuildRequest(model=model, engine=engine, batches=Batches(rows_max=64)))
        # Engines that are deserialised from here on run a kernel that does nothing.
        os.environ["STANDIN_KERNEL_DOES_NOTHING"] = "1"
        backend = tensorrt_backend(engine, 64, options=GpuOptions(mapped_io=mapped))
        backend.open()
        del os.environ["STANDIN_KERNEL_DOES_NOTHING"]
        times_ns(backend, rows, batches // 10)
        gc.collect()
        gc.disable()
        before = control.all_calls()
        taken = times_ns(backend, rows, batches)
        after = control.all_calls()
        gc.enable()
        backend.close()
    calls = {name: (after[name] - before[name]) / batches for name in after if after[name] != before[name]}
    p50_us, p99_us = (float(np.percentile(taken, q)) / 1000 for q in (50, 99))
    return {
        "rows": rows,
        "mapped": mapped,
        "batches": batches,
        "p50_us": p50_us,
        "p99_us": p99_us,
        "p50_us_max": P50_US_MAX[rows],
        "calls_per_batch": calls,
        "good": p50_us <= P50_US_MAX[rows] and calls == EXPECTED,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batches", type=int, default=20_000, help="how many to time (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if "SIMCUDA_HOME" not in os.environ:
        print(f"run it as: python tests/simcuda/prepare.py -- python {sys.argv[0]}", file=sys.stderr)
        sys.exit(3)
    lines = [measure(rows, options.batches, mapped=mapped) for mapped in (False, True) for rows in P50_US_MAX]
    if options.json:
        print(json.dumps(lines, indent=2))
    else:
        for line in lines:
            calls = ", ".join(f"{count:g} {name}" for name, count in line["calls_per_batch"].items())
            print(
                f"{line['rows']:3} rows, {'mapped' if line['mapped'] else 'copied'}: p50"
                f" {line['p50_us']:5.2f} us (at most"
                f" {line['p50_us_max']:g}), p99 {line['p99_us']:5.2f} us; {calls}:"
                f" {'good' if line['good'] else 'TOO MUCH'}"
            )
    sys.exit(0 if all(line["good"] for line in lines) else 1)


if __name__ == "__main__":
    main()
