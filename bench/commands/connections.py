"""`sigd bench connections`, also `make bench-connections`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sigd.bench.commands.options import html_option, idle_option, transport_of, transport_option
from sigd.bench.errors import BenchError
from sigd.daemon.config.flags import FiniteRange, WholeRange

if TYPE_CHECKING:
    from rich.console import Console

    from sigd.bench.connections import Asked, Found
    from sigd.bench.load.contract import Measurement


@click.command(
    "connections",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  sigd bench connections                        1,000 connections to a spinning daemon
  sigd bench connections --transport shm        through shared memory
  sigd bench connections --json > connections.json

\b
Exit codes: 0 both bars were kept; 1 not, or the run is not valid; 2 wrong usage or input; 3 the environment
lacks something, for example a C++ compiler.""",
)
@click.option(
    "--connections", type=WholeRange(2, 1000), default=1000, show_default=True, help="All together."
)
@click.option(
    "--talking",
    type=WholeRange(1),
    default=10,
    show_default=True,
    help="Those that talk in the first part.",
)
@click.option(
    "--in-flight",
    type=WholeRange(1, 16),
    default=8,
    show_default=True,
    help="Unanswered requests of each in the second part.",
)
@click.option("--rounds", type=WholeRange(1), default=5, show_default=True, help="Of the first part.")
@click.option(
    "--seconds",
    type=FiniteRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="For each turn of a round.",
)
@click.option(
    "--requests-each",
    type=WholeRange(1, 10_000),
    default=400,
    show_default=True,
    help="In the second part, on average.",
)
@transport_option()
@click.option("--model", help="Model of the daemon.  [default: the one that ships with sigd]")
@click.option("--backend", help="Backend of the daemon; echo runs no model.  [default: auto]")
@idle_option("Idle strategy of the daemon.", "spin")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@html_option
def main(as_json: bool, html_file: Path | None, **options: object) -> None:
    """Measure what silent connections cost those that talk, and how evenly all are served when all talk.

    Bars: p99 of the few at most 1.3 times as long among silent ones as alone, and no connection served more
    than twice as often as another.
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
    from sigd.bench.connections import measure
    from sigd.bench.load.native import NativeLoad
    from sigd.bench.native import build as native

    asked = asked_of(**options)  # type: ignore[arg-type]
    programs = native.build()
    return measure(asked, NativeLoad(programs), lambda line: click.echo(line, err=quiet))


def _write_report(file: Path, found: Found) -> None:
    import msgspec

    from sigd.bench.page.other_pages import facts_page
    from sigd.bench.page.write import write_report

    facts = document(found)
    title = f"What {found.asked.connections:,} connections cost each other"
    page = facts_page(title, "sigd bench connections", facts, passed=not found.reasons())
    for written in write_report(file, page, msgspec.json.encode(facts) + b"\n"):
        click.echo(f"wrote    {written}", err=True)


def asked_of(
    *,
    connections: int,
    talking: int,
    in_flight: int,
    rounds: int,
    seconds: float,
    requests_each: int,
    transport: str,
    model: str | None,
    backend: str | None,
    idle: str,
) -> Asked:
    """The options as what to measure.

    Raises:
        BadRequest: no connection would be left to keep silent.
    """
    from sigd.bench.connections import Asked
    from sigd.bench.daemon_process import ServeOptions
    from sigd.bench.errors import BadRequest
    from sigd.bench.pinning import allowed_cpus, choose_cores

    if talking >= connections:
        raise BadRequest(
            f"--talking {talking} of --connections {connections} leaves none silent: choose fewer"
        )
    daemon_cpu, client_cpu = choose_cores(allowed_cpus())
    return Asked(
        serve=ServeOptions(model=model, backend=backend, idle=idle, cpu=daemon_cpu),
        transport=transport_of(transport),
        connections=connections,
        talking=talking,
        in_flight=in_flight,
        rounds=rounds,
        seconds=seconds,
        requests_each=requests_each,
        cpu=client_cpu,
    )


def document(found: Found) -> dict[str, object]:
    """The figures, for programs; times in us."""
    return {
        "connections": found.asked.connections,
        "talking": found.asked.talking,
        "transport": found.asked.transport.name.lower(),
        "rounds": [
            {
                "alone": _percentiles_us(turns.alone),
                "among_silent": _percentiles_us(turns.among),
                "p99_ratio": turns.p99_ratio,
            }
            for turns in found.rounds
        ],
        "p99_ratio": found.p99_ratio,
        "served": {
            "least": min(found.shares.served),
            "most": max(found.shares.served),
            "ratio": found.shares.ratio if min(found.shares.served) else None,
            **_percentiles_us(found.shares.measurement),
        },
        "reasons": found.reasons(),
        "passed": not found.reasons(),
    }


def _percentiles_us(measurement: Measurement) -> dict[str, float]:
    from sigd.bench import histogram

    percents = (50.0, 99.0, 100.0)
    values_ns = histogram.percentiles_ns(measurement.counts.corrected, percents)
    return {
        name: value_ns / 1000
        for name, value_ns in zip(("p50_us", "p99_us", "max_us"), values_ns, strict=True)
    }


def _show(found: Found) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from sigd.bench.connections import P99_RATIO_MAX, SHARE_RATIO_MAX

    console = Console(highlight=False, soft_wrap=True)
    asked, served = found.asked, found.shares.served
    silent = asked.connections - asked.talking
    table = Table(
        "round",
        "alone p50",
        "p99",
        "among p50",
        "p99",
        "ratio",
        title=f"{asked.talking} that talk, alone and among {silent} silent ones, one request unanswered on"
        " each; us",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for number, turns in enumerate(found.rounds, 1):
        alone, among = _percentiles_us(turns.alone), _percentiles_us(turns.among)
        table.add_row(
            str(number),
            *(f"{each[name]:,.1f}" for each in (alone, among) for name in ("p50_us", "p99_us")),
            f"{turns.p99_ratio:.2f}",
        )
    console.print(table)
    console.print(
        f"silent   p99 of the {asked.talking} that talk {found.p99_ratio:.2f} times as long among {silent}"
        " that do not,"
        f" median of {len(found.rounds)} rounds (bar {P99_RATIO_MAX})"
    )
    console.print(
        f"talking  {len(served):,} connections, {sum(served):,} answers: most {max(served):,}, least"
        f" {min(served):,},"
        f" ratio {found.shares.ratio:.2f} (bar {SHARE_RATIO_MAX:g});"
        f" p99 {_percentiles_us(found.shares.measurement)['p99_us']:,.0f} us"
    )
    _verdict(found, console)


def _verdict(found: Found, console: Console) -> None:
    reasons = found.reasons()
    console.print("passed" if not reasons else "FAILED")
    for reason in reasons:
        console.print(f"  {reason}")
