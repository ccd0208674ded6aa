"""`sigd replay` of a market capture: its events through the features and a daemon."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import click
import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sigd.bench.daemon_process import OwnDaemon, ServeOptions
from sigd.bench.errors import BadRequest
from sigd.bench.market.replay import Replayer, Signals, Worth, worth_of
from sigd.bench.market.signal_file import check_out, columns_of, write_table
from sigd.bench.pinning import allowed_cpus, choose_cores, pinned
from sigd.models.features import FeatureStream
from sigd.models.features.catalogue import FEATURE_COUNT
from sigd.models.market import gunzip
from sigd.models.market.capture import CaptureReader
from sigd.models.market.errors import SALVAGE, CaptureError, MarketError
from sigd.models.training.outcome import CLASSES, outcome_of_model
from sigd.models.zoo import default_model_path
from sigd.wire.client import connect

PERCENTS = (50, 90, 99, 99.9)


def replay_capture(
    capture: Path,
    *,
    speed: float | None,
    out: Path | None,
    socket: str | None,
    model: str | None,
    sizes: dict[str, int],
    backend: str | None,
    horizon_ms: float | None,
    flat_bps: float | None,
    html: tuple[Path, float] | None,
    salvage: bool,
    as_json: bool,
) -> None:
    """Run a market capture through the features and a daemon, and say what the signals were worth. End with 1
    where something of the capture is missing or wrong, unless `salvage` asks for what is whole.

    Horizon and flatness default to what the model says it was trained for. `html`: a report to write, and the
    cost of a trade in bps.

    Raises:
        BadRequest: the capture cannot be read, or does not fit the model.
    """
    _check_asked(socket, model or backend or sizes, out)
    horizon_ns, flat = _question(Path(model) if model else default_model_path(), horizon_ms, flat_bps)
    with ExitStack() as stack:
        daemon_cpu, client_cpu = (None, None) if socket else choose_cores(allowed_cpus())
        if socket is None:
            own = OwnDaemon(ServeOptions(model=model, dims=sizes, backend=backend, cpu=daemon_cpu))
            socket = stack.enter_context(own).socket_path
        stack.enter_context(pinned(client_cpu))
        client = stack.enter_context(connect(socket, client_name="sigd replay"))
        if client.welcome.features != FEATURE_COUNT:
            raise BadRequest(
                f"the model takes {client.welcome.features} features, a capture gives {FEATURE_COUNT}"
            )
        progress = stack.enter_context(_progress(quiet=as_json))
        task = progress.add_task(capture.name, signals=0, total=None)
        reader, stream = CaptureReader(capture, salvage=salvage), FeatureStream()
        reader.watch(stream)
        progress.update(task, total=_line_count(capture))
        try:
            signals = Replayer(client, speed).run(
                reader,
                lambda events, samples: progress.update(task, completed=events, signals=samples),
                stream,
            )
        except CaptureError as error:
            raise BadRequest(f"{capture}: {error}{SALVAGE if error.salvageable else ''}") from error
        except (MarketError, OSError, EOFError, ValueError) as error:
            raise BadRequest(f"{capture}: {error}{_faults_before(reader)}") from error
    if out is not None:
        write_table(out, columns_of(signals, horizon_ns, flat))
    worth = (
        worth_of(signals, horizon_ns, flat) if signals.answers["outputs"].shape[1] == len(CLASSES) else None
    )
    summary = _summary(signals, worth, horizon_ns, flat) | reader.summary()
    if html is not None:
        _write_report(html, signals, worth, (horizon_ns, flat), summary, capture.name)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(summary)).decode())
    else:
        _show(signals, worth, horizon_ns, flat, out)
        for line in reader.shown():
            click.echo(line)
    if reader.faults and not salvage:
        _end_not_whole(capture, reader)


def _check_asked(socket: str | None, started: object, out: Path | None) -> None:
    """Refuse what contradicts itself before minutes are spent on it."""
    if socket and started:
        raise BadRequest("--socket is a running daemon; --model, --dim and --backend are for one to start")
    if out is not None:
        check_out(out)


def _write_report(
    html: tuple[Path, float],
    signals: Signals,
    worth: Worth | None,
    question: tuple[int, float],
    summary: dict[str, object],
    source: str,
) -> None:
    from sigd.bench.page.replay_page import replay_page
    from sigd.bench.page.write import write_report

    file, cost_bps = html
    if worth is None:
        raise BadRequest("--html needs signals of three classes with known outcomes, and there is none")
    page = replay_page(signals, worth, *question, cost_bps, source)
    for written in write_report(file, page, msgspec.json.encode(summary) + b"\n"):
        click.echo(f"wrote    {written}", err=True)


def _end_not_whole(capture: Path, reader: CaptureReader) -> NoReturn:
    click.echo(
        f"sigd: {capture}: {reader.faults}: signals are missing or wrong from there on{SALVAGE}", err=True
    )
    sys.exit(1)


def _faults_before(reader: CaptureReader) -> str:
    """What was wrong with the capture before it could not be read on; empty where nothing was."""
    if not reader.faults:
        return ""
    return f" ({'; '.join([str(reader.faults), *map(str, reader.faults.first)])})"


def _question(model: Path, horizon_ms: float | None, flat_bps: float | None) -> tuple[int, float]:
    """What is asked of the market: horizon in ns and the flat threshold in bps."""
    outcome = outcome_of_model(model)
    if outcome is None and (horizon_ms is None or flat_bps is None):
        raise BadRequest(f"{model} does not say what it was trained for: give --horizon-ms and --flat-bps")
    horizon_ns = outcome.horizon_ns if outcome is not None else 0
    flat = outcome.flat_bps if outcome is not None else 0.0
    return (
        horizon_ns if horizon_ms is None else int(horizon_ms * 1e6),
        flat if flat_bps is None else flat_bps,
    )


def _progress(*, quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("events, {task.fields[signals]:,} signals"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )


def _line_count(capture: Path) -> int:
    """A first pass over the file, for the bar."""
    with capture.open("rb") as file:
        return sum(1 for _ in gunzip.lines(file, lambda _: None))


def _summary(signals: Signals, worth: Worth | None, horizon_ns: int, flat_bps: float) -> dict[str, object]:
    summary: dict[str, object] = {
        "events": signals.events,
        "signals": len(signals.answers),
        "elapsed_s": signals.elapsed_s,
        "by_status": signals.by_status,
        "latency_us": {
            f"p{percent:g}": float(np.percentile(signals.latency_ns, percent)) / 1e3 for percent in PERCENTS
        },
        "horizon_ms": horizon_ns / 1e6,
        "flat_bps": flat_bps,
    }
    if worth is not None:
        summary |= {
            "confusion": worth.confusion.tolist(),
            "accuracy": worth.accuracy,
            "always_flat_accuracy": worth.always_flat_accuracy,
            "balanced_accuracy": worth.balanced_accuracy,
            "mean_move_bps": dict(zip(CLASSES, worth.mean_move_bps.tolist(), strict=True)),
        }
    return summary


def _show(signals: Signals, worth: Worth | None, horizon_ns: int, flat_bps: float, out: Path | None) -> None:
    console = Console(highlight=False)
    statuses = ", ".join(f"{name} {count:,}" for name, count in signals.by_status.items() if count)
    console.print(
        f"{signals.events:,} events in {signals.elapsed_s:.1f} s, {len(signals.answers):,} signals:"
        f" {statuses}"
    )
    latency = ", ".join(
        f"p{percent:g} {np.percentile(signals.latency_ns, percent) / 1e3:.1f}" for percent in PERCENTS
    )
    console.print(f"latency from the send, us: {latency}; to measure it properly: sigd bench --capture")
    if worth is not None:
        table = Table(
            "the market then went",
            *(f"said {name}" for name in CLASSES),
            title=f"{horizon_ns / 1e6:g} ms later; within {flat_bps:g} bps is flat",
        )
        for name, row in zip(CLASSES, worth.confusion, strict=True):
            table.add_row(name, *(f"{count:,}" for count in row))
        table.add_section()
        table.add_row(
            "mean move, bps", *("" if np.isnan(move) else f"{move:+.3f}" for move in worth.mean_move_bps)
        )
        console.print(table)
        console.print(
            f"balanced accuracy {worth.balanced_accuracy:.3f} (a guess: 0.333); accuracy {worth.accuracy:.3f}"
            f" (always flat: {worth.always_flat_accuracy:.3f})"
        )
        console.print("No costs, no queues, no fills are in these numbers: they are no profit.")
    if out is not None:
        console.print(f"written: {out}")
