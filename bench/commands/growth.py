"""`sigd bench growth`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sigd.bench.commands.options import html_option
from sigd.bench.errors import BenchError
from sigd.daemon.config.flags import FiniteRange

if TYPE_CHECKING:
    from sigd.bench.growth import Growth

_AXES = ("connections", "in-flight", "instruments", "features", "batch", "parameters")


@click.command(
    "growth",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  sigd bench growth                              all curves, in three minutes
  sigd bench growth --axis connections --html growth.html
  sigd bench growth --backend onnxruntime --json > growth.json

\b
Exit codes: 0 done; 4 inconclusive: the machine was disturbed; 1 an answer was lost; 2 wrong usage or input;
3 the environment lacks something, for example a C++ compiler.""",
)
@click.option(
    "--axis", "axes", type=click.Choice(_AXES), multiple=True, help="May be given again.  [default: all]"
)
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Of connections, requests in flight, instruments and rows a call.  [default: the shipped one]",
)
@click.option("--backend", default="auto", show_default=True, help="As sigd serve has it.")
@click.option(
    "--seconds", type=FiniteRange(0, min_open=True), default=1.0, show_default=True, help="Of each point."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@html_option
def main(
    axes: tuple[str, ...],
    model: Path | None,
    backend: str,
    seconds: float,
    as_json: bool,
    html_file: Path | None,
) -> None:
    """Measure how the cost of a request grows with what one core has to carry."""
    import msgspec

    from sigd.bench.growth import measure
    from sigd.bench.native import build as native
    from sigd.bench.verdict import INCONCLUSIVE_EXIT_CODE
    from sigd.models.zoo import default_model_path

    try:
        found = measure(
            model or default_model_path(),
            backend,
            axes or _AXES,
            seconds,
            native.build(),
            lambda line: click.echo(line, err=True),
        )
        written = msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"
        if html_file is not None:
            from sigd.bench.page.other_pages import growth_page
            from sigd.bench.page.write import write_report

            for file in write_report(html_file, growth_page(found), written):
                click.echo(f"wrote    {file}", err=True)
    except BenchError as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)
    if as_json:
        click.echo(written.decode(), nl=False)
    else:
        _show(found)
    sys.exit(INCONCLUSIVE_EXIT_CODE if found.disturbed else 0)


def _show(growth: Growth) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for axis in growth.axes:
        table = Table(
            "", "p50, us", "p99, us", "a second", title=axis.title, title_justify="left", box=box.SIMPLE_HEAD
        )
        for column in table.columns:
            column.justify = "right"
        for point in axis.points:
            mark = "~" if point.disturbed else ""
            table.add_row(
                f"{point.value:,}",
                f"{mark}{point.p50_us:,.1f}",
                f"{mark}{point.p99_us:,.1f}",
                f"{mark}{point.per_s:,.0f}",
            )
        console.print(table)
    if growth.disturbed:
        console.print("INCONCLUSIVE: at the points with ~ the machine took more than 1% of the time away")
