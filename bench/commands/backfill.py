"""`sigd backfill`: captures of many instruments and days into Parquet, scored as a live daemon would."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click
import msgspec

from sigd.bench.errors import BadRequest, BenchError
from sigd.daemon.config.flags import WholeRange

if TYPE_CHECKING:
    from sigd.bench.backfill.engines import Engine
    from sigd.bench.backfill.piece import Job
    from sigd.bench.backfill.run import Progress
    from sigd.bench.backfill.verify import Verified

EXIT_INTERRUPTED = 130
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


class ShareType(click.ParamType[float]):
    """A share above 0, as "1%" or 0.01."""

    name = "SHARE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            self.fail(f"{text!r} is no share: give 1%, or 0.01", param, ctx)
        return share


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
  sigd backfill plan.toml --out scored --verify 1% --json
  sigd backfill plan.toml --out /nfs/scored --scheduler tls://head:8786 \\
      --tls-ca ca.pem --tls-cert me.pem --tls-key me.key

\b
The same command goes on where it was stopped. Exit codes: 0 done; 1 a piece failed; 2 wrong usage or input; 3
the environment lacks something; 130 stopped by Ctrl-C or SIGTERM."""
)
@click.argument("plan", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Directory for the files."
)
@click.option(
    "--workers", type=WholeRange(min=1), help="Processes on this machine.  [default: one for each core]"
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="A Dask cluster instead: tcp://127.0.0.1:PORT, or tls://HOST:PORT off this machine.",
)
@click.option("--tls-ca", type=_FILE, help="Authority that signed the cluster's certificates.")
@click.option("--tls-cert", type=_FILE, help="This side's certificate.")
@click.option("--tls-key", type=_FILE, help="Its key.")
@click.option(
    "--verify",
    type=ShareType(),
    help="Run this share of the rows through a real daemon too, such as 1%, and compare bits.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def backfill(
    plan: Path,
    out: Path,
    workers: int | None,
    scheduler: str | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    verify: float | None,
    as_json: bool,
) -> None:
    """Score captures of many instruments and days with the features and the model of a live daemon.

    Each instrument and date of PLAN becomes one Parquet file under DIR, written once: time, instrument,
    outputs, status, and what the market then did.
    """
    try:
        with _interruptible():
            open_engine = _engine(workers, scheduler, tls_ca, tls_cert, tls_key)
            failed = _backfill(plan, out, open_engine, verify, as_json)
    except BenchError as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo(f"sigd: stopped; the same command goes on with what is left in {out}", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(1 if failed else 0)


def _engine(
    workers: int | None,
    scheduler: str | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> Callable[[Job], Engine]:
    """What opens the engine that was asked for.

    Raises:
        BadRequest: the options contradict each other.
    """
    from sigd.bench.backfill.engines.dask import DaskEngine, Tls, check_address
    from sigd.bench.backfill.engines.local import LocalEngine

    if scheduler is None:
        if tls_ca or tls_cert or tls_key:
            raise BadRequest("--tls-ca, --tls-cert and --tls-key are for --scheduler tls://HOST:PORT")
        return lambda job: LocalEngine(job, workers or len(os.sched_getaffinity(0)))
    if workers is not None:
        raise BadRequest("--workers is for this machine; a cluster has its own")
    tls = Tls(tls_ca, tls_cert, tls_key) if tls_ca and tls_cert and tls_key else None
    check_address(scheduler, tls)
    return lambda job: DaskEngine(job, scheduler, tls)


def _backfill(
    plan_path: Path, out: Path, open_engine: Callable[[Job], Engine], share: float | None, as_json: bool
) -> bool:
    """Whether a piece failed or is not what a daemon answers."""
    from sigd.bench.backfill.plan import read_plan
    from sigd.bench.backfill.progress import shown
    from sigd.bench.backfill.run import run
    from sigd.bench.backfill.setup import job_of, with_ticks
    from sigd.bench.backfill.store import Store
    from sigd.bench.backfill.verify import verify

    plan = read_plan(plan_path)
    job = job_of(plan, out.absolute())
    with Store(out.absolute()) as store:
        store.open(job.stamp, plan.pieces)
        pieces = with_ticks(plan.pieces)
        engine = open_engine(job)
        try:
            with shown(len(pieces), quiet=as_json) as show:
                progress = run(store, pieces, plan.state, engine, show)
        finally:
            engine.close()
        digest = store.digest(pieces)
        verified = None
        if share is not None:
            verified = verify(store, job, pieces, share, lambda piece: _say(f"verifying {piece}", as_json))
    _report(progress, digest, verified, out, as_json)
    return bool(progress.failed or (verified and verified.different))


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        click.echo(text, err=True)


def _report(progress: Progress, digest: str, verified: Verified | None, out: Path, as_json: bool) -> None:
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
            "verified": None
            if verified is None
            else {"rows": verified.rows, "pieces": verified.pieces, "different": verified.different},
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
    if verified is not None:
        for piece, difference in verified.different.items():
            click.echo(f"different: {piece}: {difference}", err=True)
        same = "differ from" if verified.different else "equal"
        click.echo(f"{verified.rows:,} rows of {verified.pieces:,} pieces {same} a daemon's answers")


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
