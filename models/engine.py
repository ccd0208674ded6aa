"""An engine file and its manifest: read as a pair, checked against the machine before anything is loaded.

The pair is published whole: both files are written and synced in a folder of their own beside the target,
then renamed, the engine first. The manifest holds the engine's SHA-256, so a crash between the two renames
leaves a pair that is refused, never one that loads and lies.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Final

from sigd.models.errors import BackendUnavailable, ModelError, ModelRefused
from sigd.models.manifest import (
    CPU_RUNTIMES,
    Manifest,
    RuntimeName,
    decode_manifest,
    encode_manifest,
    manifest_path,
)
from sigd.models.onnx.columns import Columns
from sigd.models.processor import instruction_sets
from sigd.models.spec import ModelSpec, model_name
from sigd.models.trusted_file import read_file

ENGINE_SUFFIX: Final = ".engine"
INSTALL: Final[Mapping[RuntimeName, str]] = {
    "native": "install a C compiler (apt-get install gcc), then pip install --force-reinstall"
    " --no-cache-dir --no-binary sigd sigd",
    "onnxruntime": "pip install onnxruntime",
    "tensorrt": "pip install 'sigd[gpu]'",
    "tensorrt-rtx": "pip install 'sigd[rtx]'",
}
"""How to get each runtime."""
_REBUILD_HEAD: Final = 3
"""Words of the rebuild command before its options: sigd build-engine MODEL."""
_BATCH_OPTIONS: Final = "--batch-"


class EngineNotWritten(ModelError):
    """The engine could not be written where it was to go, or the disk does not confirm it; the message says
    which."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine that is to run an engine, as far as the check needs it. The code that opens the device
    fills it in.

    Attributes:
        versions: the runtimes that can be used here and their versions, for example {"tensorrt":
            "10.13.3.9"}.
        compute_capability: of the GPU, for example "8.6"; None without one.
        gpu: the GPU's name, for messages.
        memory_free_bytes: free on the GPU now; None where it was not asked.
        cpu: the processor's instruction sets, as `sigd.models.processor` gives them.
    """

    versions: Mapping[str, str]
    compute_capability: str | None = None
    gpu: str | None = None
    memory_free_bytes: int | None = None
    cpu: str = field(default_factory=instruction_sets)


def cpu_environment(runtime: RuntimeName = "onnxruntime") -> Environment:
    """This machine without its GPU, with one of `CPU_RUNTIMES`.

    Raises:
        BackendUnavailable: it is not installed.
    """
    module = "onnxruntime" if runtime == "onnxruntime" else "sigd.models.native._kernels"
    try:
        version = importlib.import_module(module).__version__
    except ImportError as error:
        raise BackendUnavailable(f"{module} cannot be imported ({error}): {INSTALL[runtime]}") from error
    return Environment({runtime: version})


def read_manifest(engine: Path | str) -> Manifest:
    """The manifest of the engine at that path.

    Raises:
        ModelRefused: there is none, or it cannot be read, or it is damaged.
    """
    path = manifest_path(Path(engine))
    try:
        content = read_file(path)
    except FileNotFoundError:
        raise ModelRefused(
            f"{path}: no such file: an engine is served with the manifest that was written beside it. Copy"
            " both files, or"
            " build the engine again with sigd build-engine"
        ) from None
    except OSError as error:
        raise ModelRefused(f"{path}: cannot be read: {error.strerror or error}") from error
    return decode_manifest(content, path)


def check_engine(
    engine: Path | str,
    *,
    environment: Environment,
    batch_rows_max: int | None = None,
    name: str | None = None,
) -> ModelSpec:
    """Whether an engine can be served on that machine, found out before anything is loaded.

    Args:
        engine: the engine file; its manifest lies beside it.
        environment: the machine.
        batch_rows_max: the largest batch that will be asked for; None leaves that out.
        name: what clients call the model; None takes the file's name without its ending.

    Returns:
        The spec; its `sha256` is the engine's, for `read_engine` to compare with.

    Raises:
        ModelRefused: the engine does not fit this machine or this use; with the command that builds it again.
        BackendUnavailable: the machine lacks the runtime, the GPU or the memory.
    """
    path = Path(engine)
    manifest = read_manifest(path)
    _read_checked(path, manifest.plan.sha256, manifest)
    _check_runtime(path, manifest, environment)
    _check_device(path, manifest, environment)
    if batch_rows_max is not None and manifest.runtime not in CPU_RUNTIMES:
        _check_batch(path, manifest, batch_rows_max)
    return spec_of_manifest(path, manifest, name)


def spec_of_manifest(path: Path, manifest: Manifest, name: str | None = None) -> ModelSpec:
    """The spec of an engine, as its manifest describes it."""
    return ModelSpec(
        name=model_name(path, name),
        path=path,
        sha256=bytes.fromhex(manifest.plan.sha256),
        input_name=manifest.input.name,
        output_name=manifest.output.name,
        features=math.prod(manifest.input.row_dims),
        outputs=math.prod(manifest.output.row_dims),
        input_dims=manifest.input.row_dims,
        output_dims=manifest.output.row_dims,
        batch_rows=manifest.batch_rows,
        opset=manifest.source.opset if manifest.runtime == "onnxruntime" else None,
        input_columns=manifest.input_columns
        or (Columns(manifest.input.name, "float32", manifest.input.row_dims),),
        output_columns=manifest.output_columns
        or (Columns(manifest.output.name, "float32", manifest.output.row_dims),),
        reads_missing=manifest.reads_missing,
    )


def read_engine(spec: ModelSpec) -> bytes:
    """The engine's bytes, which are those that were checked.

    Raises:
        ModelRefused: the file has changed since, or cannot be read.
    """
    return _read_checked(spec.path, spec.sha256.hex(), None)


def rebuild_command(manifest: Manifest, changes: Mapping[str, str] = MappingProxyType({})) -> str:
    """The command that builds the engine again, with other values for some options.

    Args:
        manifest: the engine's.
        changes: option to value, for example {"--batch-max": "128"}. A change of one batch option replaces
            all of them.
    """
    head, rest = manifest.rebuild[:_REBUILD_HEAD], manifest.rebuild[_REBUILD_HEAD:]
    others = dict(changes)
    batches_change = any(option.startswith(_BATCH_OPTIONS) for option in changes)
    words = [*head]
    for option, *value in _options(rest):
        if option in others:
            words += [option, others.pop(option)]
        elif not (batches_change and option.startswith(_BATCH_OPTIONS)):
            words += [option, *value]
    return shlex.join((*words, *chain.from_iterable(others.items())))


def _options(words: Iterable[str]) -> list[list[str]]:
    """Each option with its value; a flag has none, and an option may come more than once."""
    options: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            options.append([word])
        else:
            options[-1].append(word)
    return options


def _read_checked(path: Path, expected_sha256: str, manifest: Manifest | None) -> bytes:
    try:
        content = read_file(path)
    except OSError as error:
        raise ModelRefused(f"{path}: cannot be read: {error.strerror or error}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != expected_sha256:
        advice = "load it again" if manifest is None else f"build it again: {rebuild_command(manifest)}"
        raise ModelRefused(
            f"{path}: SHA-256 {sha256}, expected {expected_sha256}: not the engine that its manifest"
            " describes. A build was cut"
            f" short, or one of the two files was replaced; {advice}"
        )
    return content


def _check_runtime(path: Path, manifest: Manifest, environment: Environment) -> None:
    built, runtime = manifest.runtime_version, manifest.runtime
    installed = environment.versions.get(runtime)
    if installed is None:
        raise BackendUnavailable(
            f"{path}: built by {runtime} {built}, which is not installed here: {INSTALL[runtime]}; or build"
            " it for what is:"
            f" {rebuild_command(manifest, {'--runtime': 'auto'})}"
        )
    # A plan is read only by the version that wrote it; a graph of ONNX Runtime by the same minor release.
    parts = 2 if runtime == "onnxruntime" else None
    if built.split(".")[:parts] != installed.split(".")[:parts]:
        raise ModelRefused(
            f"{path}: built by {runtime} {built}, here is {installed}, expected the same: build it again:"
            f" {rebuild_command(manifest)}"
        )


def _check_device(path: Path, manifest: Manifest, environment: Environment) -> None:
    target = manifest.target
    if target.cpu is not None and target.cpu != environment.cpu:
        raise ModelRefused(
            f"{path}: its layout was chosen for a processor with {target.cpu}, this one has"
            f" {environment.cpu}: build it again:"
            f" {rebuild_command(manifest)}"
        )
    if target.compute_capability is None:
        return
    here = environment.compute_capability
    if here is None:
        raise BackendUnavailable(
            f"{path}: built for a GPU of compute capability {target.compute_capability}, and there is none"
            " here: run sigd"
            " doctor, or serve the ONNX model on the CPU"
        )
    if here != target.compute_capability:
        raise ModelRefused(
            f"{path}: built for compute capability {target.compute_capability},"
            f" {environment.gpu or 'this GPU'} has {here}:"
            f" build it again: {rebuild_command(manifest, _for_capability(manifest, here))}"
        )
    needed = manifest.plan.size_bytes + (target.device_memory_bytes or 0)
    free = environment.memory_free_bytes
    if free is not None and free < needed:
        raise BackendUnavailable(
            f"{path}: needs at least {needed / 2**20:,.0f} MiB on {environment.gpu or 'the GPU'},"
            f" {free / 2**20:,.0f} MiB are"
            " free: nvidia-smi shows who holds the rest; or build it smaller, with fewer buckets or less"
            " workspace:"
            f" {rebuild_command(manifest)}"
        )


def _for_capability(manifest: Manifest, capability: str) -> dict[str, str]:
    """The change for another GPU. TensorRT itself builds for the card that it finds, and is not told
    which."""
    return {"--compute-capability": capability} if manifest.runtime == "tensorrt-rtx" else {}


def _check_batch(path: Path, manifest: Manifest, batch_rows_max: int) -> None:
    built = manifest.batch_rows_max
    if manifest.batch_rows is None and batch_rows_max > built:
        raise ModelRefused(
            f"{path}: built for batches of at most {built} rows, asked for {batch_rows_max}: serve with"
            " --batch-rows-max"
            f" {built}, or build it again for more:"
            f" {rebuild_command(manifest, {'--batch-max': str(batch_rows_max)})}"
        )


@contextmanager
def staging_folder(engine: Path) -> Iterator[Path]:
    """A folder beside the target, on the same file system, gone at the end with all that is in it.

    Raises:
        EngineNotWritten: it cannot be made there.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{engine.name}.", dir=engine.parent))
    except OSError as error:
        raise _not_written(engine, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def stage_engine(folder: Path, engine: Path, content: bytes, manifest: Manifest) -> Path:
    """Write and sync the pair in its staging folder; the staged engine's path, which can be opened like any
    other.

    Raises:
        EngineNotWritten: the disk is full, or another failure of the file system.
    """
    staged = folder / engine.name
    stage_file(staged, engine, content)
    stage_file(manifest_path(staged), engine, encode_manifest(manifest))
    return staged


def stage_file(path: Path, engine: Path, content: bytes) -> None:
    """Write and sync one file in the staging folder of `engine`. Raises EngineNotWritten as `stage_engine`
    does."""
    try:
        _write_synced(path, content)
    except OSError as error:
        raise _not_written(engine, error) from error


def publish_engine(staged: Path, engine: Path) -> None:
    """Move a staged pair to where it goes. Raises EngineNotWritten as `stage_engine` does."""
    try:
        staged.replace(engine)
        manifest_path(staged).replace(manifest_path(engine))
    except OSError as error:
        raise _not_written(engine, error) from error
    _sync_folder(engine)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of its own (a timing cache) so that it is there whole or not at all. Raises
    EngineNotWritten."""
    with staging_folder(path) as folder:
        try:
            _write_synced(folder / path.name, content)
            (folder / path.name).replace(path)
        except OSError as error:
            raise _not_written(path, error) from error
        _sync_folder(path)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make the renames last. What was renamed is whole whether this succeeds or not."""
    try:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise EngineNotWritten(
            f"{path}: is there, but the disk does not confirm it ({error.strerror or error}), so it may be"
            " gone after a power"
            " cut: look at the disk, and build it again"
        ) from error


def _not_written(path: Path, error: OSError) -> EngineNotWritten:
    return EngineNotWritten(
        f"{path}: cannot be written ({error.strerror or error}): nothing was left behind; free some space, or"
        " choose another"
        " place with --output"
    )
