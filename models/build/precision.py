"""The precision of a model is set in its graph: TensorRT 11 and TensorRT-RTX obey the graph's types and
nothing else.

fp16 by ONNX Runtime's float16 converter, int8 by its static quantiser. Input and output stay float32.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from sigd.models.backend import Float32Array
from sigd.models.build.request import CalibrationMethod
from sigd.models.errors import ModelRefused
from sigd.models.manifest import RuntimeName
from sigd.models.spec import ModelSpec

if TYPE_CHECKING:
    from onnx import ModelProto

_QUANTISED: Final = ["Conv", "Gemm", "MatMul"]
"""Where the time goes. Their inputs are quantised and nothing else: every further quantisation costs
accuracy, and constants that are not weights (a scale, a mask) are refused by TensorRT when they are
quantised."""
_OPSET_MIN: Final = 13
"""Ranges for each channel came with opset 13."""
_CALIBRATION_BATCH_ROWS: Final = 64
_FLOAT16_MAX: Final = 65504.0
_READERS_OF_BOUNDS: Final = frozenset({"Add", "Clip", "Max", "Min", "Where"})
_RANGE_OF_SCALE_1: Final = 100.0
"""A tensor whose scale of 1 was measured ranges over 127 at least."""
_METHODS: Final[dict[CalibrationMethod, str]] = {
    "minmax": "MinMax",
    "percentile": "Percentile",
    "entropy": "Entropy",
}
"""Our names to the quantiser's."""


def to_fp16(model: ModelProto, path: Path) -> ModelProto:
    """The model with float16 inside and casts at both ends; `path` names it in errors.

    Raises:
        ModelRefused: it cannot be converted, or holds weights that are too large for float16.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    _check_fits_float16(model, path)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        converted = convert_float_to_float16(copy, keep_io_types=True)
        # The converter appends the casts of the inputs at the end, and a graph must be in order.
        OnnxModel(converted).topological_sort()
        onnx.checker.check_model(converted, full_check=True)
    except Exception as error:
        raise ModelRefused(
            f"{path}: cannot be converted to fp16 ({error}): build it with --precision fp32 or tf32"
        ) from error
    assert isinstance(converted, onnx.ModelProto)
    return converted


def to_int8(
    model: ModelProto, spec: ModelSpec, rows: Float32Array, method: CalibrationMethod, runtime: RuntimeName
) -> ModelProto:
    """The model with the inputs of its dense layers and convolutions quantised, weights by channel.

    Args:
        model: the float32 model.
        spec: of the same.
        rows: float32, shape (n, features): what the model will really see.
        method: how a range is taken from the values seen: all of them, or without their extremes.
        runtime: what is to run it. TensorRT takes no zero point but 0, and biases in float; ONNX Runtime has
            whole integer kernels only for unsigned inputs and integer biases, and otherwise dequantises for
            every batch.

    Raises:
        ModelRefused: nothing in it can be quantised, it cannot be run on the rows, or the rows give a tensor
        no range.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    if (spec.opset or 0) < _OPSET_MIN:
        raise ModelRefused(
            f"{spec.path}: opset {spec.opset}, int8 needs {_OPSET_MIN} or newer: export it anew, or run"
            " onnx.version_converter"
        )
    inferred = onnx.shape_inference.infer_shapes(model)
    # Says that shapes have been inferred, which is all that the quantiser's own preparation would add here.
    add_pre_process_metadata(inferred)
    on_cpu = runtime == "onnxruntime"
    with tempfile.TemporaryDirectory(prefix="sigd-int8-") as folder, _quiet_logging():
        target = Path(folder) / "int8.onnx"
        try:
            quantization.quantize_static(
                inferred,
                target,
                _Rows(spec, rows),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=_QUANTISED,
                per_channel=True,
                # Without VNNI (AVX2 alone) pairs of 8-bit products are added in 16 bits, which saturates: the
                # engine answers with other numbers than its graph. Weights of 7 bits are right on every
                # processor.
                reduce_range=on_cpu,
                activation_type=quantization.QuantType.QUInt8 if on_cpu else quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod[_METHODS[method]],
                extra_options={
                    "ActivationSymmetric": not on_cpu,
                    "WeightSymmetric": True,
                    "QuantizeBias": on_cpu,
                    "OpTypesToExcludeOutputQuantization": _QUANTISED,
                },
            )
        except Exception as error:
            raise ModelRefused(
                f"{spec.path}: cannot be quantised to int8 ({error}): build it with --precision fp16 or fp32"
            ) from error
        quantised = onnx.load(target)
    if not any(node.op_type == "QuantizeLinear" for node in quantised.graph.node):
        raise ModelRefused(
            f"{spec.path}: has no {', '.join(_QUANTISED)} with constant weights, so nothing of it can run in"
            " int8: build it"
            " with --precision fp16 or fp32"
        )
    assert isinstance(quantised, onnx.ModelProto)
    _check_ranges(model, quantised, spec, rows, method)
    return quantised


def _check_fits_float16(model: ModelProto, path: Path) -> None:
    """The converter cuts values off at the largest float16 in silence. A single bound or mask may be cut off:
    what is compared with it or added to it is a float16 too."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                tensors[node.output[0]] = attribute.t
    for name, tensor in tensors.items():
        if tensor.data_type != tensor.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        cut = np.isfinite(values) & (np.abs(values) > _FLOAT16_MAX)
        bound = values.size == 1 and readers.get(name, set()) <= _READERS_OF_BOUNDS
        if cut.any() and not bound:
            raise ModelRefused(
                f"{path}: {int(cut.sum())} of {values.size} values of {name!r} lie beyond {_FLOAT16_MAX:.0f},"
                " the largest"
                f" float16 (up to {float(np.abs(values[cut]).max()):.6g}), and would be cut off: scale the"
                " model's features"
                " or weights, or build it with --precision fp32 or tf32"
            )


def _check_ranges(
    model: ModelProto,
    quantised: ModelProto,
    spec: ModelSpec,
    rows: Float32Array,
    method: CalibrationMethod,
) -> None:
    """A tensor without a range gets the scale 1 from the quantiser, which rounds all that it will really hold
    to whole numbers. What really ranges over 255 has that scale too, so suspects are run."""
    suspects = _of_scale_1(quantised)
    if not suspects:
        return
    import onnx
    import onnxruntime

    widened = onnx.ModelProto()
    widened.CopyFrom(model)
    given = {value.name for value in (*widened.graph.input, *widened.graph.output)}
    inner = [name for name in suspects if name not in given]
    widened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    session = onnxruntime.InferenceSession(widened.SerializeToString(), providers=["CPUExecutionProvider"])
    low, high = dict.fromkeys(suspects, 0.0), dict.fromkeys(suspects, 0.0)
    batches = _Rows(spec, rows)
    while (feed := batches.get_next()) is not None:
        # Without a name, run() gives every output.
        seen = feed | (dict(zip(inner, session.run(inner, feed), strict=True)) if inner else {})
        for name in suspects:
            low[name] = min(low[name], float(seen[name].min()))
            high[name] = max(high[name], float(seen[name].max()))
    for name in suspects:
        if high[name] - low[name] < _RANGE_OF_SCALE_1:
            raise ModelRefused(
                f"{spec.path}: the {len(rows)} calibration rows give {name!r} no range for int8 ({method};"
                " its values are"
                f" {low[name]:.6g} to {high[name]:.6g}): calibrate with rows that the model will really see,"
                " take the"
                " ranges with --calibration-method minmax, or build it with --precision fp16 or fp32"
            )


def _of_scale_1(quantised: ModelProto) -> list[str]:
    """Tensors that are computed and quantised with a scale of exactly 1."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in quantised.graph.initializer}
    return [
        node.input[0]
        for node in quantised.graph.node
        if node.op_type == "QuantizeLinear"
        and node.input[0] not in tensors
        and bool((numpy_helper.to_array(tensors[node.input[1]]) == 1).all())
    ]


class _Rows:
    """The rows as the quantiser reads them: a dictionary for each batch, then None. Rows that do not fill the
    batch of a model that fixes one are left out."""

    def __init__(self, spec: ModelSpec, rows: Float32Array) -> None:
        batch_rows = spec.batch_rows or min(_CALIBRATION_BATCH_ROWS, len(rows))
        whole = len(rows) // batch_rows * batch_rows
        if not whole:
            raise ModelRefused(
                f"{spec.path}: {len(rows)} rows to calibrate with, expected at least the {batch_rows} of one"
                " batch"
            )
        batches = rows[:whole].reshape(-1, batch_rows, *spec.input_dims)
        self._batches = iter([{spec.input_name: np.ascontiguousarray(batch)} for batch in batches])

    def get_next(self) -> dict[str, Float32Array] | None:
        return next(self._batches, None)


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """The quantiser reports to the root logger, in terms of its own files, and sets that logger up; undo
    both."""
    root = logging.getLogger()
    handlers, disabled = list(root.handlers), root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
