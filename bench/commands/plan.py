"""`sigd plan`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from sigd.bench.errors import MissingDependency
from sigd.bench.files import write_whole

if TYPE_CHECKING:
    from sigd.bench.plan.machine import Machine


@click.command(
    epilog="""\b
Examples:
  sigd plan docs/workstation/machine.toml
  sigd plan --all MACHINE.toml                 every verdict, with its bounds
  sigd plan --json MACHINE.toml | jq '.change[0]'
  sigd plan --compare docs/workstation/compare/m2-ultra.toml MACHINE.toml
  sigd plan --vllm /etc/vllm MACHINE.toml      vllm.service and vllm.env
  sigd plan --markdown docs/workstation docs/workstation/machine.toml

\b
Exit codes: 0 it fits; 1 something does not; 2 the file is not a machine's description. With --vllm and
--markdown 0 where the files were written."""
)
@click.argument("machine_file", metavar="MACHINE.toml", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Every verdict, those that fit included.")
@click.option("--json", "json_output", is_flag=True, help="The plan as JSON.")
@click.option(
    "--compare",
    "others",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="OTHER.toml",
    help="Another machine for the same work; may be given several times.",
)
@click.option(
    "--vllm",
    "vllm_folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the service of the language model that the plan serves: vllm.service and vllm.env.",
)
@click.option(
    "--markdown",
    "markdown_folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the document of the workstation, with its corrections and its plots. Reads recommended.toml"
    " and"
    " compare/*.toml beside MACHINE.toml.",
)
def plan(
    machine_file: Path,
    everything: bool,
    json_output: bool,
    others: tuple[Path, ...],
    vllm_folder: Path | None,
    markdown_folder: Path | None,
) -> None:
    """Compute what fits on a workstation, and what has to change before it is built.

    Memory, speed, power, heat, links and network, each from sourced figures, with low and high. Nothing is
    measured.
    """
    from sigd.bench.plan import comparison, machine, table
    from sigd.bench.plan.errors import PlanError
    from sigd.bench.plan.plan import make

    try:
        described = machine.read(machine_file)
        if vllm_folder is not None or markdown_folder is not None:
            _write(machine_file, described, vllm_folder, markdown_folder)
            sys.exit(0)
        made = make(described)
        work = comparison.comparable(described)
        columns = [comparison.column(work, machine.read(other)) for other in others]
    except PlanError as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)
    if json_output:
        document = msgspec.to_builtins(made) | ({"compared": msgspec.to_builtins(columns)} if columns else {})
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    elif columns:
        click.echo(table.compared(described, columns), nl=False)
    else:
        click.echo(table.text(made, everything=everything), nl=False)
    sys.exit(0 if made.fits else 1)


def _write(file: Path, described: Machine, vllm_folder: Path | None, markdown_folder: Path | None) -> None:
    """Write what was asked for, and name each file."""
    from sigd.bench.plan import vllm
    from sigd.bench.plan.document import document

    files: dict[Path, str] = {}
    if vllm_folder is not None:
        service = vllm.service(described)
        files[vllm_folder / "vllm.service"] = service.unit
        files[vllm_folder / "vllm.env"] = service.environment
    if markdown_folder is not None:
        for name, text in document(file.parent, described).items():
            files[markdown_folder / name] = text
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text.encode())
            click.echo(f"wrote {path}")
    except MissingDependency as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"sigd: {path}: {error.strerror}; name a folder that can be written", err=True)
        sys.exit(3)
