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

if TYPE_CHECKING:
    from sigd.models.build.builder_types import Module
    from sigd.models.layers import Layer
    from sigd.models.manifest import Manifest, Profile


class Inspection(msgspec.Struct, kw_only=True):
    """What `sigd inspect --json` prints.

    Attributes:
        file: the file.
        sha256: its digest, in hex.
        size_bytes: its size.
        input, output: name and axes, the batch first ("N" where it is free).
        parameters: values of all constant tensors; None where the layers cannot be read.
        opset: of the model, or of the model that the engine was built from.
        manifest: of an engine; None for an ONNX model.
        intact: whether an engine is the one that its manifest describes; True for an ONNX model.
        layers: None where they cannot be read here, and then `no_layers_because` says why.
    """

    file: str
    sha256: str
    size_bytes: int
    input: tuple[str, str]
    output: tuple[str, str]
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
  sigd inspect m.engine --layers
  sigd inspect /var/lib/sigd/recordings             every recording in a directory
  sigd inspect m.engine --json | jq .manifest.accuracy"""
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--layers", "with_layers", is_flag=True, help="List every layer, not only how many of each kind."
)
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def inspect(file: Path, with_layers: bool, as_json: bool) -> None:
    """Show what FILE is: an ONNX model, an engine with its manifest, or a flight recording.

    Exit code 1 where an engine is not the one that its manifest describes, or a recording is damaged.
    """
    from sigd.daemon.commands.inspect_recording import inspect_recording
    from sigd.models.engine import ENGINE_SUFFIX
    from sigd.wire.recording.reader import is_recording

    if is_recording(file):
        inspect_recording(file, as_json=as_json)
        return
    found = _engine(file) if file.suffix == ENGINE_SUFFIX else _model(file)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        _show(found, with_layers)
    if not found.intact:
        sys.exit(1)


def _model(path: Path) -> Inspection:
    from sigd.models.layers import onnx_layers
    from sigd.models.onnx.file import read_onnx
    from sigd.models.spec import spec_of

    file = read_onnx(path)
    spec = spec_of(file, path.stem)
    layers = onnx_layers(file.model)
    return Inspection(
        file=str(path),
        sha256=spec.sha256.hex(),
        size_bytes=len(file.content),
        input=(spec.input_name, _axes(spec.batch_rows, spec.input_dims)),
        output=(spec.output_name, _axes(spec.batch_rows, spec.output_dims)),
        parameters=sum(layer.parameters for layer in layers),
        opset=spec.opset,
        layers=layers,
    )


def _engine(path: Path) -> Inspection:
    import hashlib

    from sigd.models.engine import read_manifest
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
        input=(manifest.input.name, _axes(manifest.batch_rows, manifest.input.row_dims)),
        output=(manifest.output.name, _axes(manifest.batch_rows, manifest.output.row_dims)),
        parameters=None,
        opset=manifest.source.opset,
        manifest=manifest,
        intact=sha256 == manifest.plan.sha256,
    )
    if not found.intact:
        found.no_layers_because = "this is not the engine that the manifest describes"
        return found
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


def _axes(batch_rows: int | None, dims: tuple[int, ...]) -> str:
    return f"[{', '.join(str(dim) for dim in ('N' if batch_rows is None else batch_rows, *dims))}]"


def _show(found: Inspection, with_layers: bool) -> None:
    # Lines are not wrapped: the command that builds an engine again is there to be copied.
    for name, value in _facts(found):
        click.echo(f"{click.style(f'{name:<13}', bold=True)} {value}")
    if found.layers is None:
        click.echo(f"layers cannot be read here: {found.no_layers_because}")
    elif with_layers:
        _show_layers(found.layers)
    if not found.intact:
        click.echo(
            click.style("this is not the engine that its manifest describes: build it again", fg="red")
        )


def _facts(found: Inspection) -> list[tuple[str, str]]:
    """Name and value, top to bottom."""
    facts = [
        ("file", f"{found.file} ({found.size_bytes:,} bytes)"),
        ("sha256", found.sha256),
        ("input", f"{found.input[0]} float32 {found.input[1]}"),
        ("output", f"{found.output[0]} float32 {found.output[1]}"),
        ("opset", str(found.opset)),
    ]
    if found.parameters is not None:
        facts.append(("parameters", f"{found.parameters:,}"))
    if found.layers is not None:
        facts.append(("layers", _counted(found.layers)))
    if found.manifest is not None:
        facts += _manifest_facts(found.manifest)
    return facts


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
        ("accuracy", shown(manifest.accuracy)),
        ("of its graph", shown(manifest.conversion_accuracy)),
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
