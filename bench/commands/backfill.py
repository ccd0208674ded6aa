"""`sigd backfill`: captures of many instruments and days into Parquet, scored as a live daemon would."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click
import msgspec

from sigd.bench.errors import BenchError

if TYPE_CHECKING:
    from sigd.bench.backfill.run import Progress

EXIT_INTERRUPTED = 130


@click.command(
    epilog="""\b
A plan:
  model = "model.onnx"                  default: the model that ships with sigd
  [[input]]
  format = "capture"
  path = "captures/{symbol}_{date}.gz"  relative to the plan
  symbols = ["btcusdt", "ethusdt"]
  dates = "2024-08-01..2024-08-31"      or a list

\b
Examples:
  sigd backfill plan.toml --out scored               on all cores of this machine
  sigd backfill plan.toml --out scored --workers 2
  sigd backfill plan.toml --out scored --json

\b
The same command goes on where it was stopped. Exit codes: 0 done; 1 a piece failed; 2 wrong usage or input; 3
the environment lacks something; 130 stopped by Ctrl-C or SIGTERM."""
)
@click.argument("plan", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Directory for the files."
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes on this machine.  [default: one for each core]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def backfill(plan: Path, out: Path, workers: int | None, as_json: bool) -> None:
    """Score captures of many instruments and days with the features and the model of a live daemon.

    Each instrument and date of PLAN becomes one Parquet file under DIR, written once: time, instrument,
    outputs, status, and what the market then did.
    """
    try:
        with _interruptible():
            failed = _backfill(plan, out, workers, as_json)
    except BenchError as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo(f"sigd: stopped; the same command goes on with what is left in {out}", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(1 if failed else 0)


def _backfill(plan_path: Path, out: Path, workers: int | None, as_json: bool) -> bool:
    """Whether a piece failed."""
    from sigd.bench.backfill.engines.local import LocalEngine
    from sigd.bench.backfill.plan import read_plan
    from sigd.bench.backfill.progress import shown
    from sigd.bench.backfill.run import run
    from sigd.bench.backfill.setup import job_of, with_ticks
    from sigd.bench.backfill.store import Store

    plan = read_plan(plan_path)
    job = job_of(plan, out.absolute())
    with Store(out.absolute()) as store:
        store.open(job.stamp, plan.pieces)
        pieces = with_ticks(plan.pieces)
        engine = LocalEngine(job, workers or len(os.sched_getaffinity(0)))
        try:
            with shown(len(pieces), quiet=as_json) as show:
                progress = run(store, pieces, plan.state, engine, show)
        finally:
            engine.close()
        digest = store.digest(pieces)
    _report(progress, digest, out, as_json)
    return bool(progress.failed)


def _report(progress: Progress, digest: str, out: Path, as_json: bool) -> None:
    if as_json:
        summary = {
            "out": str(out),
            "pieces": progress.pieces,
            "found": progress.found,
            "done": progress.done,
            "failed": progress.failed,
            "events": progress.events,
            "rows": progress.rows,
            "empty": progress.empty,
            "elapsed_s": progress.elapsed_s,
            "events_per_s": progress.events_per_s,
            "sha256": digest,
        }
        click.echo(msgspec.json.format(msgspec.json.encode(summary)).decode())
        return
    for piece, reason in progress.failed.items():
        click.echo(f"failed: {piece}: {reason}", err=True)
    click.echo(
        f"{progress.pieces:,} pieces: {progress.done:,} written, {progress.found:,} there already,"
        f" {len(progress.failed):,} failed"
    )
    if progress.done:
        click.echo(
            f"{progress.events:,} events, {progress.rows:,} rows in {progress.elapsed_s:.1f} s:"
            f" {progress.events_per_s:,.0f} events/s"
        )
    if progress.empty:
        click.echo(
            f"{progress.empty:,} of them have no row: their features never became exact, see docs/backfill.md"
        )
    click.echo(f"sha256 of all of them: {digest}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does."""

    def interrupt(signal_number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
