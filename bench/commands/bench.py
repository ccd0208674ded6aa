"""`sigd bench`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
from click.core import ParameterSource

from sigd.bench.commands.options import (
    SPEED_MIN,
    html_option,
    idle_option,
    transport_of,
    transport_option,
)
from sigd.bench.errors import BadRequest, BenchError
from sigd.bench.files import write_whole
from sigd.daemon.config.flags import SEED, FiniteRange, WholeRange
from sigd.daemon.lazy_group import LazyGroup

if TYPE_CHECKING:
    from rich.console import Console

    from sigd.bench.daemon_process import ServeOptions
    from sigd.bench.rig import Settings

_TABLE_COLUMNS = 110
_DEFAULT_RATE_HZ = 10_000.0
_DEFAULT_INSTRUMENTS = 16

COMMANDS: Final = {
    "compare": ("sigd.bench.commands.alternatives:main", "sigd beside what teams use instead, in one run."),
    "reload": ("sigd.bench.commands.reload:main", "What reloads cost the requests that come meanwhile."),
    "connections": ("sigd.bench.commands.connections:main", "What 1,000 connections cost each other."),
    "observe": ("sigd.bench.commands.observe:main", "What metrics and the flight recorder cost a request."),
    "tunnel": ("sigd.bench.commands.tunnel:main", "What an SSH tunnel costs, over loopback."),
    "growth": (
        "sigd.bench.commands.growth:main",
        "How the cost of a request grows with what a core carries.",
    ),
    "profile": ("sigd.bench.commands.profile:main", "Where the daemon's time for a request goes, by stage."),
}
"""Measurements with a command of their own: name to (module:attribute, one line for `--help`)."""


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    invoke_without_command=True,
    epilog="""\b
Examples:
  sigd bench --p99                                       10,000 requests/s, Poisson arrivals, budget 100 us
  sigd bench --p99 --closed-loop --floor --idle spin     beside the floor of this machine
  sigd bench --p99 --capture btcusdt.gz --speed 50       the arrivals of a real market, 50 times as fast
  sigd bench --p99 --socket /run/sigd/sigd.sock --rate 2000 --json p99.json --hgrm p99.hgrm
  sigd bench --no-p99 --closed-loop --connections 4 --in-flight 64 --floor --idle spin     throughput
  sigd bench --p99 --closed-loop --floor --idle spin --transport shm        through shared memory
  sigd bench --p99 --closed-loop --idle spin --transport shm --lane-cpu 3   the same, in a lane
  sigd bench --no-p99 --closed-loop --in-flight 64 --idle spin --transport shm --backend echo    no model
  sigd bench --closed-loop --model lstm.onnx --history --instruments 1000    one step in each request
  sigd bench --neighbour "python -m sigd.bench.neighbour.hogs memory"       what another tenant does

\b
Open loop: latency counts from the intended send time, so that a stall counts for every request that it held
up.
Exit codes: 0 passed; 1 over the budget, or not valid (replies lost, rate missed, contract broken): the files
are then named NAME.FAIL.json and NAME.FAIL.hgrm; 4 inconclusive: not passed, but the machine took more than
1% of the time away, so that it says nothing of the daemon (NAME.INCONCLUSIVE.json); 2 wrong usage or input; 3
the environment lacks something.""",
)
@click.option(
    "--p99/--no-p99", default=True, show_default=True, help="Hold p99 to the budget, or only measure."
)
@click.option(
    "--budget-us",
    type=FiniteRange(0, min_open=True),
    default=100.0,
    show_default=True,
    help="What p99 is held to.",
)
@click.option("--socket", help="Measure the daemon that listens there.  [default: start one]")
@click.option("--model", help="Model of the daemon that is started.  [default: the one that ships with sigd]")
@click.option(
    "--backend",
    help="Backend of the daemon that is started; echo runs no model, to measure the daemon alone.  [default:"
    " auto]",
)
@idle_option("Idle strategy of the daemon that is started.  [default: the daemon's own]", None)
@click.option(
    "--lane-cpu",
    "lane_cpus",
    type=WholeRange(min=0),
    multiple=True,
    help="Let a lane of the daemon that is started answer on this core: needs --transport shm; --idle is"
    " the lane's, and the loop sleeps.  Repeatable.",
)
@transport_option("How requests travel: stream, also called uds, is the Unix socket; shm is shared memory.")
@click.option("--rate", type=FiniteRange(0.001), help="Open loop, requests/s.  [default: 10000]")
@click.option(
    "--arrivals", type=click.Choice(["poisson", "constant"]), help="With --rate.  [default: poisson]"
)
@click.option(
    "--capture",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Open loop with the arrivals and the features of a market capture.",
)
@click.option("--speed", type=FiniteRange(SPEED_MIN), help="Of the capture.  [default: 1]")
@click.option(
    "--salvage", is_flag=True, help="Take what is whole of a damaged capture, and let the run be valid."
)
@click.option("--closed-loop", is_flag=True, help="Send as soon as an answer makes room.")
@click.option(
    "--connections", type=WholeRange(1, 1024), default=1, show_default=True, help="Clients at a time."
)
@click.option(
    "--in-flight",
    type=WholeRange(min=1),
    help="Most requests unanswered on a connection.  [default: 1 in a closed loop, else what the daemon"
    " grants]",
)
@click.option(
    "--history",
    is_flag=True,
    help="Send one step in each request: the daemon keeps the windows. Needs a model that looks at steps.",
)
@click.option(
    "--instruments",
    type=WholeRange(1, 1_000_000),
    help="With --history, of each connection.  [default: 16]",
)
@click.option(
    "--duration",
    type=FiniteRange(0, min_open=True),
    help="Seconds.  [default: 10; a capture: all of it]",
)
@click.option("--requests", type=WholeRange(min=1), help="Measure this many requests instead.")
@click.option("--warmup", type=FiniteRange(0), default=1.0, show_default=True, help="Seconds.")
@click.option("--floor", is_flag=True, help="Measure the machine's own floor in turns, and print the ratios.")
@click.option(
    "--neighbour",
    metavar="CMD",
    help="Measure what this command does to the tail: blocks beside it and without it, in turns.",
)
@click.option(
    "--client",
    type=click.Choice(["auto", "cpp", "python"]),
    default="auto",
    show_default=True,
    help="The load generator: cpp is built with the compiler at hand; python is for machines without one.",
)
@click.option(
    "--seed",
    type=SEED,
    default=1,
    show_default=True,
    help="Of the arrivals and the features.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write the result; - prints it.",
)
@click.option(
    "--hgrm", "hgrm_file", type=click.Path(path_type=Path), help="Write the percentile distribution (.hgrm)."
)
@html_option
@click.pass_context
def bench(
    context: click.Context,
    /,
    json_file: Path | None,
    hgrm_file: Path | None,
    html_file: Path | None,
    **options: Any,
) -> None:
    """Measure the latency of a daemon and prove the budget.

    With --neighbour 12 rounds of two blocks of --duration seconds (0.5) are measured; it fails where the
    neighbour makes p50 or p99 slower, or takes p99 over the budget.

    Without --socket a daemon is started for the run, on a core of its own where there are two.
    """
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    # Told to end: leave by an exception, so that a daemon of ours is not left behind.
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        exit_code = _measure(options, json_file, hgrm_file, html_file)
    except BenchError as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(exit_code)


def _refuse_options_before(context: click.Context) -> None:
    """The command that follows has options of its own; these would be ignored."""
    given = [
        name
        for name in context.params
        if context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
    ]
    if given:
        raise click.UsageError(
            f"--{given[0].replace('_', '-')} belongs to `sigd bench` itself: put the options of"
            f" {context.invoked_subcommand} behind its name"
        )


def _terminated(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def _measure(
    options: dict[str, Any], json_file: Path | None, hgrm_file: Path | None, html_file: Path | None
) -> int:
    import msgspec
    from rich.console import Console

    from sigd.bench import histogram, report, rig
    from sigd.bench.document import document
    from sigd.bench.verdict import named_by_verdict

    neighbour = options["neighbour"]
    settings = settings_of(**options)
    _check_writable(json_file, hgrm_file, html_file)
    if neighbour is not None:
        _refuse("--neighbour has no distribution of one run", neighbour, hgrm=hgrm_file)
        return _measure_neighbour(settings, neighbour, json_file, html_file)
    json_to_stdout = json_file is not None and str(json_file) == "-"
    console = Console(stderr=json_to_stdout, soft_wrap=True, highlight=False)
    # In a narrow terminal a table's lines are wrapped by it: rich would cut the figures off.
    console.width = max(console.width, _TABLE_COLUMNS)
    outcome = rig.run(settings, lambda line: console.print(line, style="dim"))
    result = document(outcome)
    report.render(result, console)
    written = msgspec.json.format(msgspec.json.encode(result), indent=2)
    if json_to_stdout:
        click.echo(written.decode())
    elif json_file is not None:
        _write(named_by_verdict(json_file, outcome.verdict.exit_code), written + b"\n", console)
    if hgrm_file is not None:
        text = histogram.hgrm(outcome.measurement.counts.corrected)
        _write(named_by_verdict(hgrm_file, outcome.verdict.exit_code), text.encode(), console)
    if html_file is not None:
        from sigd.bench.page.latency_page import run_page
        from sigd.bench.page.write import write_report

        text = histogram.hgrm(outcome.measurement.counts.corrected)
        named = named_by_verdict(html_file, outcome.verdict.exit_code)
        for file in write_report(named, run_page(result), written + b"\n", {"": text}):
            console.print(f"wrote    {file}")
    return outcome.verdict.exit_code


def _measure_neighbour(
    settings: Settings, command: str, json_file: Path | None, html_file: Path | None
) -> int:
    import msgspec
    from rich.console import Console

    from sigd.bench.neighbour import report
    from sigd.bench.neighbour.blocks import Asked, measure
    from sigd.bench.neighbour.process import words_of
    from sigd.bench.verdict import named_by_verdict

    json_to_stdout = json_file is not None and str(json_file) == "-"
    console = Console(stderr=json_to_stdout, soft_wrap=True, highlight=False)
    asked = Asked(settings, words_of(command))
    result = measure(asked, lambda line: console.print(line, style="dim"))
    console.print(report.text(result, settings.budget_ns), end="")
    exit_code = 0 if result.passed else 1
    written = msgspec.json.format(msgspec.json.encode(result), indent=2)
    if json_to_stdout:
        click.echo(written.decode())
    elif json_file is not None:
        _write(named_by_verdict(json_file, exit_code), written + b"\n", console)
    if html_file is not None:
        from sigd.bench.page.other_pages import neighbour_page
        from sigd.bench.page.write import write_report

        page = neighbour_page(result, report.reasons(result, settings.budget_ns))
        for file in write_report(named_by_verdict(html_file, exit_code), page, written + b"\n"):
            console.print(f"wrote    {file}")
    return exit_code


def settings_of(
    *,
    p99: bool,
    budget_us: float,
    socket: str | None,
    model: str | None,
    backend: str | None,
    idle: str | None,
    lane_cpus: tuple[int, ...],
    transport: str,
    rate: float | None,
    arrivals: str | None,
    capture: Path | None,
    speed: float | None,
    salvage: bool,
    closed_loop: bool,
    connections: int,
    in_flight: int | None,
    history: bool,
    instruments: int | None,
    duration: float | None,
    requests: int | None,
    warmup: float,
    floor: bool,
    neighbour: str | None,
    client: str,
    seed: int,
) -> Settings:
    """The options as settings.

    Raises:
        BadRequest: they contradict each other.
    """
    from sigd.bench.rig import Mode, Settings

    _refuse_two_loads(rate=rate is not None, capture=capture is not None, closed_loop=closed_loop)
    _refuse("--socket measures a running daemon", socket, model=model, backend=backend, idle=idle)
    _refuse_unfit_for_lanes(lane_cpus, socket, history, transport)
    _refuse("--closed-loop has no schedule", closed_loop or None, arrivals=arrivals, speed=speed)
    _refuse_special_loads(capture, arrivals, floor, neighbour, history)
    if capture is None:
        _refuse_without_capture(speed, salvage, requests, duration)
    kept = _instruments(history, instruments)
    return Settings(
        mode=Mode.CAPTURE if capture is not None else Mode.CLOSED_LOOP if closed_loop else Mode.RATE,
        socket_path=socket,
        serve=_serve_options(model, backend, idle, lane_cpus, kept),
        transport=transport_of(transport),
        rate_hz=rate or _DEFAULT_RATE_HZ,
        arrivals=arrivals or "poisson",
        capture=capture,
        speed=speed or 1.0,
        salvage=salvage,
        connections=connections,
        in_flight=in_flight,
        duration_s=duration,
        requests=requests,
        warmup_s=warmup,
        floor=floor,
        client=client,
        budget_ns=round(budget_us * 1000) if p99 else None,
        seed=seed,
        history_instruments=kept,
    )


def _refuse_unfit_for_lanes(
    lane_cpus: tuple[int, ...], socket: str | None, history: bool, transport: str
) -> None:
    from sigd.wire.status import Transport

    if not lane_cpus:
        return
    _refuse("--socket measures a running daemon, which has its lanes", socket, lane_cpu=True)
    _refuse("--history is the loop's", history or None, lane_cpu=True)
    if transport_of(transport) is not Transport.SHARED_MEMORY:
        raise BadRequest("--lane-cpu answers clients of shared memory: add --transport shm")


def _serve_options(
    model: str | None,
    backend: str | None,
    idle: str | None,
    lane_cpus: tuple[int, ...],
    history_instruments: int | None,
) -> ServeOptions:
    """Of the daemon that is started. What `idle` is of is what answers: the loop, or its lanes."""
    from sigd.bench.daemon_process import ServeOptions

    lane_idle = (idle or "backoff") if lane_cpus else None
    return ServeOptions(
        model=model,
        backend=backend,
        idle="block" if lane_cpus else idle,
        history_instruments=history_instruments,
        lane_cpus=lane_cpus,
        lane_idle=lane_idle,
    )


def _refuse_special_loads(
    capture: Path | None, arrivals: str | None, floor: bool, neighbour: str | None, history: bool
) -> None:
    """A capture, the floor, a neighbour and steps bring what to send, and when."""
    _refuse("--capture brings its own arrivals", capture, arrivals=arrivals)
    _refuse("--floor is measured with --closed-loop or --rate", floor or None, capture=capture)
    _refuse("--neighbour compares equal blocks", neighbour, floor=floor or None, capture=capture)
    _refuse("--history sends steps of its own", history or None, capture=capture, floor=floor or None)


def _refuse_without_capture(
    speed: float | None, salvage: bool, requests: int | None, duration: float | None
) -> None:
    _refuse("without --capture there is nothing to speed up", True, speed=speed)
    _refuse("without --capture there is nothing to salvage", True, salvage=salvage or None)
    _refuse("--requests says how long to measure", requests, duration=duration)


def _instruments(history: bool, instruments: int | None) -> int | None:
    """Of each connection whose history is kept; None where requests carry whole rows."""
    if not history:
        _refuse("without --history requests carry whole rows", True, instruments=instruments)
        return None
    return instruments or _DEFAULT_INSTRUMENTS


def _refuse_two_loads(**chosen: bool) -> None:
    """Refuse more than one of the options that decide when a request is sent."""
    if sum(chosen.values()) > 1:
        named = " and ".join(f"--{name.replace('_', '-')}" for name, is_chosen in chosen.items() if is_chosen)
        raise BadRequest(f"{named} exclude each other: choose what decides when a request is sent")


def _refuse(because: str, given: object, **others: object) -> None:
    """Refuse each of `others` that was given (is not None) if `given` was."""
    if given is None:
        return
    for name, value in others.items():
        if value is not None:
            raise BadRequest(f"{because}: leave out --{name.replace('_', '-')}")


def _check_writable(*files: Path | None) -> None:
    """A run of minutes must not end with a result that cannot be written."""
    for file in files:
        if file is not None and str(file) != "-" and not os.access(file.absolute().parent, os.W_OK):
            raise BadRequest(f"{file}: its folder does not exist or may not be written to")


def _write(file: Path, content: bytes, console: Console) -> None:
    write_whole(file, content)
    console.print(f"wrote    {file}")
