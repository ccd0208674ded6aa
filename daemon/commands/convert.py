"""`sigd convert`."""

from __future__ import annotations

from pathlib import Path

import click

from sigd.daemon.commands.options import write_output


@click.command(
    epilog="""\b
Examples:
  sigd convert model.txt -o m.onnx     LightGBM
  sigd convert model.json -o m.onnx    XGBoost, .ubj too
  sigd convert model.cbm -o m.onnx     CatBoost
  sigd convert model.skops -o m.onnx   scikit-learn, as skops.io.dump saves it"""
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The ONNX file to write.",
)
def convert(file: Path, output: Path) -> None:
    """Convert FILE, as LightGBM, XGBoost, CatBoost or skops saved it, to ONNX, and check that it is served.

    Needs pip install 'sigd[convert]'. A pickle is never opened.
    """
    from sigd.models.convert import convert as converted
    from sigd.models.graph_tensors import served_tensors
    from sigd.models.spec import read_spec

    found = converted(file)
    write_output(output, found.content)
    spec = read_spec(output, "converted")
    inputs, outputs = served_tensors(spec)
    for kind, tensors in (("feature", inputs), ("output", outputs)):
        for tensor in tensors:
            click.echo(tensor.told(kind))
    click.echo("NaN is a missing value" if spec.takes_nan else "NaN is answered with BAD_INPUT")
    if found.inexact:
        click.echo(
            f"{found.inexact:,} of {found.thresholds:,} thresholds are no float32 and were rounded down:"
            " features of float32 fall on the side that they did, of float64 only once they are rounded"
        )
    click.echo(f"written: {output}; serve it with sigd serve --model {output}")
