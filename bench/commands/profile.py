"""`sigd bench profile`: where the daemon's time for a request goes."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sigd.bench.commands.options import html_option
from sigd.daemon.config.flags import FiniteRange, WholeRange

if TYPE_CHECKING:
    from sigd.bench.profile.times import Times


@click.command(
    "profile",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  sigd bench profile --cpu 1                          the daemon alone
  sigd bench profile --cpu 1 --backend onnxruntime    with the model
  sigd bench profile --json > before.json             to compare with a change

\b
Exit codes: 0 done; 2 wrong usage or input; 3 the environment lacks something.""",
)
@click.option("--model", type=click.Path(path_type=Path), help="Model file.  [default: the shipped one]")
@click.option("--backend", default="echo", show_default=True, help="echo runs no model.")
@click.option(
    "--rows", type=WholeRange(1, 4096), default=64, show_default=True, help="Requests together in a tick."
)
@click.option(
    "--seconds", type=FiniteRange(0), default=0.2, show_default=True, help="For each stage of each load."
)
@click.option("--cpu", type=WholeRange(min=0), help="The core to run on.")
@click.option("--json", "as_json", is_flag=True, help="Print the medians as JSON.")
@html_option
def main(
    model: Path | None,
    backend: str,
    rows: int,
    seconds: float,
    cpu: int | None,
    as_json: bool,
    html_file: Path | None,
) -> None:
    """Time each stage of a request's way through the daemon, over shared memory, and the whole beside them.

    Everything runs in one thread: what it costs to fetch a request from another core's cache is left out.
    """
    # As `sigd serve` does, before NumPy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from sigd.bench.profile.run import measure_model
    from sigd.daemon.errors import DaemonError
    from sigd.models.errors import BackendUnavailable, ModelError

    logging.basicConfig(stream=sys.stderr, level=logging.ERROR, format="sigd %(levelname)s %(message)s")
    try:
        times = measure_model(model, backend, rows, seconds, cpu)
    except (DaemonError, ModelError, ValueError) as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(3 if isinstance(error, BackendUnavailable) else getattr(error, "exit_code", 2))
    if html_file is not None:
        _write_report(html_file, times)
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(times)).decode())
    else:
        _show(times)


def _write_report(file: Path, times: Times) -> None:
    import msgspec

    from sigd.bench.errors import BenchError
    from sigd.bench.page.other_pages import profile_page
    from sigd.bench.page.write import write_report

    try:
        for written in write_report(file, profile_page(times), msgspec.json.encode(times) + b"\n"):
            click.echo(f"wrote    {written}", err=True)
    except BenchError as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)


def _show(times: Times) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{times.model} ({times.features} -> {times.outputs}), backend {times.backend}; medians, ns",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("requests in a tick")
    for column in times.columns:
        table.add_column(column.title, justify="right")
        if column.rows > 1:
            table.add_column("each", justify="right")
    names = list(dict.fromkeys(name for column in reversed(times.columns) for name in column.stages_ns))
    for name in names:
        cells = []
        for column in times.columns:
            ns = column.stages_ns.get(name)
            cells.append("" if ns is None else f"{ns:,.0f}")
            if column.rows > 1:
                cells.append("" if ns is None else f"{ns / column.rows:,.1f}")
        table.add_row(name, *cells)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"a tick that finds nothing {times.empty_tick_ns:,.0f} ns")
    console.print(f"a round of the loop with a tick that does nothing {times.round_ns:,.0f} ns")
