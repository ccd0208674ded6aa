"""What the tests for a machine with an NVIDIA GPU share: the engines, and a report to send back.

    make test-gpu         needs a GPU, its driver, TensorRT and PyCUDA (pip install 'sigd[gpu]')

Everything is real: the engines are built by TensorRT on the card, and run there. Nothing is judged by its
latency; the report has the figures.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from sigd.models.build.pipeline import build_engine
from sigd.models.build.request import Batches, BuildRequest
from sigd.models.engine import read_manifest
from sigd.models.gpu.cuda import gpu_facts
from sigd.models.zoo import default_model_path

Float32Array = npt.NDArray[np.float32]
Run = Callable[..., subprocess.CompletedProcess[str]]
EngineOf = Callable[..., Path]

REPORT_FOLDER = Path(__file__).resolve().parents[2] / "out"
PACKAGES = (
    "tensorrt",
    "tensorrt-rtx",
    "pycuda",
    "cuda-bindings",
    "nvidia-ml-py",
    "onnx",
    "onnxruntime",
    "numpy",
)
ROWS = 64
QUICK = "SIGD_GPU_QUICK" in os.environ
"""Set where only the tests themselves are tested: on a simulated GPU."""
OUTCOMES: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep how each of these tests ended."""
    if report.when == "call" or report.outcome != "passed":
        OUTCOMES[report.nodeid] = report.outcome


@pytest.fixture(scope="session", autouse=True)
def _needs_a_gpu(no_gpu_because: str) -> None:
    if no_gpu_because:
        pytest.skip(no_gpu_because)


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs a command of sigd's: (*words) -> what it did."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "sigd.daemon", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)

    return run


@pytest.fixture(scope="session")
def report(run: Run, _needs_a_gpu: None, pytestconfig: pytest.Config) -> Iterator[dict[str, Any]]:
    """What was found, written to out/gpu-report.json when the tests are over."""
    found: dict[str, Any] = {
        "gpu": asdict(gpu_facts(0)),
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in PACKAGES},
            "cuda_module_loading": os.environ.get("CUDA_MODULE_LOADING"),
        },
        "doctor": _json_of(run("doctor", "--json")),
        "engines": {},
        "backend": {},
        "bench": {},
    }
    yield found
    found["tests"] = OUTCOMES
    REPORT_FOLDER.mkdir(exist_ok=True)
    path = REPORT_FOLDER / "gpu-report.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    terminal = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        terminal.write_line(f"\nwhat was found on this GPU is in {path}: please send it back")


@pytest.fixture(scope="session")
def timed_batches() -> int:
    """How many batches make a figure."""
    return 100 if QUICK else 5000


@pytest.fixture(scope="session")
def bench_seconds() -> int:
    """How long a benchmark lasts."""
    return 1 if QUICK else 10


@pytest.fixture(scope="session")
def engine_of(report: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> EngineOf:
    """Builds the shipped model for this card, once for each precision: (precision="fp32") -> path."""
    folder = tmp_path_factory.mktemp("engines")

    def engine_of(precision: str = "fp32") -> Path:
        engine = folder / f"{precision}.engine"
        if not engine.exists():
            calibration = None
            if precision == "int8":
                calibration = folder / "rows.npy"
                np.save(calibration, np.random.default_rng(0).standard_normal((512, 64)).astype(np.float32))
            build_engine(
                BuildRequest(
                    model=default_model_path(),
                    engine=engine,
                    runtime="tensorrt",
                    precision=precision,  # type: ignore[arg-type]
                    calibration=calibration,
                    batches=Batches(rows_max=ROWS),
                )
            )
            manifest = msgspec.to_builtins(read_manifest(engine))
            report["engines"][precision] = {name: manifest[name] for name in manifest if name != "golden"}
        return engine

    return engine_of


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _json_of(done: subprocess.CompletedProcess[str]) -> Any:
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"exit_code": done.returncode, "said": done.stderr[-4000:]}
