"""`sigd plan`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec


@click.command(
    epilog="""\b
Examples:
  sigd plan docs/workstation/machine.toml
  sigd plan --all MACHINE.toml             every verdict, with its bounds
  sigd plan --json MACHINE.toml | jq '.change[0]'

\b
Exit codes: 0 it fits; 1 something does not; 2 the file is not a machine's description."""
)
@click.argument("machine_file", metavar="MACHINE.toml", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Every verdict, those that fit included.")
@click.option("--json", "json_output", is_flag=True, help="The plan as JSON.")
def plan(machine_file: Path, everything: bool, json_output: bool) -> None:
    """Compute what fits on a workstation, and what has to change before it is built.

    Memory, speed, power, heat, links and network, each from sourced figures, with low and high. Nothing is measured.
    """
    from sigd.bench.plan import machine, table
    from sigd.bench.plan.errors import PlanError
    from sigd.bench.plan.plan import make

    try:
        made = make(machine.read(machine_file))
    except PlanError as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)
    if json_output:
        click.echo(msgspec.json.format(msgspec.json.encode(made), indent=2).decode())
    else:
        click.echo(table.text(made, everything=everything), nl=False)
    sys.exit(0 if made.fits else 1)
