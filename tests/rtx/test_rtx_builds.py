"""The real TensorRT-RTX builder: engines for an RTX 3090 (compute capability 8.6), built on the CPU."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper

from sigd.models.build.pipeline import build_engine
from sigd.models.build.progress import Unwatched
from sigd.models.build.request import Batches, BuildRequest
from sigd.models.build.runtimes import load
from sigd.models.engine import Environment, check_engine, read_engine, read_manifest
from sigd.models.errors import BackendUnavailable, ModelRefused
from sigd.models.layers import plan_layers
from sigd.models.manifest import NOT_MEASURED, Accuracy, Manifest, PrecisionName
from sigd.models.rows import seeded_rows
from sigd.models.spec import read_spec

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

Named = Callable[[str], Path]
Build = Callable[..., Manifest]
MODELS = ["lob-mlp", "lstm", "cnn-lstm", "attention"]
PRECISIONS = ["fp32", "tf32", "fp16", "int8"]
LARGEST_ERROR = {"fp32": 1e-5, "tf32": 1e-5, "fp16": 0.02, "int8": 0.3}
"""Of the converted graph on logits of about 1."""


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tmp_path / "m.engine"


@pytest.fixture
def build(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds for 8.6: (model, precision="fp32", **request) -> manifest. int8 is calibrated with seeded
    rows."""

    def build(model: Path, precision: PrecisionName = "fp32", **changes: Any) -> Manifest:
        request: dict[str, Any] = {"runtime": "tensorrt-rtx", "compute_capability": "8.6", **changes}
        if precision == "int8":
            request["calibration"] = tmp_path_factory.mktemp("rows") / "rows.npy"
            np.save(request["calibration"], seeded_rows(read_spec(model), 128, seed=9))
        return build_engine(BuildRequest(model=model, engine=engine, precision=precision, **request))

    return build


def rtx_3090() -> Environment:
    version = str(load("tensorrt-rtx").__version__)
    return Environment({"tensorrt-rtx": version}, "8.6", "NVIDIA GeForce RTX 3090", 20 << 30)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_builds_and_passes_the_check_for_its_gpu(
    model_named: Named, build: Build, engine: Path, name: str, precision: PrecisionName
) -> None:
    model = model_named(name)
    manifest = build(model, precision)
    assert manifest == read_manifest(engine)
    spec = check_engine(engine, environment=rtx_3090(), batch_rows_max=64)
    source = read_spec(model)
    assert (spec.features, spec.outputs, spec.input_name) == (source.features, source.outputs, "features")
    assert len(read_engine(spec)) == manifest.plan.size_bytes > 100_000
    assert manifest.accuracy == NOT_MEASURED
    assert isinstance(manifest.conversion_accuracy, Accuracy)
    assert manifest.conversion_accuracy.max_abs < LARGEST_ERROR[precision]
    assert [p.rows_max for p in manifest.profiles] == [1, 2, 4, 8, 16, 32, 64]


def test_one_profile_for_a_range(model_named: Named, build: Build) -> None:
    manifest = build(model_named("lob-mlp"), batches=Batches(rows_min=1, rows_opt=8, rows_max=32))
    assert manifest.batch_rows_max == 32


def test_a_fixed_batch_needs_no_profile(models: ModelMaker, build: Build) -> None:
    assert build(models.mlp(batch=4)).batch_rows == 4


def test_settings_come_back_from_the_builder_itself(model_named: Named, build: Build) -> None:
    flags = build(model_named("lob-mlp"), optimization_level=5, workspace_bytes_max=1 << 28).flags
    assert (flags["optimization_level"], flags["workspace_bytes_max"], flags["tf32"]) == (5, 1 << 28, False)
    assert build(model_named("lob-mlp"), "tf32").flags["tf32"] is True


def test_another_gpu_refuses_the_engine(model_named: Named, build: Build, engine: Path) -> None:
    build(model_named("lob-mlp"))
    with pytest.raises(ModelRefused, match=r"--compute-capability 8\.9"):
        check_engine(engine, environment=Environment(rtx_3090().versions, "8.9"))


def test_an_unsupported_operator_is_named_with_its_node(
    models: ModelMaker, build: Build, engine: Path
) -> None:
    nodes = [
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("Det", ["positive"], ["logits"], name="covariance"),
    ]
    with pytest.raises(ModelRefused, match=r"does not support operator Det \(node 'covariance'"):
        build(models.graph(nodes, ["N", 4, 4], ["N"]))
    assert not list(engine.parent.iterdir())


def test_fp32_before_ampere_is_refused_with_the_node(model_named: Named, build: Build, engine: Path) -> None:
    with pytest.raises(
        ModelRefused, match=r"node '.*' cannot run in fp32 on compute capability 7\.5 .*--precision"
    ):
        build(model_named("lob-mlp"), compute_capability="7.5")
    assert not list(engine.parent.iterdir())
    assert build(model_named("lob-mlp"), "fp16", compute_capability="7.5").target.compute_capability == "7.5"


def test_a_gpu_that_the_builder_does_not_know_is_refused(model_named: Named, build: Build) -> None:
    with pytest.raises(
        ModelRefused, match=r"does not build for compute capability 9\.0, expected one of 7\.5, 8\.0, 8\.6"
    ):
        build(model_named("lob-mlp"), compute_capability="9.0")


def test_a_plan_cannot_be_read_without_its_gpu(model_named: Named, build: Build, engine: Path) -> None:
    build(model_named("lob-mlp"))
    with pytest.raises(BackendUnavailable, match="only on the GPU that it is for"):
        plan_layers(load("tensorrt-rtx"), engine.read_bytes())


class Steps(Unwatched):
    """Counts the builder's steps. At step `interrupt_at` it presses Ctrl-C, and waits until that has been
    heard."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.steps = 0
        self._interrupt_at = interrupt_at

    def step_done(self, name: str, step: int) -> None:
        if threading.current_thread() is threading.main_thread():
            return
        self.steps += 1
        if self.steps == self._interrupt_at:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.5)


def test_an_interrupt_stops_the_real_builder(model_named: Named, engine: Path) -> None:
    request = BuildRequest(
        model=model_named("cnn-lstm"), engine=engine, runtime="tensorrt-rtx", compute_capability="8.6"
    )
    complete, stopped = Steps(), Steps(interrupt_at=5)
    build_engine(request, complete)
    for path in engine.parent.iterdir():
        path.unlink()
    with pytest.raises(KeyboardInterrupt):
        build_engine(request, stopped)
    assert 5 <= stopped.steps < complete.steps
    assert not list(engine.parent.iterdir())


def test_ctrl_c_on_the_command_leaves_nothing(models: ModelMaker, model_named: Named, engine: Path) -> None:
    sizes = ",".join(str(size) for size in range(1, 200))
    command = [
        sys.executable,
        "-m",
        "sigd.daemon",
        "build-engine",
        str(model_named("cnn-lstm")),
        "-o",
        str(engine),
    ]
    options = ["--runtime", "tensorrt-rtx", "--compute-capability", "8.6", "--batch-buckets", sizes]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        while not list(engine.parent.iterdir()):
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "cancelled; nothing was written" in err
    assert not list(engine.parent.iterdir())
