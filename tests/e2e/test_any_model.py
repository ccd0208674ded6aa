"""Models of several inputs, outputs and types, served over both transports: bit-equal to ONNX Runtime on the
file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from tests.exporters.reference import Reference
from tests.models.onnx.test_flatten import FLOAT, value, write
from tests.models.onnx.test_missing import write_tree

from sigd.wire.status import HelloFlag, Status

if TYPE_CHECKING:
    from tests.e2e.conftest import StartDaemon

CLASSES = ("down", "flat", "up")


def write_classifier(folder: Path) -> Path:
    """An instrument's number and features in; a label as text and a ZipMap of probabilities out."""
    draw = np.random.default_rng(2)
    table = numpy_helper.from_array(draw.standard_normal((8, 6)).astype(np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "instrument"], ["known"]),
        helper.make_node("Add", ["known", "x"], ["sum"]),
        helper.make_node(
            "LinearClassifier",
            ["sum"],
            ["label", "scores"],
            domain="ai.onnx.ml",
            coefficients=draw.standard_normal(18).tolist(),
            intercepts=[0.0, 0.1, 0.2],
            classlabels_strings=CLASSES,
            post_transform="SOFTMAX",
        ),
        helper.make_node(
            "ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", classlabels_strings=CLASSES
        ),
    ]
    maps = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    graph = helper.make_graph(
        nodes,
        "classifier",
        [
            helper.make_tensor_value_info("instrument", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6]),
        ],
        [
            helper.make_tensor_value_info("label", TensorProto.STRING, ["N"]),
            helper.make_value_info("probabilities", helper.make_sequence_type_proto(maps)),
        ],
        [table],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8
    )
    path = folder / "classifier.onnx"
    save(model, path)
    return path


@pytest.mark.parametrize("shared_memory", [False, True])
def test_a_classifier_is_served_as_onnx_runtime_answers(
    start_daemon: StartDaemon, tmp_path: Path, shared_memory: bool
) -> None:
    path = write_classifier(tmp_path)
    daemon = start_daemon("--model", str(path))
    rows = np.random.default_rng(4).standard_normal((20, 7)).astype(np.float32)
    rows[:, 0] = np.arange(20) % 8
    reference = Reference(path, {}, CLASSES)
    with daemon.connect(shared_memory=shared_memory) as client:
        assert (client.welcome.features, client.welcome.outputs) == (7, 4)
        for row in rows:
            answer = client.request(row)
            assert answer.status == Status.OK
            assert np.array_equal(answer.outputs, reference.answer(row))


@pytest.mark.parametrize("wrong", [0.5, float("nan"), 2.0**24 + 2])
@pytest.mark.parametrize("shared_memory", [False, True])
def test_what_is_no_integer_is_bad_input_and_said_once(
    start_daemon: StartDaemon, tmp_path: Path, wrong: float, shared_memory: bool
) -> None:
    daemon = start_daemon("--model", str(write_classifier(tmp_path)))
    row = np.zeros(7, np.float32)
    with daemon.connect(shared_memory=shared_memory) as client:
        assert client.request(row).status == Status.OK
        for _ in range(3):
            row[0] = wrong
            assert client.request(row).status == Status.BAD_INPUT
            row[0] = 3
            assert client.request(row).status == Status.OK
    assert daemon.stop() == 0
    assert (
        daemon.said().count("as feature 0 (instrument), expected an integer from -16777216 to 16777216") == 1
    )


@pytest.mark.parametrize("shared_memory", [False, True])
@pytest.mark.parametrize("missing", ["auto", "refuse"])
def test_nan_is_a_missing_value_where_the_trees_know_it(
    start_daemon: StartDaemon, tmp_path: Path, missing: str, shared_memory: bool
) -> None:
    daemon = start_daemon("--model", str(write_tree(tmp_path)), "--missing", missing)
    row = np.full(4, np.nan, np.float32)
    with daemon.connect(shared_memory=shared_memory) as client:
        taken = missing == "auto"
        assert bool(client.welcome.flags & HelloFlag.TAKES_NAN) == taken
        for _ in range(3):
            answer = client.request(row)
            assert answer.status == (Status.OK if taken else Status.BAD_INPUT)
            if taken:
                assert answer.outputs.tolist() == [1.0]
            row[1] = np.inf
            assert client.request(row).status == Status.BAD_INPUT
            row[1] = np.nan
    assert daemon.stop() == 0
    assert "missing value" in daemon.said() if taken else "as configured" in daemon.said()


def test_a_free_axis_gets_its_size(start_daemon: StartDaemon, tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)]
    path = write(
        tmp_path, nodes, [value("x", FLOAT, ["N", "T", 2])], [value("y", FLOAT, ["N", 2])], weights=()
    )
    daemon = start_daemon("--model", str(path), "--dim", "T=3")
    with daemon.connect() as client:
        answer = client.request(np.array([1, 10, 2, 20, 3, 30], np.float32))
        assert answer.outputs.tolist() == [2.0, 20.0]
    run_sigd = subprocess.run(
        [sys.executable, "-m", "sigd.daemon", "reload", "--socket", str(daemon.socket)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run_sigd.returncode == 0, run_sigd.stderr
