"""`sigd bench reload`, also `make bench-reload`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sigd.bench.commands.options import html_option, idle_option, transport_of, transport_option
from sigd.bench.errors import BenchError
from sigd.daemon.config.flags import FiniteRange, WholeRange

if TYPE_CHECKING:
    from sigd.bench.reload import Asked, Document, Found


@click.command(
    "reload",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  sigd bench reload                    100 reloads of the model that ships with sigd
  sigd bench reload --idle spin --pin  a loop that never sleeps, on a core of its own
  sigd bench reload --model a.onnx --other b.onnx --json > reload.json
  sigd bench reload --model a.engine --other b.engine

\b
Exit codes: 0 the bar was kept; 1 not, or the run is not valid; 2 wrong usage or input; 3 the environment
lacks something, for example a C++ compiler.""",
)
@click.option("--reloads", type=WholeRange(1), default=100, show_default=True, help="All together.")
@click.option(
    "--rate",
    type=FiniteRange(0, min_open=True),
    default=10_000.0,
    show_default=True,
    help="Requests a second, Poisson arrivals.",
)
@transport_option()
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="ONNX model, or engine with its manifest beside it, to serve and reload.  [default: the model that"
    " ships with sigd]",
)
@click.option(
    "--other",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Reload this one and --model in turn.  [default: a copy]",
)
@idle_option("Idle strategy of the daemon.", "backoff")
@click.option(
    "--pin/--no-pin",
    default=False,
    show_default=True,
    help="Give the daemon a core of its own: right where there are more than two.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@html_option
def main(as_json: bool, html_file: Path | None, **options: object) -> None:
    """Measure p99 while models are reloaded against p99 at rest, in one run, in turns.

    Bar: p99 at most 1.2 times as long during reloads, no request lost, generations in order.
    """
    try:
        found = _measure(options, quiet=as_json)
        if html_file is not None:
            _write_report(html_file, found)
    except BenchError as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(document(found))).decode())
    else:
        _show(found)
    sys.exit(1 if found.reasons() else 0)


def _measure(options: dict[str, object], *, quiet: bool) -> Found:
    from sigd.bench.load.native import NativeLoad
    from sigd.bench.native import build as native
    from sigd.bench.reload import measure

    asked = asked_of(**options)  # type: ignore[arg-type]
    return measure(asked, NativeLoad(native.build()), lambda line: click.echo(line, err=quiet))


def _write_report(file: Path, found: Found) -> None:
    import msgspec

    from sigd.bench.page.other_pages import reload_page
    from sigd.bench.page.write import write_report

    facts = document(found)
    page = reload_page(found, msgspec.to_builtins(facts))
    for written in write_report(file, page, msgspec.json.encode(facts) + b"\n"):
        click.echo(f"wrote    {written}", err=True)


def asked_of(
    *,
    reloads: int,
    rate: float,
    transport: str,
    model: Path | None,
    other: Path | None,
    idle: str,
    pin: bool,
) -> Asked:
    """The options as what to measure."""
    from sigd.bench.daemon_process import ServeOptions
    from sigd.bench.pinning import allowed_cpus, choose_cores
    from sigd.bench.reload import Asked
    from sigd.models.zoo import default_model_path

    daemon_cpu, client_cpu = choose_cores(allowed_cpus())
    return Asked(
        serve=ServeOptions(idle=idle, cpu=daemon_cpu if pin else None),
        model=model or default_model_path(),
        other=other,
        transport=transport_of(transport),
        rate_hz=rate,
        reloads=reloads,
        cpu=client_cpu,
    )


def document(found: Found) -> Document:
    """The figures, for programs."""
    from sigd.bench.reload import Document, Latencies

    asked = found.asked
    turns = (found.resting, found.beside, found.during)
    resting, beside, during = (
        Latencies(count, *(value_ns / 1000 for value_ns in values_ns))
        for count, values_ns in zip(found.requests, turns, strict=True)
    )
    return Document(
        reloads=found.reloads,
        rate_hz=asked.rate_hz,
        transport=asked.transport.name.lower(),
        idle=asked.serve.idle,
        cpus=(asked.serve.cpu, asked.cpu),
        at_rest=resting,
        beside_a_control_load=beside,
        during_reloads=during,
        p99_ratio=found.p99_ratio,
        p99_floor_ratio=found.floor_ratio,
        reload_p50_ms=found.reload_ms[0],
        reload_max_ms=found.reload_ms[1],
        reload_cpu_ms=found.reload_cpu_ms,
        lost=found.lost,
        generations=found.generations,
        in_order=found.in_order,
        reasons=found.reasons(),
        passed=not found.reasons(),
    )


def _show(found: Found) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from sigd.bench.reload import P99_RATIO_MAX

    console = Console(highlight=False, soft_wrap=True)
    table = Table(
        "us", "requests", "p50", "p99", "p99.9", "max",
        title=f"from when a request was due to its answer, {found.asked.rate_hz:,.0f} requests/s",
        title_justify="left", box=box.SIMPLE_HEAD,
    )  # fmt: skip
    for name, count, latencies in (
        ("at rest", found.requests[0], found.resting),
        ("beside a control load", found.requests[1], found.beside),
        ("during reloads", found.requests[2], found.during),
    ):
        table.add_row(name, f"{count:,}", *(f"{value / 1000:,.1f}" for value in latencies))
    console.print(table)
    first, last = found.generations
    order = "in order" if found.in_order else "OUT OF ORDER"
    console.print(
        f"p99 {found.p99_ratio:.2f} times as long during reloads (bar {P99_RATIO_MAX}),"
        f" {found.floor_ratio:.2f} beside a"
        f" process of idle priority that computes as much; a reload takes {found.reload_ms[0]:.0f} ms, at"
        f" most {found.reload_ms[1]:.0f}"
    )
    if found.reload_cpu_ms is not None:
        console.print(
            f"a reload takes {found.reload_cpu_ms:.1f} ms of processor time, in the daemon and in the"
            " processes that validate"
        )
    console.print(f"{found.received:,} answers, {found.lost} lost; generations {first} to {last}, {order}")
    console.print("passed" if not found.reasons() else "FAILED")
    for reason in found.reasons():
        console.print(f"  {reason}")
