"""The backends by name, and which of them serves a given file.

A new backend is a factory and one row in `_BACKENDS`. A factory imports its backend when it is called, so
that nothing here needs a package that only another backend does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sigd.models.accuracy import check_golden
from sigd.models.backend import Backend
from sigd.models.engine import ENGINE_SUFFIX, check_engine, cpu_environment, read_manifest, spec_of_manifest
from sigd.models.errors import BackendUnavailable, ModelRefused
from sigd.models.gpu.options import DEFAULT_GPU_OPTIONS, GpuOptions
from sigd.models.independence import check_answers_differ, check_rows_independent
from sigd.models.manifest import RuntimeName
from sigd.models.native_files import no_onnx_model, recognise
from sigd.models.onnx.batch_axis import batch_spanning
from sigd.models.onnx.file import read_onnx
from sigd.models.reading import AS_IT_IS, ReadOptions
from sigd.models.spec import ModelSpec, read_spec, with_history, with_missing
from sigd.models.trusted_file import read_file

log = logging.getLogger(__name__)

AUTO = "auto"
"""The name that lets the file decide."""


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How to open a model, whatever the backend; each takes what concerns it.

    Attributes:
        batch_rows_max: the largest batch, in rows. A model that fixes its batch is opened with that one
            instead.
        name: what clients call the model; None takes the file's name without its ending.
        intra_op_threads: CPU threads that share one batch.
        gpu: how an engine runs on a GPU.
        reading: what an ONNX file leaves open.
    """

    batch_rows_max: int = 64
    name: str | None = None
    intra_op_threads: int = 1
    gpu: GpuOptions = DEFAULT_GPU_OPTIONS
    reading: ReadOptions = AS_IT_IS

    def __post_init__(self) -> None:
        for what in ("batch_rows_max", "intra_op_threads"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} is {getattr(self, what)}, expected at least 1")


DEFAULT_OPTIONS = BackendOptions()


def _onnxruntime(path: Path, options: BackendOptions) -> Backend:
    from sigd.models.onnxrt import OnnxRuntimeBackend

    if path.suffix == ENGINE_SUFFIX:
        _check_no_sizes(path, options.reading)
        spec = check_engine(path, environment=cpu_environment(), name=options.name)
        spec = replace(spec, across_batch=batch_spanning(read_onnx(path, spec.sha256).model))
        spec = with_missing(spec, options.reading.missing)
    else:
        spec = read_spec(path, options.name, options.reading)
    return OnnxRuntimeBackend(spec, options.batch_rows_max, options.intra_op_threads)


def _check_no_sizes(engine: Path, reading: ReadOptions) -> None:
    if reading.sizes and not reading.sizes_of_another:
        names = ", ".join(f"--dim {name}={size}" for name, size in reading.sizes.items())
        raise ModelRefused(
            f"{engine}: {names} is for an ONNX file, expected none for an engine, whose sizes are fixed: give"
            " them to"
            " sigd build-engine"
        )


def _native(path: Path, options: BackendOptions) -> Backend:
    from sigd.models.native.backend import NativeBackend

    if path.suffix == ENGINE_SUFFIX:
        _check_no_sizes(path, options.reading)
        spec = check_engine(path, environment=cpu_environment("native"), name=options.name)
    else:
        spec = read_spec(path, options.name, options.reading)
    return NativeBackend(spec, options.batch_rows_max)


def _tensorrt(path: Path, options: BackendOptions) -> Backend:
    from sigd.models.gpu.tensorrt import tensorrt_backend

    _check_no_sizes(path, options.reading)
    backend = tensorrt_backend(path, options.batch_rows_max, options.name, options.gpu)
    backend.spec = with_missing(backend.spec, options.reading.missing)
    return backend


def _oracle(path: Path, options: BackendOptions) -> Backend:
    from sigd.models.oracle import OracleBackend

    return OracleBackend(read_spec(path, options.name, options.reading), options.batch_rows_max)


def _echo(path: Path, options: BackendOptions) -> Backend:
    from sigd.models.echo import EchoBackend

    # Under the model's own name a client could take it for the model.
    # It runs no model, so nothing of the model's can mix rows.
    spec = replace(read_spec(path, options.name or "echo", options.reading), across_batch=())
    return EchoBackend(spec, options.batch_rows_max)


@dataclass(frozen=True, slots=True)
class _Entry:
    factory: Callable[[Path, BackendOptions], Backend]
    """Makes the backend of a file, not opened yet."""
    suffixes: tuple[str, ...] = ()
    """Endings of the files that "auto" gives to this backend."""
    runtimes: tuple[RuntimeName, ...] = ()
    """Runtimes whose engines "auto" gives to this backend."""
    runs_model: bool = True
    """False for one that only measures what is around a model."""


_BACKENDS = {
    "onnxruntime": _Entry(_onnxruntime, (".onnx",), ("onnxruntime",)),
    "native": _Entry(_native, (), ("native",)),
    "tensorrt": _Entry(_tensorrt, (), ("tensorrt", "tensorrt-rtx")),
    "oracle": _Entry(_oracle),
    "echo": _Entry(_echo, runs_model=False),
}


def backend_names() -> tuple[str, ...]:
    """What `open_backend` takes for `backend`, "auto" first."""
    return (AUTO, *_BACKENDS)


def open_backend(
    path: Path | str,
    backend: str = AUTO,
    batch_rows_max: int = 64,
    name: str | None = None,
    intra_op_threads: int = 1,
    gpu: GpuOptions = DEFAULT_GPU_OPTIONS,
    reading: ReadOptions = AS_IT_IS,
) -> Backend:
    """Read a model file and open it: every bucket prepared and warmed up, its rows found to be independent,
    and an engine's answers to its golden rows found to be what they were when it was built.

    To be called by the thread that will run the batches.

    Args:
        path: the model file.
        backend: one of `backend_names()`; "auto" goes by the file's ending, for an engine by its manifest.
        batch_rows_max: the largest batch, in rows; read the opened backend's own, which a fixed batch
            overrules.
        name: what clients call the model, at most 32 UTF-8 bytes; None takes the file's name without its
            ending.
        intra_op_threads: CPU threads that share one batch.
        gpu: how an engine runs on a GPU.
        reading: what an ONNX file leaves open.

    Raises:
        ModelRefused: the file cannot be served.
        BackendUnavailable: this installation or machine cannot run that backend, or has no memory for it.
        BackendFailed: it opened, but could not run a batch.
        ValueError: no backend has that name, or a number is out of its range.
    """
    options = BackendOptions(batch_rows_max, name, intra_op_threads, gpu, reading)
    try:
        return _opened(make_backend(path, _chosen(Path(path), backend, options), options))
    except MemoryError as error:
        raise BackendUnavailable(
            f"{path}: there is not enough memory to open it: free some, raise the limit (ulimit -v,"
            " MemoryMax= of the unit), or"
            " serve it in smaller batches"
        ) from error


def _chosen(path: Path, backend: str, options: BackendOptions) -> str:
    """The backend, which for an ONNX file on "auto" takes a measurement of both that the CPU has."""
    if backend != AUTO or path.suffix == ENGINE_SUFFIX or backend_for(path) != "onnxruntime":
        return backend
    if options.intra_op_threads > 1:
        return "onnxruntime"
    from sigd.models.cpu_choice import choose_cpu_backend

    choice = choose_cpu_backend(read_spec(path, options.name, options.reading))
    log.info("%s: served by %s: %s", path, choice.backend, choice.why)
    return choice.backend


def _opened(made: Backend) -> Backend:
    try:
        made.open()
        real_rows = None
        if made.spec.path.suffix == ENGINE_SUFFIX:
            manifest = read_manifest(made.spec.path)
            check_golden(made, manifest)
            real_rows = manifest.golden.feature_rows()
        check_rows_independent(made, real_rows)
        check_answers_differ(made)
    except BaseException:
        made.close()
        raise
    return made


def read_any_spec(path: Path, reading: ReadOptions = AS_IT_IS) -> ModelSpec:
    """The spec of an ONNX file or an engine, which is not opened: it may be for another machine.

    Raises:
        ModelRefused: it cannot be served.
    """
    if path.suffix != ENGINE_SUFFIX:
        return read_spec(path, options=reading)
    _check_no_sizes(path, reading)
    spec = with_missing(spec_of_manifest(path, read_manifest(path)), reading.missing)
    return with_history(spec, reading.history)


def make_backend(path: Path | str, backend: str = AUTO, options: BackendOptions = DEFAULT_OPTIONS) -> Backend:
    """Read a model file's spec and make its backend, not opened yet. Raises as `open_backend` does."""
    path = Path(path)
    name = backend_for(path, backend)
    entry = _BACKENDS.get(name)
    if entry is None:
        raise ValueError(f"no backend is called {name!r}, expected one of {', '.join(backend_names())}")
    made = entry.factory(path, options)
    made.spec = with_history(made.spec, options.reading.history)
    return made


def backend_for(path: Path, backend: str = AUTO) -> str:
    """Which backend serves a file: the one that is named, or with "auto" the one that its ending or its
    manifest says.

    Raises:
        ModelRefused: they do not say it.
    """
    if backend != AUTO:
        return backend
    if path.suffix == ENGINE_SUFFIX:
        runtime = read_manifest(path).runtime
        return next(name for name, entry in _BACKENDS.items() if runtime in entry.runtimes)
    for name, entry in _BACKENDS.items():
        if path.suffix.lower() in entry.suffixes:
            return name
    try:
        content = read_file(path)
    except OSError:
        content = b""
    if recognise(content) is not None:
        raise ModelRefused(no_onnx_model(path, content))
    known = ", ".join(f"{suffix} ({name})" for name, entry in _BACKENDS.items() for suffix in entry.suffixes)
    names = ", ".join(name for name, entry in _BACKENDS.items() if entry.runs_model)
    raise ModelRefused(
        f"{path}: its ending {path.suffix!r} does not say which backend serves it, expected {known} or"
        f" {ENGINE_SUFFIX}: rename"
        f" it, or name the backend: {names}"
    )
