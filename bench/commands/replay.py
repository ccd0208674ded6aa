"""`sigd replay`: a market capture through a daemon, or a flight recording through a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from sigd.bench.commands.options import SPEED_MIN, html_option
from sigd.bench.errors import BadRequest, BenchError
from sigd.daemon.config.flags import FINITE_MAX, FiniteRange, WholeRange, dim_option
from sigd.wire.recording.reader import is_recording

OF_CAPTURES: Final = ("speed", "out", "socket", "horizon_ms", "flat_bps", "html_file", "cost_bps")
OF_RECORDINGS: Final = ("limit", "tolerance")


class SpeedType(click.ParamType[float | None]):
    """A factor above 0, or "max"."""

    name = "X|max"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        if value == "max":
            return None
        try:
            speed = float(str(value).removesuffix("x"))
        except ValueError:
            speed = 0.0
        if not SPEED_MIN <= speed <= FINITE_MAX:
            self.fail(
                f"{value!r} is no speed: give a factor such as 1 or 50, at least {SPEED_MIN:g}, or max",
                param,
                ctx,
            )
        return speed


@click.command(
    epilog="""\b
Examples:
  sigd replay capture.gz --speed 50                 starts a daemon of its own
  sigd replay capture.gz --speed max --out s.csv    each signal with what the market then did
  sigd replay capture.gz --socket /run/sigd/sigd.sock
  sigd replay capture.gz --speed max --html r.html --cost-bps 2    equity after costs, calibration
  sigd replay recordings                            is every answer what it was, to the bit?
  sigd replay recordings --model new.onnx --json    how far away is another model?

\b
A recording is what `sigd serve --record DIR` writes: DIR, or one segment in it. Exit codes: 0 done; 1 an
answer of a recording is not what it was, or further away than --tolerance, or a part of the source is missing
or wrong, and --salvage was not given; 2 wrong usage or input; 3 the environment lacks something."""
)
@click.argument("source", metavar="CAPTURE|RECORDING", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--model", help="Model to run.  [default: a capture: the one that ships with sigd; else the recorded]"
)
@dim_option
@click.option("--backend", help="Backend to run it on.  [default: a recording: the recorded]")
@click.option(
    "--speed",
    type=SpeedType(),
    default="1",
    show_default=True,
    help="Of a capture: how much faster than it was.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Of a capture: write each signal to this .csv or .parquet file.",
)
@click.option("--socket", help="Of a capture: a running daemon's socket.  [default: start one]")
@click.option(
    "--horizon-ms",
    type=FiniteRange(min=0, min_open=True),
    help="Of a capture: when to look at what the market did.",
)
@click.option(
    "--flat-bps", type=FiniteRange(min=0), help="Of a capture: moves up to this size count as flat."
)
@html_option
@click.option(
    "--cost-bps",
    type=FiniteRange(min=0),
    default=1.0,
    show_default=True,
    help="Of a capture: what a trade costs, in and out together; for --html.",
)
@click.option("--limit", type=WholeRange(min=1), help="Of a recording: run no more requests than this.")
@click.option(
    "--tolerance",
    type=FiniteRange(min=0),
    help="Of a recording: how far away an output may be.  [default: the same model must give the same bits]",
)
@click.option("--salvage", is_flag=True, help="Run what is whole of a damaged recording or capture.")
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON.")
@click.pass_context
def replay(
    ctx: click.Context,
    source: Path,
    model: str | None,
    dims: dict[str, int],
    backend: str | None,
    speed: float | None,
    out: Path | None,
    socket: str | None,
    horizon_ms: float | None,
    flat_bps: float | None,
    html_file: Path | None,
    cost_bps: float,
    limit: int | None,
    tolerance: float | None,
    salvage: bool,
    as_json: bool,
) -> None:
    """Run a market capture through the features and a daemon, and say what the signals were worth; or run
    what a daemon has recorded through its model, or another one, and say whether every answer is what it was.

    A recording knows the sizes of its model's free axes: --dim is for a --model that calls them otherwise.
    """
    from sigd.bench.commands.replay_capture import replay_capture
    from sigd.bench.commands.replay_recording import replay_recording

    try:
        if is_recording(source):
            _refuse(ctx, OF_CAPTURES, "a recording")
            replay_recording(
                source,
                model=None if model is None else Path(model),
                sizes=dims,
                backend=backend,
                limit=limit,
                tolerance=tolerance,
                salvage=salvage,
                as_json=as_json,
            )
        else:
            _refuse(ctx, OF_RECORDINGS, "a capture")
            replay_capture(
                source,
                speed=speed,
                out=out,
                socket=socket,
                model=model,
                sizes=dims,
                backend=backend,
                horizon_ms=horizon_ms,
                flat_bps=flat_bps,
                html=None if html_file is None else (html_file, cost_bps),
                salvage=salvage,
                as_json=as_json,
            )
    except BenchError as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)


def _refuse(ctx: click.Context, names: tuple[str, ...], what: str) -> None:
    """Raise BadRequest where one of these was given."""
    for name in names:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise BadRequest(f"{ctx.params['source']} is {what}: leave out --{name.replace('_', '-')}")
