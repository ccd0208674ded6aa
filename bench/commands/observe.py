"""`sigd bench observe`, also `make bench-observe`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sigd.bench.commands.options import html_option, idle_option, transport_of, transport_option
from sigd.bench.errors import BenchError
from sigd.daemon.config.flags import FiniteRange, WholeRange

if TYPE_CHECKING:
    from sigd.bench.observe import Asked, Found


@click.command(
    "observe",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  sigd bench observe                    over the Unix socket
  sigd bench observe --transport shm    through shared memory
  sigd bench observe --rounds 40        on a machine that is busy with other work
  sigd bench observe --html observe.html

\b
Exit codes: 0 metrics cost a request less than 150 ns; 1 more, or the run is not valid; 2 wrong usage or
input; 3 the environment lacks something, for example a C++ compiler.""",
)
@click.option("--rounds", type=WholeRange(1), default=10, show_default=True, help="Of two turns each.")
@click.option(
    "--seconds",
    type=FiniteRange(0, min_open=True),
    default=0.5,
    show_default=True,
    help="For each turn.",
)
@transport_option()
@click.option("--model", help="Model of the daemons.  [default: the one that ships with sigd]")
@idle_option("Idle strategy of the daemons.", "spin")
@html_option
def main(html_file: Path | None, **options: object) -> None:
    """Measure what metrics and the flight recorder cost a request, on against off, in turns.

    First in one process, in ns of the daemon's own time; then two daemons with one client, from send to
    answer.
    """
    asked = asked_of(**options)  # type: ignore[arg-type]
    within_budget = _show_stages(asked)
    try:
        found = _measure(asked)
        _show(found)
        if html_file is not None:
            _write_report(html_file, found)
    except BenchError as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(0 if within_budget and not found.reasons() else 1)


def asked_of(*, rounds: int, seconds: float, transport: str, model: str | None, idle: str) -> Asked:
    """The options as what to measure."""
    from sigd.bench.daemon_process import ServeOptions
    from sigd.bench.observe import Asked
    from sigd.bench.pinning import allowed_cpus, choose_cores

    daemon_cpu, client_cpu = choose_cores(allowed_cpus())
    return Asked(
        serve=ServeOptions(model=model, idle=idle, cpu=daemon_cpu),
        transport=transport_of(transport),
        rounds=rounds,
        seconds=seconds,
        cpu=client_cpu,
    )


def _show_stages(asked: Asked) -> bool:
    """In a process of its own: the bench knows the daemon from outside only. Whether metrics cost what they
    may."""
    command = [sys.executable, "-P", "-m", "sigd.bench.profile.recording", "--rounds", str(10 * asked.rounds)]
    for flag, value in (("--model", asked.serve.model), ("--cpu", asked.serve.cpu)):
        if value is not None:
            command += [flag, str(value)]
    code = subprocess.run(command, check=False).returncode
    if code not in (0, 1):
        sys.exit(code)
    return code == 0


def _measure(asked: Asked) -> Found:
    from sigd.bench.load.native import NativeLoad
    from sigd.bench.native import build as native
    from sigd.bench.observe import measure

    return measure(asked, NativeLoad(native.build()), click.echo)


def _write_report(file: Path, found: Found) -> None:
    import msgspec

    from sigd.bench import histogram
    from sigd.bench.page.other_pages import observe_page
    from sigd.bench.page.write import write_report

    facts = document(found)
    hgrms = {name: histogram.hgrm(counts) for name, counts in found.counts().items()}
    for written in write_report(file, observe_page(found, facts), msgspec.json.encode(facts) + b"\n", hgrms):
        click.echo(f"wrote    {written}")


def document(found: Found) -> dict[str, object]:
    """The figures, for programs; times in us from send to answer."""
    names = ("p50_us", "p99_us")
    off, on = ([value_ns / 1000 for value_ns in pooled] for pooled in found.pooled_ns())
    longer = [value_ns / 1000 for value_ns in found.longer_ns()]
    return {
        "transport": found.asked.transport.name.lower(),
        "idle": found.asked.serve.idle,
        "rounds": len(found.rounds),
        "metrics": dict(zip(names, off, strict=True)),
        "metrics_and_recorder": dict(zip(names, on, strict=True)),
        "recorder_takes_longer": dict(zip(names, longer, strict=True)),
        "recorder_times": dict(zip(("p50", "p99"), found.ratios(), strict=True)),
        "recorded": found.recorded,
        "dropped": found.dropped,
        "reasons": found.reasons(),
        "passed": not found.reasons(),
    }


def _show(found: Found) -> None:
    click.echo(f"{'us from send to answer':34}{'p50':>8}{'':8}{'times':>7}{'p99':>10}{'':8}{'times':>7}")
    off, on = ([value_ns / 1000 for value_ns in pooled] for pooled in found.pooled_ns())
    longer = [value_ns / 1000 for value_ns in found.longer_ns()]
    ratios = found.ratios()
    click.echo(f"{'metrics':34}{off[0]:8,.2f}{'':15}{off[1]:10,.2f}")
    click.echo(
        f"{'metrics and recorder':34}{on[0]:8,.2f}{longer[0]:+8,.2f}{ratios[0]:7.3f}"
        f"{on[1]:10,.2f}{longer[1]:+8,.2f}{ratios[1]:7.3f}"
    )
    click.echo(
        f"percentiles over {len(found.rounds)} rounds, differences and ratios in the median round;"
        f" {found.recorded:,} requests recorded, {found.dropped:,} left out"
    )
    for reason in found.reasons():
        click.echo(f"FAILED: {reason}")
