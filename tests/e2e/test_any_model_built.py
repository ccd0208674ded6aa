"""`sigd build-engine` for every runtime that needs no GPU, of a model that reads integers and answers several
outputs: what it builds is served, bit by bit as it answers in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tests.e2e.test_models import tables
from tests.models.onnx.test_flatten import FLOAT, INT64, answers, value, write

from sigd.daemon.cli import cli
from sigd.models.engine import read_manifest
from sigd.models.manifest import Accuracy
from sigd.models.native.backend import kernels_are_built
from sigd.models.registry import open_backend
from sigd.models.rows import seeded_rows
from sigd.models.spec import read_spec
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.e2e.conftest import StartDaemon

BUILDS = [
    *(("native", precision) for precision in ("fp32", "fp16", "bf16", "int8")),
    *(("onnxruntime", precision) for precision in ("fp32", "fp16", "int8")),
]


def node(operation: str, reads: list[str], gives: str, **how: Any) -> NodeProto:
    return helper.make_node(operation, reads, [gives], **how)


def network(folder: Path, *, label_alone: bool = False) -> Path:
    """Two integers, a bool and six floats in; probabilities and a return out, or their label alone."""
    draw = np.random.default_rng(3)
    shapes = {"w1": (9, 16), "b1": (16,), "w2": (16, 3), "w3": (16, 1)}
    weights = [
        numpy_helper.from_array(draw.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        node("Cast", ["sides"], "sides_float", to=FLOAT),
        node("Cast", ["open"], "open_float", to=FLOAT),
        node("Concat", ["sides_float", "open_float", "x"], "all", axis=1),
        node("Gemm", ["all", "w1", "b1"], "hidden"),
        node("Relu", ["hidden"], "positive"),
        node("MatMul", ["positive", "w2"], "scores"),
    ]
    inputs = [
        value("sides", INT64, ["N", 2]),
        value("open", TensorProto.BOOL, ["N", 1]),
        value("x", FLOAT, ["N", 6]),
    ]
    if label_alone:
        nodes.append(node("ArgMax", ["scores"], "label", axis=1, keepdims=0))
        return write(folder, nodes, inputs, [value("label", INT64, ["N"])], weights)
    nodes += [
        node("Softmax", ["scores"], "probabilities", axis=1),
        node("MatMul", ["positive", "w3"], "return"),
    ]
    outputs = [value("probabilities", FLOAT, ["N", 3]), value("return", FLOAT, ["N", 1])]
    return write(folder, nodes, inputs, outputs, weights)


def build(model: Path, engine: Path, runtime: str, precision: str) -> str:
    """What the command says."""
    rows = engine.with_suffix(".npy")
    np.save(rows, seeded_rows(read_spec(model), 200, seed=5))
    arguments = ["build-engine", str(model), "-o", str(engine), "--runtime", runtime]
    arguments += ["--precision", precision, "--calibration", str(rows)]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_every_cpu_runtime_serves_integers_and_several_outputs(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    if not kernels_are_built():
        pytest.skip("the native kernels are not built: python hatch_build.py")
    model = network(tmp_path)
    engines = {f"{runtime}-{precision}": (runtime, precision) for runtime, precision in BUILDS}
    for name, (runtime, precision) in engines.items():
        said = build(model, tmp_path / f"{name}.engine", runtime, precision)
        assert "accuracy of the engine: max abs" in said
    rows = seeded_rows(read_spec(model), 30, seed=6)
    truth = open_backend(model, "oracle")
    expected = answers(truth, rows)
    daemon = start_daemon(
        "--config", str(tables(tmp_path, *((n, tmp_path / f"{n}.engine") for n in engines)))
    )
    for name, (runtime, _) in engines.items():
        here = open_backend(tmp_path / f"{name}.engine")
        assert here.name == runtime
        own = answers(here, rows)
        here.close()
        manifest = read_manifest(tmp_path / f"{name}.engine")
        assert [one.name for one in manifest.input_columns] == ["sides", "open", "x"]
        assert [one.name for one in manifest.output_columns] == ["probabilities", "return"]
        assert isinstance(manifest.accuracy, Accuracy)
        assert np.abs(own - expected).max() <= max(4 * manifest.accuracy.max_abs, 1e-5)
        with daemon.connect(model_name=name) as client:
            for row, answer in zip(rows, own, strict=True):
                got = client.request(row)
                assert (got.status, got.outputs.tobytes()) == (Status.OK, answer.tobytes())
            assert client.request(rows[0] + 0.5).status == Status.BAD_INPUT
    truth.close()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_label_alone_is_judged_by_agreement(
    start_daemon: StartDaemon, tmp_path: Path, precision: str
) -> None:
    model, engine = network(tmp_path, label_alone=True), tmp_path / "label.engine"
    said = build(model, engine, "onnxruntime", precision)
    assert "accuracy of the engine: integers, of which" in said
    assert "max abs" not in said
    accuracy = read_manifest(engine).accuracy
    assert isinstance(accuracy, Accuracy)
    assert accuracy.max_abs == 0
    assert accuracy.label_agreement > 0.9
    rows = seeded_rows(read_spec(model), 50, seed=6)
    daemon = start_daemon("--model", str(engine))
    here = open_backend(engine)
    with daemon.connect() as client:
        for row, answer in zip(rows, answers(here, rows), strict=True):
            got = client.request(row)
            assert (got.status, got.outputs.tobytes()) == (Status.OK, answer.tobytes())
    here.close()
