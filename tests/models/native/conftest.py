"""Models for the tests of the native kernels, and how one is run on each instruction set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sigd.models.manifest import PrecisionName
from sigd.models.native.backend import kernels, kernels_are_built
from sigd.models.native.lowering import lower
from sigd.models.onnx.file import OnnxFile
from sigd.models.spec import spec_of

Array = npt.NDArray[Any]


class Run(Protocol):
    """See `same_bits`."""

    def __call__(
        self, model: onnx.ModelProto, rows: Array, precision: PrecisionName = "fp32"
    ) -> dict[str, Array]:
        """The answers by instruction set."""


needs_kernels = pytest.mark.skipif(not kernels_are_built(), reason="the native kernels are not built")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without kernels only the tests of what is refused then run."""
    for item in items:
        if "native" in item.path.parts and "without_kernels" not in item.name:
            item.add_marker(needs_kernels)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    features: Sequence[int],
    outputs: Sequence[int],
    weights: dict[str, Array] | None = None,
    ml: int = 3,
    opset: int = 20,
) -> onnx.ModelProto:
    """A model from "features" to "answer", with rows of those shapes."""
    graph = helper.make_graph(
        list(nodes),
        "model",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", *features])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["N", *outputs])],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", ml)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def chain_of_layers(sizes: list[int], functions: list[str], seed: int) -> onnx.ModelProto:
    """Gemm after Gemm of those widths, the functions in turns behind them."""
    draw = np.random.default_rng(seed)
    nodes, weights, before = [], {}, "features"
    for number, (size_in, size_out) in enumerate(itertools.pairwise(sizes)):
        weights[f"w{number}"] = (draw.standard_normal((size_in, size_out)) / np.sqrt(size_in)).astype(
            np.float32
        )
        weights[f"b{number}"] = draw.standard_normal(size_out).astype(np.float32)
        after = "answer" if number == len(sizes) - 2 else f"y{number}"
        nodes.append(helper.make_node("Gemm", [before, f"w{number}", f"b{number}"], [f"z{number}"]))
        nodes.append(helper.make_node(functions[number % len(functions)], [f"z{number}"], [after]))
        before = after
    return model_of(nodes, [sizes[0]], [sizes[-1]], weights)


def plan_of(model: onnx.ModelProto, precision: PrecisionName = "fp32") -> bytes:
    """Its plan."""
    content = model.SerializeToString()
    spec = spec_of(OnnxFile(Path("model.onnx"), content, model, bytes(32)), "model")
    return lower(model, spec, precision)


def run_plan(
    plan: bytes, rows: Array, instruction_set: str | None = None, batch_rows: int | None = None
) -> Array:
    """The answers to rows, in batches of `batch_rows` (all together where it is None)."""
    engine = kernels().load(plan, instruction_set)
    size = batch_rows or len(rows)
    inputs = np.zeros((size, engine.features), np.float32)
    outputs = np.zeros((size, engine.outputs), np.float32)
    runner = engine.runner(inputs, outputs)
    answers = []
    for start in range(0, len(rows), size):
        batch = rows[start : start + size].reshape(-1, engine.features)
        inputs[:] = np.nan
        inputs[: len(batch)] = batch
        runner.run(len(batch))
        answers.append(outputs[: len(batch)].copy())
    return np.concatenate(answers)


def on_onnxruntime(model: onnx.ModelProto, rows: Array) -> Array:
    """The answers of ONNX Runtime to rows, as the model shapes them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"features": rows})[0])


@pytest.fixture
def same_bits() -> Run:
    """Runs a model on every instruction set, in several batches, and finds the same bits."""

    def same_bits(model: onnx.ModelProto, rows: Array, precision: PrecisionName = "fp32") -> dict[str, Array]:
        plan = plan_of(model, precision)
        answers = {name: run_plan(plan, rows, name) for name in kernels().instruction_sets()}
        first = next(iter(answers.values()))
        for name, answer in answers.items():
            assert answer.tobytes() == first.tobytes(), f"{name} gives other bits"
            for batch_rows in (1, 2, 3, 7):
                again = run_plan(plan, rows, name, batch_rows)
                assert again.tobytes() == first.tobytes(), f"{name} in batches of {batch_rows}"
        return answers

    return same_bits
