"""`sigd demo`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sigd.bench.daemon_process import OwnDaemon, ServeOptions
from sigd.bench.errors import BadRequest
from sigd.bench.market.demo import WARMUP_NS, DemoState, run_demo
from sigd.bench.market.synthetic import SyntheticMarket
from sigd.bench.pinning import allowed_cpus, choose_cores, pinned
from sigd.daemon.config.flags import SEED, FiniteRange
from sigd.models.features import FeatureStream
from sigd.models.features.catalogue import FEATURE_COUNT
from sigd.models.market.capture import CaptureReader
from sigd.models.market.errors import SALVAGE, CaptureError, MarketError
from sigd.models.market.events import MarketEvent
from sigd.models.training.outcome import CLASSES
from sigd.wire.client import connect
from sigd.wire.messages import Welcome
from sigd.wire.status import Status

PERCENTS = (50.0, 90.0, 99.0, 99.9)
_BLOCKS = "▁▂▃▄▅▆▇█"
_STYLES = {"down": "red", "flat": "dim", "up": "green"}


@click.command(
    epilog="""\b
Examples:
  sigd demo
  sigd demo --capture usdm_btcusdt.gz --duration 30
  sigd demo --model my.onnx"""
)
@click.option(
    "--duration",
    "duration_s",
    type=FiniteRange(1, 3600),
    default=10.0,
    show_default=True,
    help="Seconds.",
)
@click.option(
    "--capture",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A real market's events instead.",
)
@click.option("--salvage", is_flag=True, help="Take what is whole of a damaged capture.")
@click.option("--model", help="A model of the 64 market features.  [default: the one that ships with sigd]")
@click.option("--seed", type=SEED, default=7, show_default=True, help="Of the synthetic market.")
@click.option(
    "--budget-us",
    type=FiniteRange(min=0, min_open=True),
    default=100.0,
    show_default=True,
    help="For p99.",
)
def demo(
    duration_s: float, capture: Path | None, salvage: bool, model: str | None, seed: int, budget_us: float
) -> None:
    """See it work: a daemon, a market, live signals, and the verdict on their latency.

    The market is synthetic and seeded, as bursty as a real one (a Hawkes process); nothing needs to be
    downloaded. The exit code says whether every request was answered, and a capture was whole; the check that
    a budget is kept is `sigd bench --p99`.
    """
    if salvage and capture is None:
        raise BadRequest("--salvage: without --capture there is nothing to salvage")
    daemon_cpu, client_cpu, idle = choose_idle(allowed_cpus())
    spin = idle == "spin"
    console = Console(highlight=False)
    console.print(f"Starting a daemon ({idle}{f', core {daemon_cpu}' if daemon_cpu is not None else ''}) ...")
    with (
        OwnDaemon(ServeOptions(model=model, idle=idle, cpu=daemon_cpu)) as daemon,
        pinned(client_cpu),
        connect(daemon.socket_path, client_name="sigd demo", spin=spin) as client,
    ):
        welcome = client.welcome
        if welcome.features != FEATURE_COUNT:
            raise BadRequest(
                f"the model takes {welcome.features} features, the demo's market gives {FEATURE_COUNT}"
            )
        source = capture.name if capture is not None else f"synthetic market, seed {seed}"
        head = (
            f"{source}  →  {FEATURE_COUNT} features  →  {welcome.model_name}"
            f" {welcome.model_sha256.hex()[:12]}"
        )
        reader, stream = None, FeatureStream(warmup_ns=WARMUP_NS)
        if capture is not None:
            reader = CaptureReader(capture, salvage=salvage)
            reader.watch(stream)
        with Live(console=console, auto_refresh=False) as live:
            try:
                state = run_demo(
                    client,
                    SyntheticMarket(seed).events() if reader is None else _from_zero(reader),
                    duration_s,
                    lambda state: live.update(_picture(state, head, welcome), refresh=True),
                    spin=spin,
                    stream=stream,
                )
            except CaptureError as error:
                raise BadRequest(f"{capture}: {error}{SALVAGE if error.salvageable else ''}") from error
            except (MarketError, OSError, EOFError) as error:
                raise BadRequest(f"{capture}: {error}") from error
        daemon.stop()
    exit_code = _verdict(console, state, budget_us)
    if reader is not None:
        for line in reader.shown():
            click.echo(line)
        if reader.faults and not salvage:
            click.echo(
                f"sigd: {capture}: {reader.faults}: signals are missing or wrong from there on{SALVAGE}",
                err=True,
            )
            exit_code = 1
    sys.exit(exit_code)


def choose_idle(allowed: Sequence[int]) -> tuple[int | None, int | None, str]:
    """The daemon's core, the client's, and the daemon's idle strategy, as docs/tuning.md advises.

    With two cores or fewer a daemon that spins takes time from its client and from the rest of the machine:
    it backs off, and neither is pinned.
    """
    if len(allowed) <= 2:
        return None, None, "backoff"
    return *choose_cores(allowed), "spin"


def _from_zero(events: Iterable[MarketEvent]) -> Iterator[MarketEvent]:
    """The same with times that count from 0, as the demo's clock does."""
    first_ns = None
    for event in events:
        if first_ns is None:
            first_ns = event.receive_ns
        yield msgspec.structs.replace(event, receive_ns=event.receive_ns - first_ns)


def _picture(state: DemoState, head: str, welcome: Welcome) -> Group:
    lines: list[Text | Table] = [Text(head, style="bold"), Text()]
    if state.mids:
        lines.append(
            Text.assemble("mid  ", (sparkline(list(state.mids)), "cyan"), f"  {state.mids[-1]:,.2f}")
        )
    if len(state.probabilities) == len(CLASSES):
        for name, probability in zip(CLASSES, state.probabilities, strict=True):
            bar = "" if math.isnan(probability) else "█" * round(40 * probability)
            lines.append(Text.assemble(f"{name:<5}", (f"{bar:<40}", _STYLES[name]), f" {probability:6.1%}"))
    lines.append(Text())
    table = Table(
        "us from request to signal", *(f"p{percent:g}" for percent in PERCENTS), "signals", "events/s"
    )
    table.add_row(
        f"after {state.market_s:.1f} s",
        *(f"{value:.1f}" for value in state.percentiles_us(PERCENTS)),
        f"{state.signals:,}",
        f"{state.events / state.market_s:,.0f}" if state.market_s else "",
    )
    lines += [table, Text()]
    return Group(*lines)


def sparkline(values: list[float]) -> str:
    """Values as a line of blocks, the lowest the shortest."""
    low, high = min(values), max(values)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in values)


def verdict_lines(p99_us: float, daemon_p99_us: float, budget_us: float) -> list[str]:
    """Whether the budget is kept, and whose part it is where not: sigd's, or the machine's.

    sigd answers for the time between its stamps of a request's arrival and its answer. The rest is the
    kernel, the wait for a core, and this Python client.
    """
    parts = f"p99 {p99_us:.1f} us from request to signal; in sigd {daemon_p99_us:.1f} us of its own p99"
    if p99_us <= budget_us:
        return [f"[green]✔[/] {parts}: within the budget of {budget_us:g} us"]
    if daemon_p99_us <= budget_us:
        return [
            (
                f"[yellow]●[/] {parts}: sigd keeps the budget of {budget_us:g} us, and the way there and back"
                " on this machine does not"
            ),
            (
                "  The rest is the wait for a core, the kernel, and this Python client: `sigd doctor`"
                " looks for what slows this machine."
            ),
        ]
    return [
        f"[red]✘[/] {parts}: over the budget of {budget_us:g} us, in sigd too",
        "  Another task on its core looks the same: `sigd doctor` looks for what slows this machine.",
    ]


def _verdict(console: Console, state: DemoState, budget_us: float) -> int:
    """Print the verdict; returns the exit code."""
    if not state.signals:
        console.print(f"no signal: the market has to last longer than {WARMUP_NS / 1e9:g} s")
        return 1
    failed = {status.name: n for status in Status if (n := state.by_status[status]) and status != Status.OK}
    console.print(f"{state.signals:,} signals")
    for line in verdict_lines(state.percentiles_us((99.0,))[0], state.daemon_percentile_us(99.0), budget_us):
        console.print(line)
    if failed:
        console.print(f"[red]not answered OK: {failed}[/]")
    console.print(
        "Measured by a Python client from each request's send. Next: [bold]sigd bench --p99 --closed-loop"
        " --floor[/]"
        " measures beside what this machine can do at best;\n[bold]sigd serve[/] and sigd.wire.client"
        " connect your own"
        " engine."
    )
    return 1 if failed else 0
