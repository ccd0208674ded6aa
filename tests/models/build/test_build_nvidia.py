"""What reaches TensorRT's builder, and what each of its failures becomes. The builder is a stand-in;
tests/rtx has the real one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from sigd.models.build.pipeline import build_engine
from sigd.models.build.progress import Unwatched
from sigd.models.build.request import Batches, BuildRequest
from sigd.models.build.runtimes import Machine
from sigd.models.engine import read_manifest
from sigd.models.errors import BackendFailed, BackendUnavailable, ModelRefused
from sigd.models.layers import plan_layers
from sigd.models.manifest import NOT_MEASURED, Accuracy, Manifest, Target
from sigd.models.rows import seeded_rows
from sigd.models.spec import read_spec

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

Build = Callable[..., Manifest]


@pytest.fixture
def told(tmp_path: Path) -> Callable[[], Any]:
    """What the stand-in was told, read out of its plan."""
    return lambda: json.loads((tmp_path / "built.engine").read_bytes())


def test_each_bucket_is_a_profile_of_its_own(
    models: ModelMaker, build_rtx: Build, told: Callable[[], Any]
) -> None:
    build_rtx(models.mlp(), batches=Batches(rows_max=4))
    assert told()["profiles"] == [{"features": [[n, 8]] * 3} for n in (1, 2, 4)]
    assert told()["capabilities"] == [86]


def test_a_range_is_one_profile(models: ModelMaker, build_rtx: Build, told: Callable[[], Any]) -> None:
    build_rtx(models.conv(), batches=Batches(rows_min=1, rows_opt=8, rows_max=32))
    assert told()["profiles"] == [{"features": [[1, 2, 16], [8, 2, 16], [32, 2, 16]]}]


def test_a_fixed_batch_needs_no_profile(
    models: ModelMaker, build_rtx: Build, told: Callable[[], Any]
) -> None:
    build_rtx(models.mlp(batch=2))
    assert told()["profiles"] == []


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True), ("fp16", False)])
def test_tf32_is_on_only_where_it_is_asked_for(
    models: ModelMaker, build_rtx: Build, told: Callable[[], Any], precision: str, tf32: bool
) -> None:
    manifest = build_rtx(models.mlp(), precision=precision)
    assert told()["tf32"] is tf32
    assert manifest.flags["tf32"] is tf32


def test_precision_is_set_in_the_graph(
    models: ModelMaker, build_rtx: Build, told: Callable[[], Any], tmp_path: Path
) -> None:
    model = models.mlp()
    rows = tmp_path / "rows.npy"
    np.save(rows, seeded_rows(read_spec(model), 64, seed=0))
    build_rtx(model, precision="fp16")
    assert told()["operators"].count("Cast") == 2
    build_rtx(model, precision="int8", calibration=rows)
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(told()["operators"])


def test_every_node_has_a_name(models: ModelMaker, build_rtx: Build, told: Callable[[], Any]) -> None:
    build_rtx(models.mlp())
    assert told()["names"] == ["Gemm_0", "Relu_1", "Gemm_2"]


def test_the_accuracy_of_an_engine_that_cannot_run_here_is_not_measured(
    models: ModelMaker, build_rtx: Build
) -> None:
    manifest = build_rtx(models.mlp(), precision="fp16")
    assert manifest.accuracy == NOT_MEASURED
    assert isinstance(manifest.conversion_accuracy, Accuracy)
    # Float16 as a GPU computes it, which ONNX Runtime on a CPU does not.
    assert manifest.conversion_accuracy.measured_on.startswith("oracle")
    assert 0 < manifest.conversion_accuracy.max_abs < 0.01
    assert manifest.target.compute_capability == "8.6"
    assert manifest.target.gpu is None
    assert manifest.runtime_version == "1.7.1.116"


def test_settings_reach_the_builder_and_the_manifest(models: ModelMaker, build_rtx: Build) -> None:
    manifest = build_rtx(models.mlp(), optimization_level=5, workspace_bytes_max=1 << 28)
    assert manifest.flags == {
        "strongly_typed": True,
        "tf32": False,
        "optimization_level": 5,
        "workspace_bytes_max": 1 << 28,
    }


def test_a_precision_whose_range_is_left_is_refused(
    models: ModelMaker, build_rtx: Build, tmp_path: Path
) -> None:
    big = helper.make_tensor("big", TensorProto.FLOAT, [], [60000.0])
    nodes = [
        helper.make_node("Mul", ["features", "big"], ["once"]),
        helper.make_node("Mul", ["once", "big"], ["twice"]),
        helper.make_node("Div", ["twice", "big"], ["logits"]),
    ]
    model = models.graph(nodes, ["N", 4], ["N", 4], [big])
    with pytest.raises(ModelRefused, match=r"NaN or infinity in \d+ of \d+ rows .*--precision fp32"):
        build_rtx(model, precision="fp16")
    assert not list(tmp_path.iterdir())


def refused_graph(models: ModelMaker, name: str) -> Path:
    nodes = [
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("Det", ["positive"], ["logits"], name=name),
    ]
    return models.graph(nodes, ["N", 4, 4], ["N"])


@pytest.mark.parametrize(("name", "shown"), [("covariance", "covariance"), ("", "Det_1")])
def test_an_unsupported_operator_is_named_with_its_node(
    models: ModelMaker, build_rtx: Build, tmp_path: Path, name: str, shown: str
) -> None:
    with pytest.raises(
        ModelRefused, match=rf"operator Det \(node '{shown}', which gives logits\): .*--runtime onnxruntime"
    ):
        build_rtx(refused_graph(models, name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (
            (
                "Myelin ([pass.cpp:337] Cannot compile operation 'gemm_of_h0' for Turing (SM75): FP32 GEMM is"
                " not"
                " supported. In)"
            ),
            ModelRefused,
            r"node 'gemm_of_h0' cannot run in fp32 on compute capability 8\.6 .*FP32 GEMM is not supported",
        ),
        (
            "cudaError 35: driver version is insufficient",
            BackendUnavailable,
            "needs a GPU and its driver here",
        ),
        ("Error Code 10: Internal Error", BackendFailed, "could not build it: Error Code 10: Internal Error"),
    ],
)
def test_a_failed_build_says_why(
    models: ModelMaker,
    build_rtx: Build,
    rtx: ModuleType,
    tmp_path: Path,
    words: str,
    error: type,
    message: str,
) -> None:
    rtx.trouble["words"] = words
    with pytest.raises(error, match=message):
        build_rtx(models.mlp())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["create_builder_config", "add_optimization_profile"])
def test_a_call_that_gives_nothing_is_an_error(
    models: ModelMaker, build_rtx: Build, rtx: ModuleType, tmp_path: Path, call: str
) -> None:
    rtx.trouble["none"] = [call]
    with pytest.raises(BackendFailed, match="it logged nothing"):
        build_rtx(models.mlp())
    assert not list(tmp_path.iterdir())


def test_a_capability_that_the_builder_does_not_know_lists_those_that_it_does(
    models: ModelMaker, build_rtx: Build
) -> None:
    with pytest.raises(ModelRefused, match=r"compute capability 9\.0, expected one of 7\.5, 8\.6, 12\.0"):
        build_rtx(models.mlp(), compute_capability="9.0")


def test_tf32_before_ampere_is_refused(models: ModelMaker, build_rtx: Build) -> None:
    with pytest.raises(
        ModelRefused, match=r"tf32 needs compute capability 8\.0 or newer, this build is for 7\.5"
    ):
        build_rtx(models.mlp(), compute_capability="7.5", precision="tf32")


def test_tensorrt_builds_for_the_gpu_that_is_here(
    models: ModelMaker, build_trt: Build, told: Callable[[], Any]
) -> None:
    manifest = build_trt(models.mlp())
    assert (manifest.runtime, manifest.runtime_version) == ("tensorrt", "10.13.3.9")
    assert told()["capabilities"] == []
    assert manifest.target == Target(
        compute_capability="8.6", gpu="NVIDIA GeForce RTX 3090", driver="13.0", device_memory_bytes=4096
    )


def test_a_timing_cache_is_read_and_written_back(
    models: ModelMaker, build_trt: Build, tmp_path: Path
) -> None:
    cache = tmp_path / "timing.cache"
    for timed in (b"timed ", b"timed timed "):
        manifest = build_trt(models.mlp(), timing_cache=cache)
        assert cache.read_bytes() == timed
        assert manifest.timing_cache_sha256 == hashlib.sha256(timed).hexdigest()
    assert build_trt(models.mlp()).timing_cache_sha256 is None


def test_a_timing_cache_of_another_machine_is_refused_and_kept(
    models: ModelMaker, build_trt: Build, trt: ModuleType, tmp_path: Path
) -> None:
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"foreign")
    trt.trouble["cache"] = b"foreign"
    with pytest.raises(ModelRefused, match="timing cache was made on another GPU or by another version"):
        build_trt(models.mlp(), timing_cache=cache)
    assert list(tmp_path.iterdir()) == [cache]
    assert cache.read_bytes() == b"foreign"


class Watch(Unwatched):
    """Notes every call, and cuts the build short by an exception in its caller's thread where it is told
    to."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.threads: set[str] = set()

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        self.seen.append((name, steps))
        self.threads.add(threading.current_thread().name)


def test_progress_comes_from_our_phases_and_the_builders(
    models: ModelMaker, rtx: ModuleType, tmp_path: Path
) -> None:
    watch = Watch()
    request = BuildRequest(
        model=models.mlp(), engine=tmp_path / "m.engine", runtime="tensorrt-rtx", compute_capability="8.6"
    )
    build_engine(request, watch, Machine(frozenset({"tensorrt-rtx"}), None, "no driver"))
    names = [name for name, _ in watch.seen]
    assert names[0] == "Reading the model"
    assert ("Building engine", rtx.STEPS) in watch.seen
    assert names[-1] == "Writing"
    assert any(name.startswith("sigd-builder") for name in watch.threads)


def test_a_plan_that_cannot_be_read_here_says_so(rtx: Any) -> None:
    with pytest.raises(BackendUnavailable, match=r"only on the GPU that it is for .*cudaError 35"):
        plan_layers(rtx, b"plan")


def test_the_manifest_beside_the_plan_is_the_one_returned(
    models: ModelMaker, build_rtx: Build, tmp_path: Path
) -> None:
    assert build_rtx(models.mlp()) == read_manifest(tmp_path / "built.engine")
