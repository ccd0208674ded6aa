"""`sigd schema`."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import click

from sigd.daemon.commands.options import write_output
from sigd.daemon.config.flags import WholeRange, dim_option
from sigd.wire.fields import FEATURES_MAX
from sigd.wire.layout import OUTPUTS_MAX
from sigd.wire.schema.cpp_header import cpp_header
from sigd.wire.schema.sbe import schema_xml


@click.command(
    epilog="""\b
Examples:
  sigd schema --model m.onnx                           with the names of the model's inputs and outputs
  sigd schema --model m.onnx --format cpp -o m.hpp     its rows as C++20 structs
  sigd schema --features 64 --outputs 3
  sigd schema --features 64 --outputs 3 -o sigd.xml    for an SBE code generator
  sigd schema --format cpp -o sigd_wire.hpp            the same as a C++20 header, for any model
  sigd schema --bench -o bench.json                    of the results of sigd bench, as JSON Schema"""
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="A model file: its columns by name, as in row.features.book[3].",
)
@dim_option
@click.option("--features", type=WholeRange(1, FEATURES_MAX), help="Features per request (n); with sbe.")
@click.option("--outputs", type=WholeRange(1, OUTPUTS_MAX), help="Outputs per response (m); with sbe.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["sbe", "cpp"]),
    default="sbe",
    show_default=True,
    help="An SBE schema for one model, or a C++20 header for all.",
)
@click.option("--bench", "of_bench", is_flag=True, help="Of the JSON that sigd bench writes, as JSON Schema.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.  [default: stdout]",
)
def schema(
    model: Path | None,
    dims: dict[str, int],
    features: int | None,
    outputs: int | None,
    form: str,
    of_bench: bool,
    output: Path | None,
) -> None:
    """Print the wire: as the SBE schema for one model, or as a C++ header for all; or the rows of one
    model."""
    if of_bench:
        if model is not None or features is not None or outputs is not None or dims:
            raise click.UsageError("--bench is for every model: leave the options of one out.")
        text = _of_bench()
    elif model is not None:
        if features is not None or outputs is not None:
            raise click.UsageError("--model knows its sizes: leave --features and --outputs out.")
        text = _of_model(model, dims, form)
    else:
        text = _cpp(features, outputs) if form == "cpp" else _sbe(features, outputs)
    if output is None:
        click.echo(text, nl=False)
        return
    write_output(output, text.encode())


def _of_bench() -> str:
    # Read as a file: what serves never loads the bench.
    return (importlib.resources.files("sigd") / "bench" / "result_schema.json").read_text("utf-8")


def _of_model(path: Path, dims: dict[str, int], form: str) -> str:
    from sigd.models.graph_tensors import GraphTensor
    from sigd.models.onnx.columns import Columns
    from sigd.models.reading import ReadOptions
    from sigd.models.registry import read_any_spec
    from sigd.wire.schema.named import NamedColumns, NamedModel, model_header

    spec = read_any_spec(path, ReadOptions(dims))

    def named(columns: tuple[Columns, ...]) -> tuple[NamedColumns, ...]:
        return tuple(
            NamedColumns(
                one.name, one.dims, one.first, GraphTensor.of(one, spec.batch_rows).shape_told(), one.labels
            )
            for one in columns
        )

    model = NamedModel(spec.name, spec.sha256.hex(), named(spec.input_columns), named(spec.output_columns))
    return model_header(model) if form == "cpp" else schema_xml(spec.features, spec.outputs, model)


def _cpp(features: int | None, outputs: int | None) -> str:
    if features is not None or outputs is not None:
        raise click.UsageError(
            "The C++ header is for every model: leave --features and --outputs out, or give --model."
        )
    return cpp_header()


def _sbe(features: int | None, outputs: int | None) -> str:
    if features is None or outputs is None:
        missing = "--features" if features is None else "--outputs"
        raise click.UsageError(
            f"Missing option '{missing}': an SBE schema is for one model; --model FILE knows both."
        )
    return schema_xml(features, outputs)
