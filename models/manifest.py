"""What is known of an engine, written beside it as JSON when it is built.

An engine (a TensorRT plan, or a model that ONNX Runtime has optimised) fits one runtime of one version, and
for a GPU one compute capability. None of that can be seen from its name, so an engine is never served without
its
manifest: `model.engine` goes with `model.engine.json`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from sigd.models.backend import Float32Array
from sigd.models.errors import ModelRefused
from sigd.models.market.faults import CaptureFault, FaultKind
from sigd.models.onnx.columns import Columns, row_width

SCHEMA: Final = 1
"""Version of the manifest's layout; a reader refuses any other."""
NOT_MEASURED: Final = "not measured"
REFERENCE_EVALUATOR: Final = "ONNX reference evaluator"

RuntimeName = Literal["native", "onnxruntime", "tensorrt", "tensorrt-rtx"]
CPU_RUNTIMES: Final[frozenset[RuntimeName]] = frozenset({"native", "onnxruntime"})
PrecisionName = Literal["fp32", "tf32", "fp16", "bf16", "int8"]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ONNX model that the engine was built from; `sha256` as `sigd.models.onnx.file` defines it, in
    hex."""

    file: str
    sha256: str
    opset: int | None


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The engine file beside the manifest."""

    file: str
    sha256: str
    size_bytes: int


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The engine's input or output. `row_dims` are its axes without the batch; it is always float32."""

    name: str
    row_dims: tuple[int, ...]
    dtype: Literal["float32"] = "float32"


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Batches, in rows, that the engine was prepared for: any from min to max, fastest at opt."""

    rows_min: int
    rows_opt: int
    rows_max: int


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the engine was built for. None where it is not known or does not matter.

    Attributes:
        compute_capability: of the GPU, for example "8.6".
        gpu: name of the card that was there at the build.
        driver: newest CUDA version of its driver, for example "13.0".
        cpu: instruction sets, where the engine fits no other processor.
        device_memory_bytes: what one execution needs on the GPU beside the weights.
    """

    compute_capability: str | None = None
    gpu: str | None = None
    driver: str | None = None
    cpu: str | None = None
    device_memory_bytes: int | None = None


class Accuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far answers lie from the oracle's, over all outputs of all rows.

    Attributes:
        measured_on: what gave the answers, with its version.
        rows: how many rows were compared.
        max_abs: the largest |answer - oracle|.
        max_rel: the largest |answer - oracle| / max(|oracle|, 1e-3 * the largest |oracle|).
        cosine: of all answers with all of the oracle's, each taken as one long vector.
        label_agreement: share of rows with the same largest output (with one output: the same sign).
    """

    measured_on: str
    rows: int
    max_abs: float
    max_rel: float
    cosine: float
    label_agreement: float


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A few rows with the oracle's answers: the loader of the engine can see that it still answers so.

    Attributes:
        rows: how many.
        source: where the rows come from, for example "standard normal, seed 0".
        features: float32, little-endian, C order, (rows, features).
        outputs: the oracle's answers, float32, little-endian, C order, (rows, outputs).
        max_abs_allowed: the most that an answer may differ; see `sigd.models.accuracy.allowed_error`.
    """

    rows: int
    source: str
    features: bytes
    outputs: bytes
    max_abs_allowed: float

    def feature_rows(self) -> Float32Array:
        """float32, shape (rows, features)."""
        return _float_rows(self.features, self.rows)

    def output_rows(self) -> Float32Array:
        """float32, shape (rows, outputs)."""
        return _float_rows(self.outputs, self.rows)


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the engine was built."""

    name: str
    system: str
    python: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of it.

    Attributes:
        schema: version of this layout.
        runtime: what runs the engine.
        tools: name and version of each package that had a part in the build.
        batch_rows: None where any batch within the profiles runs, k where the model fixes it to k rows.
        profiles: what was prepared for, smallest first. ONNX Runtime runs other batches too.
        precision: arithmetic inside the model; input and output are float32 whatever it is.
        flags: settings of the builder as they were in force.
        timing_cache_sha256: of the timing cache after the build; None without one.
        accuracy: of the engine itself, or "not measured" where it cannot run on the machine that built it.
        conversion_accuracy: of the ONNX graph that went into the builder, on the CPU: what the precision
            costs before the builder adds its own.
        oracle: what gave the answers that accuracy was measured by, and why where it is not the ONNX
            reference evaluator.
        built_at: UTC, ISO 8601.
        rebuild: the command that builds it again, word by word.
        input_columns, output_columns: which columns of a row are which tensor of the model, see
            `sigd.models.onnx.columns`; empty where it has one of each.
        reads_missing: how the model reads NaN as a missing value; "" where it does not.
        capture_faults, first_capture_faults: what is wrong with the capture that the rows of --calibration
            come from, by kind, and the first of each kind; empty where all is well.
    """

    schema: int = SCHEMA
    runtime: RuntimeName
    source: Source
    plan: Plan
    tools: dict[str, str]
    target: Target
    input: Tensor
    output: Tensor
    batch_rows: int | None
    profiles: tuple[Profile, ...]
    precision: PrecisionName
    flags: dict[str, bool | int | str]
    timing_cache_sha256: str | None
    golden: Golden
    accuracy: Accuracy | Literal["not measured"]
    conversion_accuracy: Accuracy | Literal["not measured"]
    oracle: str = REFERENCE_EVALUATOR
    host: Host
    built_at: str
    build_seconds: float
    rebuild: tuple[str, ...]
    input_columns: tuple[Columns, ...] = ()
    output_columns: tuple[Columns, ...] = ()
    reads_missing: str = ""
    capture_faults: dict[FaultKind, int] = {}
    first_capture_faults: tuple[CaptureFault, ...] = ()

    @property
    def batch_rows_max(self) -> int:
        """The largest batch that was prepared for."""
        return max(profile.rows_max for profile in self.profiles)

    @property
    def runtime_version(self) -> str:
        """Version of the runtime that built it."""
        return self.tools[self.runtime]


class _Versioned(msgspec.Struct):
    """The one field that every layout has."""

    schema: int


def manifest_path(engine: Path) -> Path:
    """Where the manifest of an engine lies: `model.engine.json` for `model.engine`."""
    return engine.with_name(engine.name + ".json")


def encode_manifest(manifest: Manifest) -> bytes:
    """JSON, indented, for people and `jq` to read."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(content: bytes, path: Path) -> Manifest:
    """The manifest in `content`; `path` names it in errors.

    Raises:
        ModelRefused: not a manifest, or of another schema, or what it says does not fit together.
    """
    try:
        schema = msgspec.json.decode(content, type=_Versioned).schema
        if schema != SCHEMA:
            raise ModelRefused(
                f"{path}: a manifest of schema {schema}, this sigd reads schema {SCHEMA}: build the engine"
                " again with it,"
                " or serve with the sigd that built it"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:
        raise ModelRefused(
            f"{path}: not the manifest of an engine ({error}): build the engine again with sigd build-engine"
        ) from error
    problem = _contradiction(manifest)
    if problem:
        raise ModelRefused(f"{path}: {problem}: it was edited or damaged, build the engine again")
    return manifest


def _contradiction(manifest: Manifest) -> str | None:
    """What does not fit together, None where all does."""
    if not manifest.profiles:
        return "names no batch that the engine was prepared for"
    if any(not 1 <= p.rows_min <= p.rows_opt <= p.rows_max for p in manifest.profiles):
        return "has a profile that is not 1 <= min <= opt <= max"
    if manifest.runtime not in manifest.tools:
        return f"does not give the version of {manifest.runtime}"
    for columns, dims in (
        (manifest.input_columns, manifest.input.row_dims),
        (manifest.output_columns, manifest.output.row_dims),
    ):
        if columns and row_width(columns) != math.prod(dims):
            return f"names {row_width(columns)} columns of a row of {math.prod(dims)}"
    golden = manifest.golden
    for what, content, dims in (
        ("features", golden.features, manifest.input.row_dims),
        ("outputs", golden.outputs, manifest.output.row_dims),
    ):
        size = int(np.prod(dims, dtype=np.int64)) * golden.rows * 4
        if golden.rows < 1 or len(content) != size:
            return f"its golden {what} take {len(content)} bytes, expected {size} for {golden.rows} rows"
    return None


def _float_rows(content: bytes, rows: int) -> Float32Array:
    return np.frombuffer(content, "<f4").astype(np.float32).reshape(rows, -1)
