"""`sigd doctor`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from rich.console import Console

from sigd.daemon.config.flags import FiniteRange, WholeRange
from sigd.daemon.doctor import expect, hiccups
from sigd.daemon.doctor.examination import examine_cards, examine_host
from sigd.daemon.doctor.host import Host, choose_cpu, format_cpus
from sigd.daemon.doctor.lanes import examine_lanes, with_lanes
from sigd.daemon.doctor.machine import Machine, examine_machine
from sigd.daemon.doctor.report import as_json, make_report, show
from sigd.daemon.errors import UsageError

WIDTH = 100
EXPECTATIONS = "sigd.bench.plan.expectations:expectations_json"
"""Computes what a machine's file expects, as JSON. Named as text, as the commands of sigd.bench are, so that
no module of sigd.daemon imports that room."""


@click.command(
    epilog="""\b
Examples:
  sigd doctor
  sigd doctor --cpu 5 --expect "2x RTX 3090" --engine lob.engine
  sigd doctor --cpu 5 --lane-cpu 6         the loop's core, and a lane's
  sigd doctor --hiccups 10                 watch the core itself for ten seconds
  sigd doctor --machine MACHINE.toml       against what sigd plan computes of the machine
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
    type=WholeRange(min=0),
    help="The core that the daemon is to run on.  [default: the first isolated one, else the last]",
)
@click.option(
    "--lane-cpu",
    "lane_cpus",
    type=WholeRange(min=0),
    multiple=True,
    help="A core that a lane of the daemon is to run on.  Repeatable.",
)
@click.option(
    "--hiccups",
    "hiccup_seconds",
    type=FiniteRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Spin on the core for so long and count how often it is taken away.",
)
@click.option(
    "--machine",
    "machine_file",
    type=click.Path(path_type=Path),
    metavar="MACHINE.toml",
    help="Hold this machine to its description: power limits, lanes, memory, bandwidth, network.",
)
@click.option(
    "--far-end",
    metavar="HOST",
    help="With --machine: a host that runs iperf3 --server, to measure the network against.",
)
@click.option("--json", "json_output", is_flag=True, help="The findings as JSON.")
def doctor(
    expected: str | None,
    engine: Path | None,
    cpu: int | None,
    lane_cpus: tuple[int, ...],
    hiccup_seconds: float | None,
    machine_file: Path | None,
    far_end: str | None,
    json_output: bool,
) -> None:
    """Say what on this machine makes the slowest requests slow, why, and the command that fixes it.

    Reads only, changes nothing. Ends with 1 where a check failed; warnings alone end with 0.
    """
    if far_end is not None and machine_file is None:
        raise UsageError("--far-end is a part of --machine: give MACHINE.toml too")
    machine = _expectations(machine_file) if machine_file is not None else None
    cards = expect.parse(expected) if expected is not None else ()
    lane_cpus = tuple(_checked_cpu("--lane-cpu", lane) for lane in dict.fromkeys(lane_cpus))
    host = with_lanes(Host(_checked_cpu("--cpu", cpu, lane_cpus)), lane_cpus)
    findings = examine_host(host)
    if hiccup_seconds is not None:
        findings.append(hiccups.judge(host.cpu, hiccups.measure_on(host.cpu, hiccup_seconds)))
    findings += examine_cards(host, expected=cards, engine_file=engine)
    if machine is not None:
        findings += examine_machine(host, machine, far_end=far_end)
    findings += examine_lanes(host, lane_cpus)
    report = make_report(host.cpu, findings)
    if json_output:
        click.echo(as_json(report))
    else:
        console = Console(highlight=False)
        console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
        show(report, console)
    sys.exit(1 if report.verdict == "fail" else 0)


def _expectations(path: Path) -> Machine:
    """What the machine's file expects.

    Raises:
        UsageError: it is not a machine's description.
    """
    module, _, attribute = EXPECTATIONS.partition(":")
    compute = getattr(importlib.import_module(module), attribute)
    try:
        return msgspec.json.decode(compute(path), type=Machine)
    except ValueError as error:
        raise UsageError(f"--machine {error}") from error


def _checked_cpu(option: str, asked: int | None, taken: Sequence[int] = ()) -> int:
    """The CPU to look at, that `option` asks for; None: a good one that is not taken, where there is one.

    Raises:
        UsageError: there is no such CPU, or it is switched off.
    """
    host = Host(asked or 0)
    if asked is None:
        return choose_cpu(host, taken)
    online = host.online()
    if online and asked not in online:
        raise UsageError(
            f"{option} {asked}: no such CPU is switched on here; there are {format_cpus(online)}"
        )
    return asked
