"""`sigd schema`."""

from __future__ import annotations

from pathlib import Path

import click

from sigd.daemon.errors import UsageError
from sigd.wire.fields import FEATURES_MAX
from sigd.wire.layout import OUTPUTS_MAX
from sigd.wire.sbe import schema_xml


@click.command(
    epilog="""\b
Examples:
  sigd schema --features 64 --outputs 3
  sigd schema --features 64 --outputs 3 -o sigd.xml    for an SBE code generator"""
)
@click.option(
    "--features", type=click.IntRange(1, FEATURES_MAX), required=True, help="Features per request (n)."
)
@click.option(
    "--outputs", type=click.IntRange(1, OUTPUTS_MAX), required=True, help="Outputs per response (m)."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.  [default: stdout]",
)
def schema(features: int, outputs: int, output: Path | None) -> None:
    """Print the SBE schema of the wire for a model of that many features and outputs."""
    xml = schema_xml(features, outputs)
    if output is None:
        click.echo(xml, nl=False)
        return
    try:
        output.write_text(xml, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from error
