"""From a model file to a published engine: read, convert, build, measure, publish.

Everything happens in a staging folder beside the target. An exception at any point, a KeyboardInterrupt
included, leaves what was there before and nothing else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final, Literal, cast

import msgspec
import numpy as np

from sigd.models.accuracy import AGREEMENT_MIN, error_max, measure, measured_columns, run_rows
from sigd.models.backend import Backend, Float32Array
from sigd.models.build.nvidia import BuiltPlan, PlanRequest, build_plan
from sigd.models.build.optimised import DEFAULT_LEVEL, optimise
from sigd.models.build.precision import to_fp16, to_int8
from sigd.models.build.progress import BuildProgress, Unwatched, phase
from sigd.models.build.record import Findings, Job, describe
from sigd.models.build.request import BuildRequest, check_runtime_options
from sigd.models.build.runtimes import Machine, choose_runtime, load, this_machine
from sigd.models.denormals import float_environment_kept
from sigd.models.engine import publish_engine, stage_engine, stage_file, staging_folder, write_whole
from sigd.models.errors import BackendUnavailable, ModelError, ModelRefused
from sigd.models.independence import check_answers_differ, check_rows_independent
from sigd.models.manifest import (
    CPU_RUNTIMES,
    NOT_MEASURED,
    REFERENCE_EVALUATOR,
    Accuracy,
    Manifest,
    RuntimeName,
)
from sigd.models.market.errors import SALVAGE
from sigd.models.market.faults import CaptureFaults
from sigd.models.native.lowering import lower
from sigd.models.onnx.file import OnnxFile, read_onnx
from sigd.models.onnxrt import OnnxRuntimeBackend
from sigd.models.oracle import OracleBackend
from sigd.models.reading import ReadOptions
from sigd.models.registry import BackendOptions, make_backend
from sigd.models.rows import RowsRefused, read_rows, seeded_rows
from sigd.models.spec import ModelSpec, as_served, spec_of

if TYPE_CHECKING:
    from onnx import ModelProto

    from sigd.models.build.builder_types import Module as BuilderModule

ROWS_MAX: Final = 1024
"""Rows that int8 ranges are taken from, and accuracy is measured on where the model is quick enough."""
_ORACLE_BATCH_ROWS: Final = 16
_ORACLE_SECONDS: Final = 0.5
"""The oracle is hundreds of times slower than a backend: it answers as many rows as it can in this time, and
at least one batch. `sigd compare` takes as many as one has patience for."""


class AccuracyTooLow(ModelError):
    """The engine was built and not written: its labels agree with the oracle's less often than was asked
    for."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Rows to judge the engine by.

    Attributes:
        rows: float32, (n, features).
        answers: float32, (n, outputs): the oracle's.
        batch_rows: how many of them were answered together; never more than the engine will take.
        oracle: what answered.
    """

    rows: Float32Array
    answers: Float32Array
    batch_rows: int
    oracle: str


def build_engine(
    request: BuildRequest, progress: BuildProgress | None = None, machine: Machine | None = None
) -> Manifest:
    """Build an engine and publish it with its manifest.

    Args:
        request: what to build.
        progress: told how far it is; None for no progress.
        machine: what there is to build with; None looks.

    Returns:
        The manifest that was written.

    Raises:
        ModelRefused: the model cannot be built that way, or answers NaN or infinity.
        AccuracyTooLow: less agreement than `request.agreement_min`, or answers that are far off.
        BackendUnavailable: the runtime, the GPU or the driver is not here; with the way to get it.
        BackendFailed: the builder or the engine failed.
        EngineNotWritten: the file system refused it.
        RowsRefused: the calibration file does not fit the model.
        ValueError: the options contradict each other, or the runtime does not have one of them.
    """
    started_ns = time.monotonic_ns()
    progress = progress or Unwatched()
    machine = machine or this_machine()
    runtime = choose_runtime(request, machine).runtime
    gpu = machine.gpu if runtime not in CPU_RUNTIMES else None
    if gpu is not None and request.compute_capability is None:
        request = replace(request, compute_capability=gpu.compute_capability)
    check_runtime_options(request, runtime)
    module = load(runtime)
    with staging_folder(request.engine) as folder, float_environment_kept():
        with phase(progress, "Reading the model"):
            file = read_onnx(request.model)
            spec = spec_of(file, request.model.stem, ReadOptions(request.sizes))
            _check_operators(file, runtime)
            file = as_served(file, spec)
            rows = _rows(request, spec)
        job = Job(
            request=request,
            spec=spec,
            profiles=request.batches.profiles_for(spec),
            runtime=runtime,
            runtime_version=str(module.__version__),
            gpu=gpu,
            capture_faults=rows.faults,
        )
        with phase(progress, f"Converting to {request.precision}"):
            converted = _converted(file, job, rows.calibration)
        plan = _plan(module, converted, job, progress)
        with phase(progress, "Asking the oracle"):
            sample = take_sample(job, rows.judging)
        with phase(progress, "Measuring accuracy"):
            manifest = _measured(folder, job, converted, plan, sample)
        _check_error(manifest, request, sample)
        _check_agreement(manifest, request)
        with phase(progress, "Writing"):
            seconds = (time.monotonic_ns() - started_ns) / 1e9
            manifest = msgspec.structs.replace(manifest, build_seconds=seconds)
            staged = stage_engine(folder, request.engine, plan.content, manifest)
            if request.timing_cache is not None and plan.timing_cache is not None:
                write_whole(request.timing_cache, plan.timing_cache)
            publish_engine(staged, request.engine)
    return manifest


def _check_operators(file: OnnxFile, runtime: RuntimeName) -> None:
    """Trees and other classic models are no work for TensorRT, which says so only after it has parsed all."""
    classic = sorted({node.op_type for node in file.model.graph.node if node.domain == "ai.onnx.ml"})
    if classic and runtime not in CPU_RUNTIMES:
        raise ModelRefused(
            f"{file.path}: {', '.join(classic)} of ai.onnx.ml cannot be built for {runtime}, which runs"
            " neural networks only:"
            " build it with --runtime onnxruntime, or serve the ONNX file as it is"
        )


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a build works with.

    Attributes:
        calibration: float32, (n, features): what int8 ranges are taken from.
        judging: float32, (n, features): what accuracy is measured on, in an order of no meaning, for the
            oracle may not come to the last. None of them is a calibration row of an int8 build: those would
            be judged by themselves.
        faults: what is wrong with the capture that they come from; None where they do not.
    """

    calibration: Float32Array
    judging: Float32Array
    faults: CaptureFaults | None


def _rows(request: BuildRequest, spec: ModelSpec) -> _Rows:
    if request.calibration is None:
        drawn = seeded_rows(spec, ROWS_MAX, request.seed)
        return _Rows(drawn, drawn, None)
    rows, capture = read_rows(request.calibration, spec, ROWS_MAX, salvage=request.salvage)
    if capture is not None and capture.faults and not request.salvage:
        raise RowsRefused(
            f"{request.calibration}: {capture.faults}, so rows are missing or wrong"
            f" ({'; '.join(map(str, capture.faults.first))}){SALVAGE}"
        )
    faults = None if capture is None else capture.faults
    calibration = judging = rows
    if request.precision == "int8":
        different = rows[np.sort(np.unique(rows, axis=0, return_index=True)[1])]
        needed = 2 * (spec.batch_rows or 1)
        if len(different) < needed:
            raise RowsRefused(
                f"{request.calibration}: {len(different)} different rows in {len(rows)}, expected at least"
                f" {needed}: every"
                " second one calibrates, and the others say how accurate that is"
            )
        calibration, judging = different[::2], different[1::2]
    return _Rows(calibration, judging[np.random.default_rng(request.seed).permutation(len(judging))], faults)


def _converted(file: OnnxFile, job: Job, rows: Float32Array) -> ModelProto:
    """The graph in the precision that was asked for, every node named, so that a refusal can name
    it."""
    request, spec = job.request, job.spec
    in_the_graph = job.runtime != "native"
    if request.precision == "fp16" and in_the_graph:
        model = to_fp16(file.model, spec.path)
    elif request.precision == "int8" and in_the_graph:
        model = to_int8(file.model, spec, rows, request.calibration_method, job.runtime)
    else:
        model = type(file.model)()
        model.CopyFrom(file.model)
    taken = {node.name for node in model.graph.node}
    for number, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type}_{number}"
            node.name = name if name not in taken else f"{name}_unnamed"
    return model


def _plan(module: ModuleType, model: ModelProto, job: Job, progress: BuildProgress) -> BuiltPlan:
    request = job.request
    if job.runtime == "native":
        with phase(progress, "Lowering"):
            return BuiltPlan(lower(model, job.spec, request.precision), {})
    if job.runtime == "onnxruntime":
        level = DEFAULT_LEVEL if request.optimization_level is None else request.optimization_level
        with phase(progress, "Optimising"):
            content = optimise(module, model, job.spec.path, level)
        return BuiltPlan(content, {"optimization_level": level})
    assert request.compute_capability is not None
    asked = PlanRequest(
        runtime=job.runtime,
        compute_capability=request.compute_capability,
        profiles=job.profiles,
        precision=request.precision,
        optimization_level=request.optimization_level,
        workspace_bytes_max=request.workspace_bytes_max,
        timing_cache=_timing_cache(request.timing_cache),
    )
    return build_plan(cast("BuilderModule", module), model, job.spec, asked, progress)


def _timing_cache(path: Path | None) -> bytes | None:
    """The serialised cache, empty where there is none yet."""
    if path is None:
        return None
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ModelRefused(f"{path}: the timing cache cannot be read: {error.strerror or error}") from error


def take_sample(job: Job, rows: Float32Array) -> _Sample:
    """The oracle's answers, and its word that rows do not depend on each other in batches as they are asked
    for."""
    batch_rows_max = max(profile.rows_max for profile in job.profiles)
    oracle, name = _open_oracle(job.spec, min(_ORACLE_BATCH_ROWS, len(rows), batch_rows_max))
    try:
        check_rows_independent(oracle, rows)
        check_answers_differ(oracle)
        answers = _answers_in_time(oracle, rows)
    finally:
        oracle.close()
    if not np.isfinite(answers).any() or np.isnan(answers).any(axis=1).all():
        raise ModelRefused(
            f"{job.spec.path}: the model itself answers NaN or infinity to all of {len(answers)} rows,"
            " expected numbers:"
            " there is nothing that an engine could be measured by. Give rows that it will really see with"
            " --calibration,"
            " or look for a square root, a logarithm or a division that leaves its domain"
        )
    return _Sample(rows[: len(answers)], answers, oracle.batch_rows_max, name)


def _open_oracle(spec: ModelSpec, batch_rows: int) -> tuple[Backend, str]:
    """The oracle and its name. The reference evaluator fails on some valid models (on some shapes of
    MaxPool, for one); ONNX Runtime without its optimisations is the oracle then.

    Raises:
        ModelRefused: neither runs the model.
    """
    reference = OracleBackend(spec, batch_rows)
    try:
        reference.open()
    except ModelRefused as refusal:
        plain = OnnxRuntimeBackend(spec, batch_rows, optimised=False)
        try:
            plain.open()
        except (ModelRefused, BackendUnavailable):
            plain.close()
            raise refusal from None
        return plain, f"ONNX Runtime {metadata.version('onnxruntime')} without optimisations ({refusal})"
    return reference, REFERENCE_EVALUATOR


def _answers_in_time(oracle: Backend, rows: Float32Array) -> Float32Array:
    """The oracle's answers to the first rows, as many as there is time for."""
    deadline_ns = time.monotonic_ns() + int(_ORACLE_SECONDS * 1e9)
    answers = []
    for start in range(0, len(rows), oracle.batch_rows_max):
        answers.append(run_rows(oracle, rows[start : start + oracle.batch_rows_max]))
        if time.monotonic_ns() > deadline_ns:
            break
    return np.concatenate(answers)


def _measured(folder: Path, job: Job, model: ModelProto, plan: BuiltPlan, sample: _Sample) -> Manifest:
    """The manifest, with the accuracy of the engine where it can run here: staged, and opened as it will be
    served."""
    findings = Findings(
        plan=plan,
        rows=sample.rows,
        answers=sample.answers,
        oracle=sample.oracle,
        conversion_accuracy=_conversion_accuracy(folder, job, model, sample),
    )
    manifest = describe(job, findings)
    if job.runtime not in CPU_RUNTIMES and not job.gpu_is_here:
        return manifest
    staged = stage_engine(folder, job.request.engine, plan.content, manifest)
    return describe(job, replace(findings, accuracy=_accuracy(staged, manifest, sample)))


def _conversion_accuracy(
    folder: Path, job: Job, model: ModelProto, sample: _Sample
) -> Accuracy | Literal["not measured"]:
    """What the precision costs: the converted graph against the original, where something here runs it.

    ONNX Runtime computes most of a float16 graph in float32 on a CPU, so what a GPU will make of that is
    measured on the reference evaluator, which rounds after every operator; it is slow, so on fewer rows.
    """
    if job.runtime == "native":
        return NOT_MEASURED  # the graph stays as it is: the engine's own accuracy says all
    emulated = job.request.precision == "fp16" and job.runtime not in CPU_RUNTIMES
    package = "onnx" if emulated else "onnxruntime"
    path = folder / "converted.onnx"
    stage_file(path, job.request.engine, model.SerializeToString())
    name = "oracle" if emulated else "onnxruntime"
    backend = make_backend(path, name, BackendOptions(batch_rows_max=sample.batch_rows))
    try:
        backend.open()
        answers = _answers_in_time(backend, sample.rows)
    except ModelRefused:
        return NOT_MEASURED
    finally:
        backend.close()
    measured_on = f"{backend.name} ({package} {metadata.version(package)}), before the build"
    return measure(answers, sample.answers[: len(answers)], measured_on, job.spec.output_columns)


def _accuracy(staged: Path, manifest: Manifest, sample: _Sample) -> Accuracy | Literal["not measured"]:
    """The accuracy of the engine, on the backend that is to serve it, where that is installed."""
    try:
        backend = make_backend(staged, options=BackendOptions(batch_rows_max=manifest.batch_rows_max))
    except BackendUnavailable:
        return NOT_MEASURED
    try:
        backend.open()
        check_rows_independent(backend, sample.rows)
        answers = run_rows(backend, sample.rows)
    finally:
        backend.close()
    measured_on = f"{manifest.runtime} {manifest.runtime_version}"
    return measure(answers, sample.answers, measured_on, manifest.output_columns)


def _check_error(manifest: Manifest, request: BuildRequest, sample: _Sample) -> None:
    """An engine that is far off is a wrong one, however often its labels agree. One that answers integers
    alone is wrong where few of them agree."""
    measured = manifest.accuracy if isinstance(manifest.accuracy, Accuracy) else manifest.conversion_accuracy
    columns = measured_columns(sample.answers.shape[1], manifest.output_columns)
    if not columns.any():
        least = AGREEMENT_MIN[request.precision]
        if isinstance(measured, Accuracy) and measured.label_agreement < least:
            raise AccuracyTooLow(
                f"{request.model}: in {request.precision} its integers are the oracle's for"
                f" {measured.label_agreement:.2%} of {measured.rows} rows, expected at least {least:.0%} for"
                " that precision: nothing was written. Calibrate with rows nearer to what it will see, or"
                " give a wider --precision"
            )
        return
    most = error_max(request.precision, sample.answers[:, columns])
    if isinstance(measured, Accuracy) and measured.max_abs > most:
        raise AccuracyTooLow(
            f"{request.model}: in {request.precision} its answers are up to {measured.max_abs:.3g} away from"
            " the oracle's,"
            f" expected at most {most:.3g} for that precision: nothing was written. Calibrate with rows"
            " nearer to what it"
            " will see, or give a wider --precision"
        )


def _check_agreement(manifest: Manifest, request: BuildRequest) -> None:
    if request.agreement_min is None:
        return
    measured = manifest.accuracy if isinstance(manifest.accuracy, Accuracy) else manifest.conversion_accuracy
    if not isinstance(measured, Accuracy):
        raise AccuracyTooLow(
            f"{request.model}: neither the engine nor its {request.precision} graph runs on this machine, so"
            " that labels agree"
            f" with the oracle's for {request.agreement_min:.2%} of rows cannot be shown: build where it"
            " runs, or leave"
            " --agreement-min out"
        )
    if measured.label_agreement < request.agreement_min:
        raise AccuracyTooLow(
            f"{request.model}: in {request.precision} its labels agree with the oracle's for"
            f" {measured.label_agreement:.2%} of"
            f" {measured.rows} rows, expected at least {request.agreement_min:.2%}: nothing was written."
            " Calibrate with rows"
            " nearer to what it will see, or give a wider --precision"
        )
