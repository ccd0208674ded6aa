"""An engine's manifest against the machine: driver, runtime, compute capability, memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from sigd.daemon.doctor.engine import Runtime, driver_fits, engine_fits, installed_runtimes
from sigd.daemon.doctor.examination import examine_cards
from sigd.daemon.doctor.gpus import Card, Gpus
from sigd.daemon.doctor.host import Host
from sigd.models import manifest
from sigd.models.manifest import RuntimeName

MakeHost = Callable[..., Host]
RUNTIMES: dict[RuntimeName, Runtime] = {"tensorrt": Runtime("10.13.3.9", 12)}
CARD = Card(0, "NVIDIA GeForce RTX 3090", compute_capability=(8, 6), memory_free_bytes=4 << 30)
CONTENT = b"a plan"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A TensorRT engine for compute capability 8.6, as far as its manifest."""
    path = tmp_path / "lob.engine"
    path.write_bytes(CONTENT)
    write_manifest(path)
    return path


def write_manifest(path: Path, **target: Any) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    written = manifest.Manifest(
        runtime="tensorrt",
        source=manifest.Source(file="lob.onnx", sha256=sha256, opset=17),
        plan=manifest.Plan(file=path.name, sha256=sha256, size_bytes=len(CONTENT)),
        tools={"tensorrt": "10.13.3.9"},
        target=manifest.Target(
            **{"compute_capability": "8.6", "driver": "13.0", "device_memory_bytes": 2 << 20, **target}
        ),
        input=manifest.Tensor(name="features", row_dims=(2,)),
        output=manifest.Tensor(name="logits", row_dims=(1,)),
        batch_rows=None,
        profiles=(manifest.Profile(rows_min=1, rows_opt=8, rows_max=64),),
        precision="fp16",
        flags={},
        timing_cache_sha256=None,
        golden=manifest.Golden(
            rows=1, source="zeros", features=bytes(8), outputs=bytes(4), max_abs_allowed=0.01
        ),
        accuracy="not measured",
        conversion_accuracy="not measured",
        host=manifest.Host(name="builder", system="Linux", python="3.12"),
        built_at="2026-11-24T12:00:00Z",
        build_seconds=1.0,
        rebuild=("sigd", "build-engine", "lob.onnx", "--compute-capability", "8.6"),
    )
    manifest.manifest_path(path).write_bytes(manifest.encode_manifest(written))


def test_an_engine_of_this_machine_fits(engine: Path) -> None:
    finding = engine_fits(engine, RUNTIMES, CARD)
    assert (finding.level, finding.what) == (
        "ok",
        f"{engine}: tensorrt 10.13.3.9, fp16, compute capability 8.6",
    )


@pytest.mark.parametrize(
    ("runtimes", "card", "said", "command"),
    [
        ({}, CARD, "not installed here", "pip install 'sigd[gpu]'"),
        ({"tensorrt": Runtime("10.16.1.11", 12)}, CARD, "10.16.1.11", "sigd build-engine lob.onnx"),
        (
            RUNTIMES,
            Card(0, "NVIDIA L4", compute_capability=(8, 9)),
            "NVIDIA L4 has 8.9",
            "--compute-capability 8.9",
        ),
        (
            RUNTIMES,
            Card(0, "x", compute_capability=(8, 6), memory_free_bytes=1 << 20),
            "are free",
            "sigd build-engine",
        ),
        (RUNTIMES, None, "8.6", "sigd build-engine"),
    ],
)
def test_an_engine_that_does_not_fit_fails_with_the_way_out(
    runtimes: dict[RuntimeName, Runtime], card: Card | None, said: str, command: str, engine: Path
) -> None:
    finding = engine_fits(engine, runtimes, card)
    assert finding.level == "fail"
    assert said in finding.what
    assert command in finding.fix[0]


def test_an_engine_without_its_manifest_fails(engine: Path) -> None:
    manifest.manifest_path(engine).unlink()
    finding = engine_fits(engine, RUNTIMES, CARD)
    assert finding.level == "fail"
    assert finding.fix == ("sigd build-engine MODEL.onnx",)


def test_the_driver_has_to_run_the_cuda_version_of_the_runtime() -> None:
    old = Gpus("550.144.03", (12, 4), ())
    made_for_13: dict[RuntimeName, Runtime] = {"tensorrt": Runtime("11.4.0.106", 13)}
    finding = driver_fits(old, made_for_13)
    assert finding.level == "fail"
    assert "made for CUDA 13" in finding.what
    assert finding.fix[0].startswith("sudo ubuntu-drivers install nvidia:580")
    assert driver_fits(old, RUNTIMES).level == "ok"
    assert driver_fits(Gpus(None, None, ()), RUNTIMES).level == "skip"


def test_an_older_driver_than_the_builders_is_a_warning(
    engine: Path, library: Any, make_host: MakeHost
) -> None:
    library.system["nvmlSystemGetCudaDriverVersion_v2"] = 12080
    findings = examine_cards(make_host(), lambda _: library, (), engine, RUNTIMES)
    levels = {finding.check: finding.level for finding in findings if finding.subject == "host"}
    assert levels == {"driver": "warn", "engine": "ok"}


def test_the_memory_that_the_engine_needs_is_asked_of_the_first_card_alone(
    engine: Path, library: Any, make_host: MakeHost
) -> None:
    write_manifest(engine, device_memory_bytes=6 << 30)
    findings = examine_cards(make_host(), lambda _: library, (), engine, RUNTIMES)
    levels = {finding.subject: finding.level for finding in findings if finding.check == "free memory"}
    assert levels == {"GPU 0": "fail", "GPU 1": "ok"}


def test_runtimes_are_found_by_their_packages() -> None:
    packages = {
        "onnxruntime": "1.22.0",
        "tensorrt-cu12-bindings": "10.13.3.9.post1",
        "tensorrt-rtx-cu13-bindings": "1.7.1.116",
    }

    def version_of(name: str) -> str:
        if name not in packages:
            raise PackageNotFoundError(name)
        return packages[name]

    assert installed_runtimes(version_of) == {
        "onnxruntime": Runtime("1.22.0"),
        "tensorrt": Runtime("10.13.3.9", 12),
        "tensorrt-rtx": Runtime("1.7.1.116", 13),
    }
