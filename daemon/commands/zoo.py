"""`sigd zoo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from sigd.daemon.commands.options import write_output
from sigd.daemon.config.flags import SEED
from sigd.daemon.errors import UsageError

if TYPE_CHECKING:
    from sigd.models.zoo.catalogue import ZooModel


@click.command(
    epilog="""\b
Examples:
  sigd zoo                        the names, with their shapes
  sigd zoo lstm_a -o lstm_a.onnx
  sigd zoo --json | jq '.[].name'"""
)
@click.argument("name", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The ONNX file to write.",
)
@click.option("--seed", type=SEED, default=1, show_default=True, help="Seed of the weights.")
@click.option("--json", "json_output", is_flag=True, help="The list as JSON.")
def zoo(name: str | None, output: Path | None, seed: int, json_output: bool) -> None:
    """Write a model to measure with: a shape that the field publishes figures for, with drawn weights.

    Without NAME the models are listed. The same name and seed give the same bytes everywhere. The answers
    mean nothing.
    """
    from sigd.models.zoo.catalogue import ZOO, zoo_file, zoo_model

    if name is None:
        if output is not None:
            raise UsageError(f"--output {output} without a NAME, expected one of {', '.join(ZOO)}")
        _list(tuple(ZOO.values()), json_output)
        return
    if json_output:
        raise UsageError("--json is for the list, expected no NAME beside it")
    if output is None:
        known = zoo_model(name).name
        raise UsageError(f"where to write {known}? Give the file: sigd zoo {known} -o {known}.onnx")
    write_output(output, zoo_file(name, seed))
    click.echo(f"written: {output}; show it with sigd inspect {output}")


def _list(models: tuple[ZooModel, ...], json_output: bool) -> None:
    if json_output:
        found = [
            {
                "name": model.name,
                "what": model.what,
                "input_dims": model.row_dims,
                "outputs": model.outputs,
                "parameters": model.parameters,
            }
            for model in models
        ]
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    click.echo(f"{'name':<10}{'input':>9}{'outputs':>9}{'parameters':>12}  layers")
    for model in models:
        dims = "x".join(map(str, model.row_dims))
        click.echo(f"{model.name:<10}{dims:>9}{model.outputs:>9}{model.parameters:>12,}  {model.what}")
