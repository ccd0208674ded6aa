"""What ONNX Runtime itself answers for flat rows, one row a call, from the file as its exporter wrote it.

Nothing of sigd's wrapping is used here: inputs are cut out of the row by what the file declares, outputs are
put side by side as the wire's page says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_TYPES: dict[str, Any] = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "bool": np.bool_,
    **{
        f"{sign}int{bits}": np.dtype(f"{sign}int{bits}").type
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


class Reference:
    """A model file in ONNX Runtime.

    Args:
        sizes: of its axes by name or as "INPUT.AXIS"; every other free axis is the batch, of one row.
        labels: the texts of its labels, for answers that are text.
    """

    def __init__(self, path: Path, sizes: Mapping[str, int], labels: tuple[str, ...] = ()) -> None:
        import onnx
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        model = onnx.load(path)
        _drop_double_zip_maps(model)
        content = model.SerializeToString()
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._sizes = sizes
        self._labels = labels

    def answer(self, row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The outputs for one row, float32."""
        feeds, first = {}, 0
        for value in self._session.get_inputs():
            shape = [self._size(value.name, axis, dim) for axis, dim in enumerate(value.shape)]
            width = int(np.prod(shape))
            feeds[value.name] = self._fed(value, row[first : first + width].reshape(shape))
            first += width
        assert first == len(row)
        return np.concatenate([self._flat(answer) for answer in self._session.run(None, feeds)])

    def _size(self, name: str, axis: int, dim: int | str | None) -> int:
        if f"{name}.{axis}" in self._sizes:
            return self._sizes[f"{name}.{axis}"]
        if isinstance(dim, int) and dim > 0:
            return dim
        return self._sizes.get(str(dim), 1)

    def _fed(self, value: Any, piece: npt.NDArray[np.float32]) -> Any:
        import ml_dtypes
        import onnxruntime

        kind = value.type.removeprefix("tensor(").removesuffix(")")
        if kind == "bfloat16":
            bits = piece.astype(ml_dtypes.bfloat16).view(np.uint16)
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, 16)
        return piece.astype(_TYPES[kind])

    def _flat(self, answer: Any) -> npt.NDArray[np.float32]:
        if isinstance(answer, list):
            # A ZipMap's sequence of maps, in the order of its classes.
            return np.array([list(one.values()) for one in answer], np.float32).reshape(-1)
        if answer.dtype == object:
            return np.array([self._labels.index(text) for text in answer.reshape(-1)], np.float32)
        return np.asarray(np.asarray(answer).astype(np.float32).reshape(-1))


def _drop_double_zip_maps(model: Any) -> None:
    """ONNX Runtime has no ZipMap of float64, which skl2onnx writes all the same: what it would have read is
    answered."""
    from onnx import ValueInfoProto

    doubles = {value.name for value in model.graph.input if value.type.tensor_type.elem_type == 11}
    for node in [node for node in model.graph.node if node.op_type == "ZipMap" and doubles]:
        model.graph.node.remove(node)
        for number, value in enumerate(model.graph.output):
            if value.name == node.output[0]:
                model.graph.output[number].CopyFrom(ValueInfoProto(name=node.input[0]))
