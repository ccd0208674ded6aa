"""`sigd gate`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import msgspec

from sigd.daemon.admin.client import ask_status
from sigd.daemon.admin.gate import Bounds, ShadowBounds, Verdict, find_early, judge
from sigd.daemon.config.config import admin_path_of, running_socket_path
from sigd.daemon.config.flags import FiniteRange, WholeRange
from sigd.daemon.errors import EXIT_CHECK_FAILED, UsageError

LOOK_EVERY_S = 1.0
"""How often it looks for what is red already."""


@click.command(
    epilog="""\b
Examples:
  sigd gate --for 30 --p99-us 100                    is it healthy for 30 s?
  sigd gate --for 30 --serves "$(sha256sum < new.onnx | cut -c-64)"
  sigd gate --for 600 --shadow "$(sha256sum < new.onnx | cut -c-64)" --agreement-min 0.995
  sigd gate --for 30 && systemctl restart sigd@next  a gate between two steps"""
)
@click.option("--socket", type=click.Path(path_type=Path), help="The daemon's socket.")
@click.option(
    "--admin-socket", type=click.Path(path_type=Path), help="Its admin socket, where it is elsewhere."
)
@click.option(
    "--for",
    "watch_s",
    type=FiniteRange(min=0),
    default=10.0,
    show_default=True,
    help="How long to watch, in seconds.",
)
@click.option("--model", default="", help="Which model.  [default: the first one]")
@click.option("--serves", default="", metavar="SHA256", help="The model file that must be served.")
@click.option("--p99-us", type=FiniteRange(min=0, min_open=True), help="The 99th percentile at most.")
@click.option(
    "--errors-max",
    type=WholeRange(min=0),
    default=0,
    show_default=True,
    help="Answers that are MODEL_ERROR.",
)
@click.option(
    "--answers-min",
    type=WholeRange(min=0),
    default=0,
    show_default=True,
    help="Answers at least; 0 lets a daemon pass that is asked nothing.",
)
@click.option("--shadow", default="", metavar="SHA256", help="The model file that must run in the shadow.")
@click.option(
    "--agreement-min",
    type=FiniteRange(0, 1),
    default=0.99,
    show_default=True,
    help="With --shadow: share of the rows on which both decide alike.",
)
@click.option(
    "--rows-min",
    type=WholeRange(min=1),
    default=1000,
    show_default=True,
    help="With --shadow: rows to be compared.",
)
@click.option(
    "--drift-max",
    type=FiniteRange(min=0),
    default=0.5,
    show_default=True,
    help="With --shadow: how far an output's mean may be apart, in standard deviations.",
)
@click.option("--json", "as_json", is_flag=True, help="The verdict as JSON.")
def gate(
    socket: Path | None,
    admin_socket: Path | None,
    watch_s: float,
    model: str,
    serves: str,
    p99_us: float | None,
    errors_max: int,
    answers_min: int,
    shadow: str,
    agreement_min: float,
    rows_min: int,
    drift_max: float,
    as_json: bool,
) -> None:
    """Watch a running daemon, and end with 0 if it was healthy all the time, else with 1 and what is red.

    Counted is what happens while it watches. What cannot become green again ends it at once.
    """
    for name, digest in (("--serves", serves), ("--shadow", shadow)):
        if digest and (len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef")):
            raise UsageError(
                f"{name} {digest!r}: expected the SHA-256 of a file, 64 hexadecimal digits (sha256sum FILE)"
            )
    bounds = Bounds(
        model=model,
        serves=serves.lower(),
        errors_max=errors_max,
        answers_min=answers_min,
        p99_us=p99_us,
        shadow=ShadowBounds(shadow.lower(), rows_min, agreement_min, drift_max) if shadow else None,
    )
    verdict = _watch(admin_socket or admin_path_of(socket or running_socket_path()), watch_s, bounds)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(verdict)).decode())
    else:
        click.echo(_line(verdict))
    for red in verdict.red:
        click.echo(f"sigd: {verdict.model}: {red}", err=True)
    if not verdict.green:
        sys.exit(EXIT_CHECK_FAILED)


def _watch(admin_socket: Path, watch_s: float, bounds: Bounds) -> Verdict:
    before = after = ask_status(admin_socket)
    end_s = time.monotonic() + watch_s
    while not find_early(before, after, bounds) and (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(LOOK_EVERY_S, left_s))
        after = ask_status(admin_socket)
    return judge(before, after, bounds)


def _line(verdict: Verdict) -> str:
    p99 = "no p99" if verdict.p99_us is None else f"p99 {verdict.p99_us:,.1f} us"
    shadow = (
        "" if verdict.agreement is None else f"; {verdict.agreement:.2%} of {verdict.compared:,} rows agree"
    )
    state = "green" if verdict.green else "RED"
    return (
        f"{state}: {verdict.model}, generation {verdict.generation}, sha256 {verdict.sha256[:16]}:"
        f" {verdict.answers:,} answers in {verdict.seconds:.1f} s, {verdict.errors:,} errors, {p99}{shadow}"
    )
