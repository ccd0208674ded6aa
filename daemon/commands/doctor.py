"""`sigd doctor`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from sigd.daemon.config.flags import FiniteRange
from sigd.daemon.doctor import expect, hiccups
from sigd.daemon.doctor.examination import examine_cards, examine_host
from sigd.daemon.doctor.host import Host, choose_cpu, format_cpus
from sigd.daemon.doctor.report import as_json, make_report, show
from sigd.daemon.errors import UsageError

WIDTH = 100


@click.command(
    epilog="""\b
Examples:
  sigd doctor
  sigd doctor --cpu 5 --expect "2x RTX 3090" --engine lob.engine
  sigd doctor --hiccups 10                 watch the core itself for ten seconds
  sigd doctor --json | jq '.findings[] | select(.level == "fail")'"""
)
@click.option("--expect", "expected", help='Graphics cards that must be there, for example "2x RTX 3090".')
@click.option(
    "--engine",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An engine to check against the first card, with its manifest beside it.",
)
@click.option(
    "--cpu",
    type=click.IntRange(min=0),
    help="The core that the daemon is to run on.  [default: the first isolated one, else the last]",
)
@click.option(
    "--hiccups",
    "hiccup_seconds",
    type=FiniteRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Spin on the core for so long and count how often it is taken away.",
)
@click.option("--json", "json_output", is_flag=True, help="The findings as JSON.")
def doctor(
    expected: str | None,
    engine: Path | None,
    cpu: int | None,
    hiccup_seconds: float | None,
    json_output: bool,
) -> None:
    """Say what on this machine makes the slowest requests slow, why, and the command that fixes it.

    Reads only, changes nothing. Ends with 1 where a check failed; warnings alone end with 0.
    """
    cards = expect.parse(expected) if expected is not None else ()
    host = Host(_checked_cpu(cpu))
    findings = examine_host(host)
    if hiccup_seconds is not None:
        findings.append(hiccups.judge(host.cpu, hiccups.measure_on(host.cpu, hiccup_seconds)))
    findings += examine_cards(host, expected=cards, engine_file=engine)
    report = make_report(host.cpu, findings)
    if json_output:
        click.echo(as_json(report))
    else:
        console = Console(highlight=False)
        console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
        show(report, console)
    sys.exit(1 if report.verdict == "fail" else 0)


def _checked_cpu(asked: int | None) -> int:
    """The CPU to look at.

    Raises:
        UsageError: there is no such CPU, or it is switched off.
    """
    host = Host(asked or 0)
    if asked is None:
        return choose_cpu(host)
    online = host.online()
    if online and asked not in online:
        raise UsageError(f"--cpu {asked}: no such CPU is switched on here; there are {format_cpus(online)}")
    return asked
