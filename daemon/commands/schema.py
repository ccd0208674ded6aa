"""`sigd schema`."""

from __future__ import annotations

from pathlib import Path

import click

from sigd.daemon.errors import UsageError
from sigd.wire.fields import FEATURES_MAX
from sigd.wire.layout import OUTPUTS_MAX
from sigd.wire.schema.cpp_header import cpp_header
from sigd.wire.schema.sbe import schema_xml


@click.command(
    epilog="""\b
Examples:
  sigd schema --features 64 --outputs 3
  sigd schema --features 64 --outputs 3 -o sigd.xml    for an SBE code generator
  sigd schema --format cpp -o sigd_wire.hpp            the same as a C++20 header, for any model"""
)
@click.option("--features", type=click.IntRange(1, FEATURES_MAX), help="Features per request (n); with sbe.")
@click.option("--outputs", type=click.IntRange(1, OUTPUTS_MAX), help="Outputs per response (m); with sbe.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["sbe", "cpp"]),
    default="sbe",
    show_default=True,
    help="An SBE schema for one model, or a C++20 header for all.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.  [default: stdout]",
)
def schema(features: int | None, outputs: int | None, form: str, output: Path | None) -> None:
    """Print the wire: as the SBE schema for a model of that many features and outputs, or as a C++ header."""
    text = _cpp(features, outputs) if form == "cpp" else _sbe(features, outputs)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from error


def _cpp(features: int | None, outputs: int | None) -> str:
    if features is not None or outputs is not None:
        raise click.UsageError("The C++ header is for every model: leave --features and --outputs out.")
    return cpp_header()


def _sbe(features: int | None, outputs: int | None) -> str:
    if features is None or outputs is None:
        missing = "--features" if features is None else "--outputs"
        raise click.UsageError(f"Missing option '{missing}': an SBE schema is for one model.")
    return schema_xml(features, outputs)
