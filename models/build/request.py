"""What is asked of a build, checked before any work is done, and the command that asks for the same again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from sigd.models.backend import buckets
from sigd.models.engine import ENGINE_SUFFIX
from sigd.models.errors import ModelRefused
from sigd.models.manifest import CPU_RUNTIMES, PrecisionName, Profile, RuntimeName
from sigd.models.spec import ModelSpec

BATCH_ROWS_MAX: Final = 64
"""The largest batch where nothing is said: the daemon's own default."""
NATIVE_PRECISIONS: Final[tuple[PrecisionName, ...]] = ("fp32", "fp16", "bf16", "int8")
CalibrationMethod = Literal["minmax", "percentile", "entropy"]

_CAPABILITY: Final = re.compile(r"\d{1,2}\.\d")


def _static(rows: int) -> Profile:
    return Profile(rows_min=rows, rows_opt=rows, rows_max=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """The batches to prepare for, as they were asked for; nothing at all means the daemon's buckets up to 64.

    Attributes:
        rows_min, rows_opt: either of them makes one profile that takes any batch from min to max.
        rows_max: alone it makes one profile for each of the daemon's buckets, every kernel chosen for that
            size.
        buckets: exactly these sizes, one profile for each.
    """

    rows_min: int | None = None
    rows_opt: int | None = None
    rows_max: int | None = None
    buckets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        single = (self.rows_min, self.rows_opt, self.rows_max)
        if self.buckets and any(rows is not None for rows in single):
            raise ValueError(
                "--batch-buckets names every size: leave out --batch-min, --batch-opt and --batch-max"
            )
        if any(rows < 1 for rows in (*self.buckets, *(rows for rows in single if rows is not None))):
            raise ValueError("a batch of less than 1 row was asked for, expected at least 1")
        for profile in self.profiles():
            if not profile.rows_min <= profile.rows_opt <= profile.rows_max:
                raise ValueError(
                    f"the batch profile is min {profile.rows_min}, opt {profile.rows_opt}, max"
                    f" {profile.rows_max}; expected"
                    " min <= opt <= max"
                )

    def profiles(self) -> tuple[Profile, ...]:
        """What is asked for, smallest first."""
        rows_max = self.rows_max or BATCH_ROWS_MAX
        if self.rows_min is None and self.rows_opt is None:
            sizes: Sequence[int] = sorted(set(self.buckets)) or buckets(rows_max)
            return tuple(_static(size) for size in sizes)
        return (Profile(rows_min=self.rows_min or 1, rows_opt=self.rows_opt or rows_max, rows_max=rows_max),)

    def profiles_for(self, spec: ModelSpec) -> tuple[Profile, ...]:
        """The profiles for that model: what is asked for, or the one batch that the model fixes.

        Raises:
            ModelRefused: the model fixes its batch, and another one was asked for.
        """
        if spec.batch_rows is None:
            return self.profiles()
        fixed = _static(spec.batch_rows)
        if self != Batches() and self.profiles() != (fixed,):
            raise ModelRefused(
                f"{spec.path}: its batch is fixed to {spec.batch_rows} rows, so no other can be built: leave"
                " out the batch"
                " options, or export it with a free batch axis"
            )
        return (fixed,)

    def words(self) -> tuple[str, ...]:
        """The options that ask for the same."""
        if self.rows_min is None and self.rows_opt is None:
            if not self.buckets:
                return ("--batch-max", str(self.rows_max or BATCH_ROWS_MAX))
            return ("--batch-buckets", ",".join(map(str, self.buckets)))
        (profile,) = self.profiles()
        return (
            *("--batch-min", str(profile.rows_min)),
            *("--batch-opt", str(profile.rows_opt)),
            *("--batch-max", str(profile.rows_max)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """One build.

    Attributes:
        model: the ONNX file.
        engine: where the engine goes; its manifest goes beside it.
        runtime: what is to run it; "auto" takes what this machine can run.
        compute_capability: the GPU that it is for, for example "8.6"; None takes the one that is here.
        batches: which batches it is to be prepared for.
        precision: arithmetic inside the model. Input and output are float32 whatever it is.
        calibration: rows for int8, and for measuring every precision; see `sigd.models.rows.read_rows`.
        salvage: take what is whole of a damaged capture; without it one that is not whole is refused.
        calibration_method: how int8 ranges are taken from the rows.
        timing_cache: kernel timings of TensorRT, read where there are any and written back.
        optimization_level: the builder's effort, 0 to 5; None takes the runtime's default.
        workspace_bytes_max: scratch memory that kernels may use on the GPU; None takes the runtime's default.
        agreement_min: the least share of rows whose label must be the oracle's; None takes any.
        seed: of the rows that are drawn where there are no others.
        sizes: of axes that the model leaves free, see `sigd.models.reading.ReadOptions`.
    """

    model: Path
    engine: Path
    runtime: RuntimeName | Literal["auto"] = "auto"
    compute_capability: str | None = None
    batches: Batches = Batches()
    precision: PrecisionName = "fp32"
    calibration: Path | None = None
    salvage: bool = False
    calibration_method: CalibrationMethod = "minmax"
    timing_cache: Path | None = None
    optimization_level: int | None = None
    workspace_bytes_max: int | None = None
    agreement_min: float | None = None
    seed: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.precision == "int8" and self.calibration is None:
            raise ValueError(
                "int8 takes its ranges from rows that the model will really see: give some with --calibration"
                " (.npy, or a"
                " market capture)"
            )
        if self.engine.suffix != ENGINE_SUFFIX:
            raise ValueError(
                f"{self.engine}: expected a name that ends in {ENGINE_SUFFIX}, by which the engine is known"
                " when it is served"
            )
        if self.compute_capability is not None and not _CAPABILITY.fullmatch(self.compute_capability):
            raise ValueError(
                f"compute capability {self.compute_capability!r}, expected a number such as 8.6: nvidia-smi"
                " --query-gpu=compute_cap --format=csv"
            )


def check_runtime_options(request: BuildRequest, runtime: RuntimeName) -> None:
    """Whether that runtime has what is asked for.

    Raises:
        ValueError: it does not; with what to do.
    """
    gpu_only = {
        "--compute-capability": request.compute_capability,
        "--max-workspace": request.workspace_bytes_max,
        "--timing-cache": request.timing_cache,
    }
    given = [option for option, value in gpu_only.items() if value is not None]
    if runtime in CPU_RUNTIMES and given:
        raise ValueError(
            f"{', '.join(given)}: for a GPU only, and this is a build for {runtime} on the CPU: leave it"
            " out, or give"
            " --runtime tensorrt or tensorrt-rtx"
        )
    if runtime == "onnxruntime" and request.precision == "tf32":
        raise ValueError(
            "tf32 is arithmetic of a GPU's tensor cores, and this is a build for ONNX Runtime on the CPU:"
            " give --precision"
            " fp32"
        )
    if request.precision == "bf16" and runtime != "native":
        raise ValueError(
            f"bf16: only the native kernels have it, and this is a build for {runtime}: give fp16"
        )
    if runtime == "native":
        _check_native_options(request)
    if runtime == "tensorrt-rtx" and request.timing_cache is not None:
        raise ValueError(
            "--timing-cache: TensorRT-RTX chooses its kernels without timing them and has no such cache:"
            " leave it out"
        )
    if runtime == "tensorrt-rtx" and request.compute_capability is None:
        raise ValueError(
            "TensorRT-RTX builds without a GPU and so must be told for which: give --compute-capability, for"
            " example 8.6"
        )


def _check_native_options(request: BuildRequest) -> None:
    if request.precision not in NATIVE_PRECISIONS:
        raise ValueError(
            f"{request.precision}: the native kernels have weights in {', '.join(NATIVE_PRECISIONS)}: give"
            " one of them"
        )
    if request.optimization_level is not None:
        raise ValueError("--optimization-level: the native kernels have one way to run a model: leave it out")


def rebuild_words(request: BuildRequest, runtime: RuntimeName, fixed_batch: bool) -> tuple[str, ...]:
    """The command that makes the same build from any folder: three words, then options."""
    words = ["sigd", "build-engine", str(request.model.resolve())]
    words += ["--output", str(request.engine.absolute()), "--runtime", runtime]
    words += ["--precision", request.precision, "--seed", str(request.seed)]
    for name, size in request.sizes.items():
        words += ["--dim", f"{name}={size}"]
    if not fixed_batch:
        words += request.batches.words()
    optional = {
        "--compute-capability": request.compute_capability,
        "--calibration": request.calibration and request.calibration.resolve(),
        "--calibration-method": request.calibration_method if request.precision == "int8" else None,
        "--timing-cache": request.timing_cache and request.timing_cache.absolute(),
        "--optimization-level": request.optimization_level,
        "--max-workspace": request.workspace_bytes_max,
        "--agreement-min": request.agreement_min,
    }
    for option, value in optional.items():
        if value is not None:
            words += [option, str(value)]
    return (*words, *(["--salvage"] if request.salvage else []))
