"""What a build found out, put down as a manifest."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from types import ModuleType
from typing import Final, Literal

from sigd import __version__
from sigd.models.accuracy import allowed_error
from sigd.models.backend import Float32Array
from sigd.models.build.nvidia import BuiltPlan
from sigd.models.build.optimised import LAYOUT_LEVEL
from sigd.models.build.request import BuildRequest, rebuild_words
from sigd.models.build.runtimes import Gpu
from sigd.models.manifest import (
    NOT_MEASURED,
    Accuracy,
    Golden,
    Host,
    Manifest,
    Plan,
    Profile,
    RuntimeName,
    Source,
    Target,
    Tensor,
)
from sigd.models.processor import instruction_sets
from sigd.models.spec import ModelSpec

GOLDEN_ROWS: Final = 4
"""Rows of those measured that go into the manifest."""
_TOOLS: Final = ("numpy", "onnx", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What came out of a build.

    Attributes:
        plan: the engine.
        profiles: the batches it was prepared for.
        rows: float32, (n, features): what accuracy was measured on.
        answers: float32, (n, outputs): the oracle's.
        conversion_accuracy, accuracy: as in the manifest.
    """

    plan: BuiltPlan
    profiles: tuple[Profile, ...]
    rows: Float32Array
    answers: Float32Array
    conversion_accuracy: Accuracy | Literal["not measured"]
    accuracy: Accuracy | Literal["not measured"] = NOT_MEASURED


def describe(
    request: BuildRequest,
    spec: ModelSpec,
    runtime: RuntimeName,
    module: ModuleType,
    gpu: Gpu | None,
    findings: Findings,
) -> Manifest:
    """The manifest of a build; its `build_seconds` is still 0."""
    plan = findings.plan
    return Manifest(
        runtime=runtime,
        source=Source(file=spec.path.name, sha256=spec.sha256.hex(), opset=spec.opset),
        plan=Plan(
            file=request.engine.name,
            sha256=_sha256(plan.content),
            size_bytes=len(plan.content),
        ),
        tools={
            "sigd": __version__,
            **{name: metadata.version(name) for name in _TOOLS},
            runtime: str(module.__version__),
        },
        target=_target(request, runtime, gpu, plan),
        input=Tensor(name=spec.input_name, row_dims=spec.input_dims),
        output=Tensor(name=spec.output_name, row_dims=spec.output_dims),
        batch_rows=spec.batch_rows,
        profiles=findings.profiles,
        precision=request.precision,
        flags=plan.flags,
        timing_cache_sha256=None if plan.timing_cache is None else _sha256(plan.timing_cache),
        golden=_golden(request, findings),
        accuracy=findings.accuracy,
        conversion_accuracy=findings.conversion_accuracy,
        host=Host(name=platform.node(), system=platform.platform(), python=platform.python_version()),
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        build_seconds=0.0,
        rebuild=rebuild_words(request, runtime, fixed_batch=spec.batch_rows is not None),
    )


def _target(request: BuildRequest, runtime: RuntimeName, gpu: Gpu | None, plan: BuiltPlan) -> Target:
    if runtime == "onnxruntime":
        level = plan.flags["optimization_level"]
        assert isinstance(level, int)
        return Target(cpu=instruction_sets() if level >= LAYOUT_LEVEL else None)
    if gpu is None or gpu.compute_capability != request.compute_capability:
        return Target(compute_capability=request.compute_capability)
    return Target(
        compute_capability=request.compute_capability,
        gpu=gpu.name,
        driver=gpu.cuda_version,
        device_memory_bytes=plan.device_memory_bytes,
    )


def _golden(request: BuildRequest, findings: Findings) -> Golden:
    features, answers = findings.rows[:GOLDEN_ROWS], findings.answers[:GOLDEN_ROWS]
    return Golden(
        rows=len(features),
        source=(
            f"standard normal, seed {request.seed}"
            if request.calibration is None
            else f"rows of {request.calibration.name}, seed {request.seed}"
        ),
        features=features.astype("<f4").tobytes(),
        outputs=answers.astype("<f4").tobytes(),
        max_abs_allowed=allowed_error(
            request.precision, findings.answers, findings.accuracy, findings.conversion_accuracy
        ),
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
