"""`sigd inspect`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sigd.daemon.config.flags import dim_option
from sigd.models.graph_tensors import GraphTensor, declared_tensors, engine_tensors, served_tensors
from sigd.models.notes import thresholds_told
from sigd.models.onnx.trees import Trees

if TYPE_CHECKING:
    from sigd.models.build.builder_types import Module
    from sigd.models.layers import Layer
    from sigd.models.manifest import Manifest, Profile
    from sigd.models.spec import ModelSpec


class KeptHistory(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon can keep of each instrument, see `sigd serve --history-instruments`.

    Attributes:
        features: values of one step.
        outputs: values of an answer.
        steps: that the model looks at; 0 where it carries a state instead.
        time_axis: of its input; 0 where it carries a state.
        states: inputs that are a state, and the outputs which are their next values.
        instrument_bytes: what each instrument of a client takes.
        only: whether a request cannot carry a whole row, so that the model is served with history only.
        native_answers_steps: whether the native backend answers a step without running its whole window;
            None where it does not serve the model, or the model carries a state.
        native_bytes: what it keeps of each instrument for that.
        native_told: the same in words, and why where it does not.
    """

    features: int
    outputs: int
    steps: int = 0
    time_axis: int = 0
    states: dict[str, str] = {}
    instrument_bytes: int
    only: bool = False
    native_answers_steps: bool | None = None
    native_bytes: int = 0
    native_told: str = ""

    def told(self) -> str:
        """One line for people."""
        if self.steps:
            what = f"{self.steps} steps of {self.features} features along axis {self.time_axis}"
        else:
            pairs = ", ".join(f"{before} -> {after}" for before, after in self.states.items())
            what = f"a state, {pairs}, beside steps of {self.features} features"
        only = ", and only so" if self.only else ""
        return f"{what}: {self.instrument_bytes:,} bytes for each instrument, where it is kept{only}"


class Inspection(msgspec.Struct, kw_only=True):
    """What `sigd inspect --json` prints.

    Attributes:
        file: the file.
        sha256: its digest, in hex.
        size_bytes: its size.
        inputs, outputs: every one of the graph's, in its order.
        refused: why the model cannot be served; "" where it can.
        takes_nan: whether NaN in a request is a missing value, unless the configuration says otherwise.
        reads_missing: how the graph reads NaN as a missing value; "" where it does not.
        history: what the daemon can keep of each instrument; None where the model looks at no steps.
        trees: of its ensembles of trees; None where they cannot be read.
        parameters: values of all constant tensors; None where the layers cannot be read.
        opset: of the model, or of the model that the engine was built from.
        manifest: of an engine; None for an ONNX model.
        intact: whether an engine is the one that its manifest describes; True for an ONNX model.
        layers: None where they cannot be read here, and then `no_layers_because` says why.
    """

    file: str
    sha256: str
    size_bytes: int
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    refused: str = ""
    takes_nan: bool = False
    reads_missing: str = ""
    history: KeptHistory | None = None
    trees: Trees | None = None
    parameters: int | None
    opset: int | None
    manifest: Manifest | None = None
    intact: bool = True
    layers: tuple[Layer, ...] | None = None
    no_layers_because: str = ""


@click.command(
    epilog="""\b
Examples:
  sigd inspect m.onnx
  sigd inspect lstm.onnx --dim T=50                 with a size for an axis that the file leaves free
  sigd inspect m.engine --layers
  sigd inspect /var/lib/sigd/recordings             every recording in a directory
  sigd inspect m.engine --json | jq .manifest.accuracy"""
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--layers", "with_layers", is_flag=True, help="List every layer, not only how many of each kind."
)
@dim_option
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def inspect(file: Path, with_layers: bool, dims: dict[str, int], as_json: bool) -> None:
    """Show what FILE is: an ONNX model, an engine with its manifest, or a flight recording.

    Exit code 1 where an engine is not the one that its manifest describes, a recording is damaged, or a
    model cannot be served.
    """
    from sigd.daemon.commands.inspect_recording import inspect_recording
    from sigd.models.engine import ENGINE_SUFFIX
    from sigd.wire.recording.reader import is_recording

    if is_recording(file):
        inspect_recording(file, as_json=as_json)
        return
    found = _engine(file) if file.suffix == ENGINE_SUFFIX else _model(file, dims)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        _show(found, with_layers)
    if not found.intact or found.refused:
        sys.exit(1)


def _model(path: Path, sizes: dict[str, int]) -> Inspection:
    from sigd.models.errors import ModelRefused
    from sigd.models.layers import onnx_layers
    from sigd.models.onnx.file import read_onnx
    from sigd.models.onnx.trees import count_trees
    from sigd.models.reading import HistoryOptions, ReadOptions
    from sigd.models.spec import spec_of

    file = read_onnx(path)
    layers = onnx_layers(file.model)
    found = Inspection(
        file=str(path),
        sha256=file.sha256.hex(),
        size_bytes=len(file.content),
        inputs=(),
        outputs=(),
        trees=count_trees(file.model),
        parameters=sum(layer.parameters for layer in layers),
        opset=next((one.version for one in file.model.opset_import if one.domain in ("", "ai.onnx")), None),
        layers=layers,
    )
    only = False
    try:
        spec = spec_of(file, "inspected", ReadOptions(sizes))
    except ModelRefused as error:
        try:
            spec, only = spec_of(file, "inspected", ReadOptions(sizes, history=HistoryOptions())), True
        except ModelRefused:
            found.refused = str(error)
            found.inputs, found.outputs = declared_tensors(file.model)
            return found
    found.history = _history(spec, only=only)
    found.inputs, found.outputs = served_tensors(spec)
    found.takes_nan, found.reads_missing = spec.takes_nan, spec.reads_missing
    return found


def _history(spec: ModelSpec, *, only: bool) -> KeptHistory | None:
    from sigd.models.errors import ModelRefused
    from sigd.models.reading import HistoryOptions
    from sigd.models.spec import with_history

    try:
        spec = with_history(spec, HistoryOptions())
    except ModelRefused:
        return None
    window, state = spec.window, spec.state
    if state is not None:
        return KeptHistory(
            features=state.features,
            outputs=state.outputs,
            states={one.before: one.after for one in state.pairs},
            instrument_bytes=state.memory_bytes(1),
            only=only,
        )
    assert window is not None
    answers, size, told = _on_native(spec)
    return KeptHistory(
        features=window.features,
        outputs=spec.outputs,
        steps=window.steps,
        time_axis=window.time_axis,
        instrument_bytes=window.memory_bytes(1),
        only=only,
        native_answers_steps=answers,
        native_bytes=size,
        native_told=told,
    )


def _on_native(spec: ModelSpec) -> tuple[bool | None, int, str]:
    """Whether the native backend answers steps of a model with a window, what it keeps of an instrument, and
    both in words."""
    from sigd.models.errors import BackendUnavailable, ModelRefused
    from sigd.models.native.backend import NativeBackend
    from sigd.models.notes import how_steps_run
    from sigd.models.onnx.parts import OnnxParts

    backend = NativeBackend(spec, 1)
    try:
        backend.load(OnnxParts(backend.plan(), b""))
    except (ModelRefused, BackendUnavailable) as error:
        return None, 0, f"native does not serve it: {error}"
    told = how_steps_run(backend, 1)
    answers, size = not backend.why_whole_windows(1), backend.state_bytes(1)
    backend.close()
    return answers, size, told


def _engine(path: Path) -> Inspection:
    import hashlib

    from sigd.models.engine import read_manifest, spec_of_manifest
    from sigd.models.errors import BackendUnavailable, ModelRefused

    manifest = read_manifest(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelRefused(f"{path}: cannot be read: {error.strerror or error}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    found = Inspection(
        file=str(path),
        sha256=sha256,
        size_bytes=len(content),
        inputs=engine_tensors(manifest.input_columns, manifest.input, manifest.batch_rows),
        outputs=engine_tensors(manifest.output_columns, manifest.output, manifest.batch_rows),
        takes_nan=bool(manifest.reads_missing),
        reads_missing=manifest.reads_missing,
        parameters=None,
        opset=manifest.source.opset,
        manifest=manifest,
        intact=sha256 == manifest.plan.sha256,
    )
    if not found.intact:
        found.no_layers_because = "this is not the engine that the manifest describes"
        return found
    if manifest.runtime == "native":
        found.history = _history(spec_of_manifest(path, manifest), only=False)
    try:
        found.layers = _engine_layers(path, content, manifest)
    except BackendUnavailable as error:
        found.no_layers_because = str(error)
        return found
    if manifest.runtime == "onnxruntime":
        found.parameters = sum(layer.parameters for layer in found.layers)
    return found


def _engine_layers(path: Path, content: bytes, manifest: Manifest) -> tuple[Layer, ...]:
    from sigd.models.layers import onnx_layers, plan_layers

    if manifest.runtime == "onnxruntime":
        from sigd.models.onnx.file import read_onnx

        return onnx_layers(read_onnx(path, bytes.fromhex(manifest.plan.sha256)).model)
    from sigd.models.build.runtimes import load

    return plan_layers(cast("Module", load(manifest.runtime)), content)


def _show(found: Inspection, with_layers: bool) -> None:
    # Lines are not wrapped: the command that builds an engine again is there to be copied.
    for name, value in _facts(found):
        click.echo(f"{click.style(f'{name:<13}', bold=True)} {value}")
    if found.layers is None:
        click.echo(f"layers cannot be read here: {found.no_layers_because}")
    elif with_layers:
        _show_layers(found.layers)
    if found.refused:
        click.echo(click.style(f"cannot be served: {found.refused}", fg="red"))
    if not found.intact:
        click.echo(
            click.style("this is not the engine that its manifest describes: build it again", fg="red")
        )


def _facts(found: Inspection) -> list[tuple[str, str]]:
    """Name and value, top to bottom."""
    facts = [
        ("file", f"{found.file} ({found.size_bytes:,} bytes)"),
        ("sha256", found.sha256),
        *(("input", one.told("feature")) for one in found.inputs),
        *(("output", one.told("output")) for one in found.outputs),
        ("opset", str(found.opset)),
    ]
    if not found.refused:
        facts.append(("NaN", f"a missing value ({found.reads_missing})" if found.takes_nan else "BAD_INPUT"))
    if found.history is not None:
        facts.append(("history", found.history.told()))
        if found.history.native_told:
            facts.append(("steps", found.history.native_told))
    if found.trees is not None and found.trees.trees:
        facts.append(("trees", _trees(found.trees)))
    if found.parameters is not None:
        facts.append(("parameters", f"{found.parameters:,}"))
    if found.layers is not None:
        facts.append(("layers", _counted(found.layers)))
    if found.manifest is not None:
        facts += _manifest_facts(found.manifest)
    return facts


def _trees(trees: Trees) -> str:
    text = f"{trees.trees:,}, with {trees.thresholds:,} thresholds"
    return f"{text}; {thresholds_told(trees)}" if trees.inexact else text


def _manifest_facts(manifest: Manifest) -> list[tuple[str, str]]:
    import shlex

    from sigd.models.accuracy import shown

    target = manifest.target
    made_for = {
        "compute capability": target.compute_capability,
        "GPU": target.gpu,
        "driver for CUDA": target.driver,
        "processor": target.cpu,
        "device memory": target.device_memory_bytes and f"{target.device_memory_bytes:,} bytes",
    }
    versions = ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
    return [
        ("runtime", f"{manifest.runtime} {manifest.runtime_version}"),
        ("built for", ", ".join(f"{k} {v}" for k, v in made_for.items() if v) or "any processor"),
        ("precision", manifest.precision),
        ("batches", ", ".join(map(_batches, manifest.profiles))),
        ("flags", ", ".join(f"{name} {value}" for name, value in manifest.flags.items())),
        ("accuracy", shown(manifest.accuracy, manifest.output_columns)),
        ("of its graph", shown(manifest.conversion_accuracy, manifest.output_columns)),
        ("oracle", manifest.oracle),
        ("golden rows", f"{manifest.golden.rows}, {manifest.golden.source}"),
        ("built from", f"{manifest.source.file}, sha256 {manifest.source.sha256}"),
        ("built", f"{manifest.built_at} on {manifest.host.name} in {manifest.build_seconds:.2f} s"),
        ("with", versions),
        ("timing cache", manifest.timing_cache_sha256 or "none"),
        ("rebuild", shlex.join(manifest.rebuild)),
    ]


def _batches(profile: Profile) -> str:
    if profile.rows_min == profile.rows_max:
        return str(profile.rows_max)
    return f"{profile.rows_min} to {profile.rows_max} (best at {profile.rows_opt})"


def _counted(layers: tuple[Layer, ...]) -> str:
    counts: dict[str, int] = {}
    for layer in layers:
        kind = layer.operator or "step"
        counts[kind] = counts.get(kind, 0) + 1
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f"{len(layers)}: {', '.join(f'{count} {kind}' for kind, count in by_count)}"


def _show_layers(layers: tuple[Layer, ...]) -> None:
    table = Table("", "operator", "name", "gives", "parameters")
    for number, layer in enumerate(layers):
        table.add_row(
            str(number),
            Text(layer.operator),
            Text(layer.name),
            Text(", ".join(layer.outputs)),
            f"{layer.parameters:,}" if layer.parameters else "",
        )
    Console().print(table)
