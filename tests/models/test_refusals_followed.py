"""Each refusal's own line, followed to the letter, ends with a model that answers as ONNX Runtime does."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper, numpy_helper
from tests.exporters.reference import Reference
from tests.models.onnx.test_flatten import FLOAT, INT64, MATMUL, STRING, W, answers, rows_for, value, write

from sigd.models.errors import ModelRefused
from sigd.models.reading import ReadOptions
from sigd.models.registry import open_backend
from sigd.models.spec import read_spec

_DIMS = re.compile(r"(?:--dim \S+=\w+ ?)+")


def refusal_of(path: Path) -> str:
    with pytest.raises(ModelRefused) as refusal:
        open_backend(path, "onnxruntime", 4, name="m")
    return str(refusal.value)


def served(path: Path, sizes: dict[str, int] | None = None, batch_rows_max: int = 4) -> None:
    """Open it as `sigd serve` does, and compare."""
    reading = ReadOptions(sizes or {})
    backend = open_backend(path, "onnxruntime", batch_rows_max, name="m", reading=reading)
    rows = rows_for(backend.spec)
    reference = Reference(path, sizes or {})
    assert np.array_equal(answers(backend, rows), [reference.answer(row) for row in rows])
    backend.close()


def mean_over_time(folder: Path, time: str | None) -> Path:
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)]
    return write(
        folder, nodes, [value("x", FLOAT, ["N", time, 2])], [value("y", FLOAT, ["N", 2])], weights=()
    )


def ranking(folder: Path) -> Path:
    """The weight of each instrument depends on the others'."""
    nodes = [MATMUL, helper.make_node("Softmax", ["y"], ["p"], axis=0)]
    return write(folder, nodes, [value("x", FLOAT, ["k", 4])], [value("p", FLOAT, ["k", 3])])


def setting_beside_rows(folder: Path) -> Path:
    """A rate without a batch axis, beside rows that have one, and a state whose batch is on axis 1."""
    nodes = [
        helper.make_node("Cast", ["rate"], ["f"], to=FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
        helper.make_node("Identity", ["state"], ["next"]),
    ]
    inputs = [value("x", FLOAT, [None, None]), value("state", FLOAT, [2, None, 3]), value("rate", INT64, [])]
    outputs = [value("y", FLOAT, [None, None]), value("next", FLOAT, [2, None, 3])]
    return write(folder, nodes, inputs, outputs, weights=())


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda folder: mean_over_time(folder, "T"), 5),
        (lambda folder: mean_over_time(folder, None), 5),
        (ranking, 8),
        (setting_beside_rows, 4),
    ],
)
def test_sizes_that_a_refusal_asks_for_lead_to_a_served_model(
    tmp_path: Path, make: Callable[[Path], Path], size: int
) -> None:
    path = make(tmp_path)
    (line,) = _DIMS.findall(refusal_of(path))
    words = shlex.split(line)[1::2]
    given = {name: value for name, _, value in (word.rpartition("=") for word in words)}
    served(path, {name: size if value in ("SIZE", "ROWS") else int(value) for name, value in given.items()})


def test_sizes_that_were_given_stand_in_the_next_refusal(tmp_path: Path) -> None:
    path = setting_beside_rows(tmp_path)
    with pytest.raises(ModelRefused, match=r"--dim x.1=4 --dim x.0=1 --dim state.1=1$"):
        read_spec(path, options=ReadOptions({"x.1": 4}))


def test_a_setting_is_fixed_in_a_copy_of_the_file(tmp_path: Path) -> None:
    """The model runs at a rate of 3 alone."""
    nodes = [
        helper.make_node("Sub", ["rate", "three"], ["place"]),
        helper.make_node("Gather", ["table", "place"], ["offset"]),
        helper.make_node("Add", ["x", "offset"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.array(3, np.int64), "three"),
        numpy_helper.from_array(np.array([7], np.float32), "table"),
    ]
    inputs = [value("x", FLOAT, [1, 3]), value("rate", INT64, [])]
    refusal = refusal_of(write(tmp_path, nodes, inputs, [value("y", FLOAT, [1, 3])], weights))
    _, python, code = shlex.split(refusal[refusal.index("python3 -c") :])
    assert python == "-c"
    ran = [sys.executable, "-c", code.replace("VALUE", "3")]
    subprocess.run(ran, check=True, cwd=tmp_path)
    backend = open_backend(tmp_path / "fixed.onnx", "onnxruntime", 4)
    assert backend.spec.features == 3
    assert answers(backend, np.zeros((1, 3), np.float32)).tolist() == [[7, 7, 7]]
    backend.close()


def test_a_column_of_text_is_numbered(tmp_path: Path) -> None:
    """What is mapped to numbers before the training is an input of integers."""
    encode = helper.make_node(
        "LabelEncoder",
        ["venue"],
        ["y"],
        domain="ai.onnx.ml",
        keys_strings=["XCME", "XEUR"],
        values_floats=[1.0, 2.0],
    )
    output = value("y", FLOAT, ["N", 1])
    refusal = refusal_of(write(tmp_path, [encode], [value("venue", STRING, ["N", 1])], [output], weights=()))
    assert "Int64TensorType([None, 1])" in refusal
    cast = helper.make_node("Cast", ["venue"], ["y"], to=FLOAT)
    served(write(tmp_path, [cast], [value("venue", INT64, ["N", 1])], [output], weights=()))


def test_a_window_is_as_long_as_the_refusal_says(tmp_path: Path) -> None:
    def window(length: int) -> Path:
        nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)]
        x = value("x", FLOAT, ["N", length, 40])
        return write(tmp_path, nodes, [x], [value("y", FLOAT, ["N", 40])], weights=())

    found = re.search(r"at most (\d+) in place of 500 on axis 1 of input 'x'", refusal_of(window(500)))
    assert found is not None
    served(window(int(found[1])))


def test_outputs_that_are_too_many_are_taken_apart(tmp_path: Path) -> None:
    wide = numpy_helper.from_array(np.ones((4, 16_370), np.float32), "wide")
    nodes = [MATMUL, helper.make_node("MatMul", ["x", "wide"], ["all"])]
    outputs = [value("all", FLOAT, ["N", 16_370]), value("y", FLOAT, ["N", 3])]
    path = write(tmp_path, nodes, [value("x", FLOAT, ["N", 4])], outputs, [W, wide])
    assert "onnx.utils.extract_model(FILE, NEW_FILE, [INPUT], [OUTPUT])" in refusal_of(path)
    onnx.utils.extract_model(str(path), str(tmp_path / "fewer.onnx"), ["x"], ["y"])
    served(tmp_path / "fewer.onnx")


def batch_norm(folder: Path, *, training: bool) -> Path:
    statistics = [
        numpy_helper.from_array(np.full(4, start, np.float32), name)
        for name, start in (("scale", 2.0), ("bias", 0.5), ("mean", 0.1), ("variance", 1.5))
    ]
    names = ["x", *(one.name for one in statistics)]
    gives = ["y", "mean_now", "variance_now"] if training else ["y"]
    node = helper.make_node("BatchNormalization", names, gives, training_mode=int(training))
    shape = [value("x", FLOAT, ["N", 4])], [value("y", FLOAT, ["N", 4])]
    return write(folder, [node], *shape, statistics)


def test_a_normalisation_in_training_mode_is_exported_in_inference_mode(tmp_path: Path) -> None:
    assert "export it in inference mode (model.eval())" in refusal_of(batch_norm(tmp_path, training=True))
    served(batch_norm(tmp_path, training=False))


def test_a_scale_of_the_whole_batch_is_served_row_by_row(tmp_path: Path) -> None:
    nodes: list[NodeProto] = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    path = write(tmp_path, nodes, [value("x", FLOAT, ["N", 4])], [value("y", FLOAT, ["N", 3])])
    assert "serve it with batch_rows_max 1" in refusal_of(path)
    served(path, batch_rows_max=1)


def test_weights_that_were_left_behind_are_copied_or_put_inside(tmp_path: Path) -> None:
    path = write(tmp_path, [MATMUL], [value("x", FLOAT, ["N", 4])], [value("y", FLOAT, ["N", 3])])
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.data", size_threshold=0)
    weights = (tmp_path / "w.data").read_bytes()
    (tmp_path / "w.data").unlink()
    assert "keeps weights in 'w.data'" in refusal_of(path)
    (tmp_path / "w.data").write_bytes(weights)
    served(path)


def test_a_newer_ir_version_is_written_as_an_older_one(tmp_path: Path) -> None:
    path = write(tmp_path, [MATMUL], [value("x", FLOAT, ["N", 4])], [value("y", FLOAT, ["N", 3])])
    model = onnx.load(path)
    model.ir_version = 99
    path.write_bytes(model.SerializeToString())
    found = re.search(r"model.ir_version = (\d+) before onnx.save", refusal_of(path))
    assert found is not None
    model.ir_version = int(found[1])
    path.write_bytes(model.SerializeToString())
    assert read_spec(path).features == 4
