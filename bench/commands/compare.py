"""`sigd compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from sigd.bench.errors import BadRequest, BenchError
from sigd.bench.files import write_whole
from sigd.daemon.config.flags import SEED, FiniteRange, WholeRange, dim_option
from sigd.models.market.errors import SALVAGE
from sigd.models.reading import ReadOptions

if TYPE_CHECKING:
    from rich.console import Console

    from sigd.bench.comparison import Comparison, Samples
    from sigd.models.backend import Backend
    from sigd.models.market.capture import CaptureReader

_BATCH_ROWS_MAX = 64
"""Rows that a model's answers are computed together: the daemon's own default."""


@click.command(
    epilog="""\b
Examples:
  sigd compare m.onnx m.engine                        the model and what was built from it
  sigd compare fp16.engine m.onnx --data rows.npy --agreement-min 0.999
  sigd compare m.onnx m.onnx --backend-b oracle       this backend against the reference
  sigd compare old.onnx new.onnx --data btcusdt.gz --plot compare.svg"""
)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Rows: .npy, or a market capture (.gz).  [default: drawn from the seed]",
)
@click.option("--salvage", is_flag=True, help="Take what is whole of a damaged capture.")
@click.option(
    "--rows", type=WholeRange(1, 1_000_000), default=4096, show_default=True, help="At most so many."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the rows that are drawn.")
@dim_option
@click.option("--backend-a", default="auto", show_default=True, help="What runs A.")
@click.option("--backend-b", default="auto", show_default=True, help="What runs B.")
@click.option(
    "--batch",
    "batch_rows",
    type=WholeRange(1, 65_536),
    default=1,
    show_default=True,
    help="Rows a timed call.",
)
@click.option("--calls", type=WholeRange(min=1), default=2000, show_default=True, help="Timed calls of each.")
@click.option(
    "--agreement-min",
    type=FiniteRange(0, 1),
    help="Exit 1 where labels agree for fewer rows (0.999: 99.9%).",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw errors and times into an SVG.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
def compare(
    a: Path,
    b: Path,
    data: Path | None,
    salvage: bool,
    rows: int,
    seed: int,
    dims: dict[str, int],
    backend_a: str,
    backend_b: str,
    batch_rows: int,
    calls: int,
    agreement_min: float | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Run the models or engines A and B on the same rows; B is the reference.

    A row's label is the one that the model answers; where it answers none the index of the largest value of
    its probabilities, or of its first output, and of a single value the sign (0 has a label of its own).
    Times are of a whole batch, taken in turns. --dim is for each file that has the axis. Exit code 1 where
    labels agree less than --agreement-min asks, where no row can be compared because all are NaN or infinite,
    or where the capture in --data has gaps or other faults and --salvage is not given.
    """
    import msgspec
    from rich.console import Console

    try:
        source = _Source(data, rows, seed, salvage)
        sides = _Side(a, backend_a, dims), _Side(b, backend_b, dims)
        comparison, samples, capture = _compare(sides, source, batch_rows, calls)
        if plot is not None:
            _draw(plot, comparison, samples)
    except BenchError as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)
    if as_json:
        told: dict[str, object] = msgspec.structs.asdict(comparison)
        told |= capture.summary() if capture is not None else {}
        click.echo(msgspec.json.format(msgspec.json.encode(told)).decode())
    else:
        _show(Console(highlight=False), comparison, samples)
        for line in capture.shown() if capture is not None else ():
            click.echo(line)
    _end_where_it_fails(comparison, agreement_min)
    if capture is not None and capture.faults and not salvage:
        click.echo(
            f"sigd: {data}: {capture.faults}: rows are missing or wrong from there on{SALVAGE}", err=True
        )
        sys.exit(1)


def _end_where_it_fails(comparison: Comparison, agreement_min: float | None) -> None:
    if comparison.label_agreement is None:
        click.echo(
            f"sigd: nothing could be compared: in each of the {comparison.rows:,} rows one side or both"
            " answer NaN or infinity:"
            " give rows that the models will really see with --data",
            err=True,
        )
        sys.exit(1)
    if agreement_min is not None and comparison.label_agreement < agreement_min:
        click.echo(
            f"sigd: labels agree for {comparison.label_agreement:.4%} of rows, expected at least"
            f" {agreement_min:.4%}",
            err=True,
        )
        sys.exit(1)


class _Source(NamedTuple):
    """Where the rows come from: a file, or a seed where there is none."""

    data: Path | None
    rows_max: int
    seed: int
    salvage: bool


class _Side(NamedTuple):
    """A file, what runs it, and the sizes of free axes, of which it may have some."""

    path: Path
    backend: str
    sizes: dict[str, int]


def _compare(
    sides: tuple[_Side, _Side], source: _Source, batch_rows: int, calls: int
) -> tuple[Comparison, Samples, CaptureReader | None]:
    """The figures, what they are drawn from, and what has read the capture, where the rows come from one."""
    from contextlib import closing

    from sigd.bench.comparison import check_comparable
    from sigd.bench.comparison import compare as measure
    from sigd.models.rows import RowsRead, read_rows, seeded_rows

    data = source.data
    a, b = sides
    with closing(_open(a, batch_rows)) as backend_a, closing(_open(b, batch_rows)) as backend_b:
        _check_sizes_used(a.sizes, backend_a, backend_b)
        check_comparable(backend_a, backend_b)
        spec = backend_b.spec
        read = (
            RowsRead(seeded_rows(spec, source.rows_max, source.seed), None)
            if data is None
            else read_rows(data, spec, source.rows_max, salvage=source.salvage)
        )
        named = f"standard normal, seed {source.seed}" if data is None else str(data)
        return (*measure(backend_a, backend_b, read.rows, named, batch_rows, calls), read.capture)


def _check_sizes_used(sizes: dict[str, int], a: Backend, b: Backend) -> None:
    """Raise BadRequest where a size is of an axis that neither file has."""
    for key, size in sizes.items():
        if key not in a.spec.sizes and key not in b.spec.sizes:
            raise BadRequest(
                f"--dim {key}={size}: neither {a.spec.path} nor {b.spec.path} has an axis of that name:"
                " sigd inspect FILE shows the axes"
            )


def _open(side: _Side, batch_rows: int) -> Backend:
    from sigd.models.engine import ENGINE_SUFFIX, read_manifest
    from sigd.models.registry import open_backend

    path = side.path
    engine = path.suffix == ENGINE_SUFFIX
    batch_rows_max = read_manifest(path).batch_rows_max if engine else max(_BATCH_ROWS_MAX, batch_rows)
    try:
        reading = ReadOptions(side.sizes, sizes_of_another=True)
        backend = open_backend(path, side.backend, batch_rows_max, name="compared", reading=reading)
    except ValueError as error:
        raise BadRequest(str(error)) from error
    if backend.batch_rows_max < batch_rows:
        backend.close()
        raise BadRequest(
            f"{path}: takes at most {backend.batch_rows_max} rows in a batch, {batch_rows} were asked for:"
            " give --batch"
            f" {backend.batch_rows_max} at most"
        )
    return backend


def _draw(path: Path, comparison: Comparison, samples: Samples) -> None:
    from sigd.bench.comparison_plot import svg

    write_whole(path, svg(comparison, samples).encode())


def _show(console: Console, comparison: Comparison, samples: Samples) -> None:
    from rich.table import Table

    from sigd.bench.comparison_plot import error_bars

    for name, side in (("a", comparison.a), ("b", comparison.b)):
        console.print(
            f"{name}  {side.file}, {side.backend}, sha256 {side.sha256[:16]}", markup=False, soft_wrap=True
        )
    agreed = (
        "cannot be compared in any"
        if comparison.label_agreement is None
        else (f"agree for {comparison.label_agreement:.4%}")
    )
    cosine = "" if comparison.cosine is None else f"; cosine {comparison.cosine:.9f}"
    console.print(
        f"labels {agreed} of {comparison.rows:,} rows ({comparison.data});"
        f" {comparison.bit_equal:.2%} of outputs are equal to the bit{cosine}",
        markup=False,
        soft_wrap=True,
    )
    for name, count in (("a", comparison.not_finite_a), ("b", comparison.not_finite_b)):
        if count:
            console.print(f"{name} answers NaN or infinity in {count:,} rows, which the errors leave out")
    if comparison.errors:
        errors = Table("outputs within", *(f"{quantile.share:.1%}" for quantile in comparison.errors))
        errors.add_row("|a - b|", *(f"{quantile.abs_error:.3g}" for quantile in comparison.errors))
        errors.add_row("relative to b", *(f"{quantile.rel_error:.3g}" for quantile in comparison.errors))
        console.print(errors)
        for bar in error_bars(samples.abs_errors):
            console.print(f"{bar.label:>14}  {'█' * bar.cells} {bar.count:,}")
    times = Table(f"us a call of {comparison.batch_rows}", "p50", "p99", "max")
    for name, side in (("a", comparison.a), ("b", comparison.b)):
        times.add_row(name, f"{side.p50_us:.1f}", f"{side.p99_us:.1f}", f"{side.max_us:.1f}")
    console.print(times)
    console.print(
        f"a takes {comparison.latency_ratio:.2f} times as long as b (medians of {comparison.calls:,} calls in"
        " turns)"
    )
