"""A run of a graph for the shapes and types of its answers: what it declares may be wrong, or missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sigd.models.errors import BackendUnavailable, ModelRefused
from sigd.models.onnx.columns import WHOLE_CALL, Columns, row_width
from sigd.models.onnx.flatten import drop_zip_maps, flatten_inputs, is_zip_map

if TYPE_CHECKING:
    from onnx import ModelProto

    from sigd.models.onnx.file import OnnxFile

_LOG_FATAL: Final = 4
_SHAPES_REFUSED: Final = "ShapeInferenceError"
_NOT_NUMPY: Final = {"tensor(float)": "float32", "tensor(double)": "float64"}


class ShapesRefused(ModelRefused):
    """A part of the graph that would not run cannot have the shapes that are known now."""


class CannotRun(Exception):
    """ONNX Runtime cannot run that many rows; the message says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One output of one run.

    Attributes:
        dtype: "float32", or for example "string" or "seq(map(int64,tensor(float)))".
        shape: with the batch.
    """

    dtype: str
    shape: tuple[int, ...]


class Trial:
    """A graph whose inputs are read from rows, and whose outputs are as they are.

    Args:
        file: the model, which is left as it is.
        inputs: all of them.
        sizes_hidden: see `flatten`.

    Attributes:
        outputs: the names that the graph gives its outputs.
        served_as: for each the tensor that would be served; of a ZipMap what it reads.

    Raises:
        BackendUnavailable: ONNX Runtime is not installed.
        ShapesRefused: it refuses the graph because of the sizes of its inputs.
        ModelRefused: it refuses the graph.
    """

    def __init__(self, file: OnnxFile, inputs: Sequence[Columns], *, sizes_hidden: bool = False) -> None:
        import onnx

        try:
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailable(
                f"the package onnxruntime cannot be imported ({error}): pip install onnxruntime"
            ) from error
        model = onnx.ModelProto()
        model.CopyFrom(file.model)
        self.outputs = [str(value.name) for value in model.graph.output]
        self.served_as = _served_as(model, self.outputs)
        flatten_inputs(model, inputs, sizes_hidden=sizes_hidden)
        drop_zip_maps(model)
        del model.graph.output[:]
        # Without a declaration: it is worked out.
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(self.served_as))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _LOG_FATAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            kind = ShapesRefused if _SHAPES_REFUSED in str(error) else ModelRefused
            raise kind(f"{file.path}: ONNX Runtime {onnxruntime.__version__} refuses it: {error}") from error
        self._name = model.graph.input[0].name
        whole = inputs[0].batch_axis == WHOLE_CALL
        self._dims = inputs[0].dims if len(inputs) == 1 and inputs[0].is_flat else (row_width(inputs),)
        self._types = {value.name: value.type for value in self._session.get_outputs()}
        self._rows = 1 if whole else None

    def run(self, rows: int) -> list[Answer]:
        """Run so many rows: of zeros, or of ones where zeros will not do. One answer for each of `outputs`.

        Raises:
            CannotRun: neither will do.
        """
        first: Exception | None = None
        for value in (0.0, 1.0):
            try:
                return self._run(np.full((self._rows or rows, *self._dims), value, np.float32))
            except Exception as error:  # noqa: BLE001  the runtime's own, of any kind
                first = first or error
        raise CannotRun(f"ONNX Runtime cannot run a batch of {rows} rows of it: {first}") from first

    def _run(self, rows: np.ndarray[Any, Any]) -> list[Answer]:
        names = list(self._types)
        tensors = [name for name in names if self._types[name].startswith("tensor(")]
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._name, rows)
        for name in names:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        answers = {}
        for name, value in zip(names, binding.get_outputs(), strict=True):
            kind = self._types[name]
            shape = tuple(value.shape()) if name in tensors else ()
            answers[name] = Answer(_element(kind), shape)
        return [answers[name] for name in self.served_as]


def _element(kind: str) -> str:
    """NumPy's name for what a tensor holds; what is no tensor as the runtime calls it."""
    if kind in _NOT_NUMPY or not kind.startswith("tensor("):
        return _NOT_NUMPY.get(kind, kind)
    return kind.removeprefix("tensor(").removesuffix(")")


def _served_as(model: ModelProto, outputs: Sequence[str]) -> list[str]:
    read = {node.output[0]: str(node.input[0]) for node in model.graph.node if is_zip_map(node)}
    return [read.get(name, name) for name in outputs]
