"""A model in two parts is the same model, to the bit, whatever its weights are and wherever they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sigd.models import onnxrt
from sigd.models.onnx.file import read_onnx
from sigd.models.onnx.parts import OnnxParts, take_apart
from sigd.models.onnxrt import OnnxRuntimeBackend, onnx_parts
from sigd.models.spec import read_spec

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import ModelMaker


def answers(path: Path, parts: OnnxParts) -> bytes:
    backend = OnnxRuntimeBackend(read_spec(path), batch_rows_max=8)
    backend.load(parts)
    for _ in backend.prepare():
        pass
    backend.inputs[:] = np.random.default_rng(0).standard_normal(backend.inputs.shape, np.float32)
    backend.submit(8)
    return backend.outputs.tobytes()


@pytest.mark.parametrize("kind", ["mlp", "conv", "lstm", "scaled"])
def test_both_give_the_same_answers(models: ModelMaker, kind: str) -> None:
    path = {
        "mlp": models.mlp(64, (256, 128)),
        "conv": models.conv(16, 200),
        "lstm": models.lstm(10, 32, 64),
        "scaled": models.doubled(),
    }[kind]
    file = read_onnx(path)
    parts = take_apart(file.model)
    assert (len(parts.weights) > 4096) is (kind != "scaled")
    assert len(parts.graph) + len(parts.weights) < len(file.content) + 2000
    assert answers(path, parts) == answers(path, OnnxParts(file.content, b""))
    assert answers(path, OnnxParts(parts.graph, memoryview(parts.weights))) == answers(path, parts)


def test_the_model_itself_is_taken_apart(models: ModelMaker) -> None:
    """A copy of it would take as much memory once more, and the process along where there is none."""
    model = read_onnx(models.mlp(64, (256,))).model
    parts = take_apart(model)
    assert model.SerializeToString() == parts.graph


def test_small_weights_and_those_that_are_no_raw_bytes_stay(models: ModelMaker) -> None:
    wide = np.full((4, 2000), 0.5, np.float32)
    listed = helper.make_tensor("listed", TensorProto.FLOAT, wide.shape, wide.ravel().tolist())
    nodes = [
        helper.make_node("MatMul", ["features", "listed"], ["wide"]),
        helper.make_node("ReduceMean", ["wide"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Add", ["mean", "small"], ["logits"]),
    ]
    small = numpy_helper.from_array(np.ones((1, 1), np.float32), "small")
    path = models.graph(nodes, ["N", 4], ["N", 1], [listed, small])
    parts = take_apart(read_onnx(path).model)
    assert parts.weights == b""
    assert answers(path, parts) == answers(path, OnnxParts(path.read_bytes(), b""))


def test_weights_in_files_of_their_own_come_too(models: ModelMaker) -> None:
    path = models.mlp(64, (256, 128))
    apart = models.new_path()
    onnx.save(onnx.load(path), apart, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert answers(apart, take_apart(read_onnx(apart).model)) == answers(path, onnx_parts(read_spec(path)))


def test_a_release_that_takes_no_weights_from_memory_gets_them_inside(
    models: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old:
        class SessionOptions:
            """Of a release without it."""

    path = models.mlp(64, (256,))
    monkeypatch.setattr(onnxrt, "_runtime", lambda: Old)
    assert onnx_parts(read_spec(path)) == OnnxParts(path.read_bytes(), b"")
