"""What a build found out, put down as a manifest."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Final, Literal

import numpy as np

from sigd import __version__
from sigd.models.accuracy import allowed_error, measured_columns
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
from sigd.models.market.faults import CaptureFaults
from sigd.models.processor import instruction_sets
from sigd.models.spec import ModelSpec

GOLDEN_ROWS: Final = 4
"""Rows of those measured that go into the manifest."""
_TOOLS: Final = ("numpy", "onnx", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One build, once all is decided.

    Attributes:
        request: what was asked for, with the compute capability where there is a GPU.
        spec: of the model.
        profiles: the batches to prepare for.
        runtime: what the engine is for.
        runtime_version: of that, here.
        gpu: the GPU that is here; None without one, or where the runtime needs none.
        capture_faults: what is wrong with the capture that calibrates; None without one.
    """

    request: BuildRequest
    spec: ModelSpec
    profiles: tuple[Profile, ...]
    runtime: RuntimeName
    runtime_version: str
    gpu: Gpu | None
    capture_faults: CaptureFaults | None = None

    @property
    def gpu_is_here(self) -> bool:
        """Whether the GPU that the engine is for is the one that is here."""
        return self.gpu is not None and self.gpu.compute_capability == self.request.compute_capability


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What came out of a build.

    Attributes:
        plan: the engine.
        rows: float32, (n, features): what accuracy was measured on.
        answers: float32, (n, outputs): the oracle's.
        oracle, conversion_accuracy, accuracy: as in the manifest.
    """

    plan: BuiltPlan
    rows: Float32Array
    answers: Float32Array
    oracle: str
    conversion_accuracy: Accuracy | Literal["not measured"]
    accuracy: Accuracy | Literal["not measured"] = NOT_MEASURED


def describe(job: Job, findings: Findings) -> Manifest:
    """The manifest of a build; its `build_seconds` is still 0."""
    request, spec, plan, faults = job.request, job.spec, findings.plan, job.capture_faults
    return Manifest(
        runtime=job.runtime,
        source=Source(file=spec.path.name, sha256=spec.sha256.hex(), opset=spec.opset),
        plan=Plan(file=request.engine.name, sha256=_sha256(plan.content), size_bytes=len(plan.content)),
        tools={
            "sigd": __version__,
            **{name: metadata.version(name) for name in _TOOLS},
            job.runtime: job.runtime_version,
        },
        target=_target(job, plan),
        input=Tensor(name=spec.input_name, row_dims=spec.input_dims),
        output=Tensor(name=spec.output_name, row_dims=spec.output_dims),
        batch_rows=spec.batch_rows,
        profiles=job.profiles,
        precision=request.precision,
        flags=plan.flags,
        timing_cache_sha256=None if plan.timing_cache is None else _sha256(plan.timing_cache),
        golden=_golden(request, spec, findings),
        accuracy=findings.accuracy,
        conversion_accuracy=findings.conversion_accuracy,
        oracle=findings.oracle,
        host=Host(name=platform.node(), system=platform.platform(), python=platform.python_version()),
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        build_seconds=0.0,
        rebuild=rebuild_words(request, job.runtime, fixed_batch=spec.batch_rows is not None),
        input_columns=spec.input_columns if spec.wrapped else (),
        output_columns=spec.output_columns if spec.wrapped else (),
        reads_missing=spec.reads_missing,
        capture_faults={} if faults is None else dict(faults.counts),
        first_capture_faults=() if faults is None else tuple(faults.first),
    )


def _target(job: Job, plan: BuiltPlan) -> Target:
    if job.runtime == "native":
        return Target()
    if job.runtime == "onnxruntime":
        level = plan.flags["optimization_level"]
        assert isinstance(level, int)
        return Target(cpu=instruction_sets() if level >= LAYOUT_LEVEL else None)
    if job.gpu is None or not job.gpu_is_here:
        return Target(compute_capability=job.request.compute_capability)
    return Target(
        compute_capability=job.gpu.compute_capability,
        gpu=job.gpu.name,
        driver=job.gpu.cuda_version,
        device_memory_bytes=plan.device_memory_bytes,
    )


def _golden(request: BuildRequest, spec: ModelSpec, findings: Findings) -> Golden:
    # Rows that the model itself gives no number for would say nothing of the engine.
    told = np.flatnonzero(~np.isnan(findings.answers).any(axis=1))[:GOLDEN_ROWS]
    features, answers = findings.rows[told], findings.answers[told]
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
            request.precision,
            findings.answers[:, measured_columns(spec.outputs, spec.output_columns)],
            findings.accuracy,
            findings.conversion_accuracy,
        ),
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
