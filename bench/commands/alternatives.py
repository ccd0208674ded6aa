"""`sigd bench compare`, also `make bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sigd.bench.commands.options import html_option
from sigd.bench.errors import BadRequest, BenchError
from sigd.bench.files import write_whole
from sigd.daemon.config.flags import SEED, FiniteRange, WholeRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sigd.bench.alternatives.contenders import Contender
    from sigd.bench.alternatives.run import Asked


@click.command(
    "compare",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  sigd bench compare --prepare             install the alternatives, once, into an environment of their own
  sigd bench compare                       the model that ships with sigd beside all of them
  sigd bench compare --only onnxruntime-in-process --only fastapi
  sigd bench compare --model mlp_295k --model gbt_a --html compare.html
  sigd bench compare --capture btcusdt.gz  the arrivals of a real market as well
  sigd bench compare --model mlp.onnx --model trees.onnx --trees trees.txt --json compare.json

\b
Every contender answers the same rows on the same schedule; each answer is compared with the oracle's. Latency
counts from when a request was due. Servers get all cores but the load generator's, sigd one.
Exit codes: 0 every bar was kept; 1 one was missed; 4 inconclusive: the machine was disturbed; 2 wrong usage
or input; 3 the environment lacks something, for example a C++ compiler.""",
)
@click.option("--prepare", is_flag=True, help="Only install the alternatives (from PyPI, 2 GB).")
@click.option("--list", "list_them", is_flag=True, help="Only list the contenders and their configuration.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="FILE|NAME",
    help="ONNX model, or the name of one that sigd zoo makes; may be given again.  [default: the one that"
    " ships with sigd]",
)
@click.option(
    "--trees",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="The same model as a LightGBM file, for the last --model.",
)
@click.option("--only", multiple=True, metavar="NAME", help="Measure these beside sigd; may be given again.")
@click.option(
    "--rate",
    "rates",
    type=FiniteRange(0, min_open=True),
    multiple=True,
    help="Requests a second, Poisson arrivals; may be given again.  [default: 500 and 5000]",
)
@click.option(
    "--burst",
    "bursts",
    type=WholeRange(2, 100),
    multiple=True,
    help="Requests at once; may be given again.  [default: 20 and 100]",
)
@click.option(
    "--capture",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Also the arrivals of this market capture: as they were, and as fast as the slowest survives.",
)
@click.option("--salvage", is_flag=True, help="Take what is whole of a damaged capture.")
@click.option("--rounds", type=WholeRange(1), default=3, show_default=True, help="Of all contenders.")
@click.option(
    "--seconds",
    type=FiniteRange(0, min_open=True),
    default=0.5,
    show_default=True,
    help="Of each contender under each load in a round.",
)
@click.option("--seed", type=SEED, default=1, show_default=True, help="Of rows and arrivals.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write the result; - prints it.",
)
@html_option
def main(
    prepare: bool, list_them: bool, json_file: Path | None, html_file: Path | None, **options: object
) -> None:
    """Measure sigd beside what teams use instead, in turns, in one run."""
    try:
        sys.exit(_prepare() if prepare else _list() if list_them else _compare(json_file, html_file, options))
    except BenchError as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)


def _prepare() -> int:
    from sigd.bench.alternatives.environment import prepare

    prepare(click.echo)
    return 0


def _list() -> int:
    from sigd.bench.alternatives.contenders import CONTENDERS

    for contender in CONTENDERS:
        click.echo(f"{contender.name}: {contender.title}\n    {contender.configuration}")
    return 0


def _compare(json_file: Path | None, html_file: Path | None, options: dict[str, object]) -> int:
    import msgspec
    from rich.console import Console

    from sigd.bench.alternatives.run import compare
    from sigd.bench.alternatives.table import render
    from sigd.bench.native import build as native
    from sigd.bench.verdict import named_by_verdict

    asked = asked_of(**options)  # type: ignore[arg-type]
    to_stdout = json_file is not None and str(json_file) == "-"
    console = Console(stderr=to_stdout, soft_wrap=True, highlight=False)
    console.width = max(console.width, 120)
    found = compare(asked, native.build(), lambda line: console.print(line, style="dim", markup=False))
    render(found, console)
    written = msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"
    if to_stdout:
        click.echo(written.decode(), nl=False)
    elif json_file is not None:
        file = named_by_verdict(json_file, found.exit_code)
        write_whole(file, written)
        console.print(f"wrote    {file}")
    if html_file is not None:
        from sigd.bench.page.latency_page import comparison_page, hgrms
        from sigd.bench.page.write import write_report

        named = named_by_verdict(html_file, found.exit_code)
        for file in write_report(named, comparison_page(found), written, hgrms(found)):
            console.print(f"wrote    {file}")
    return found.exit_code


def asked_of(
    *,
    models: Sequence[str],
    trees: Sequence[Path],
    only: Sequence[str],
    rates: tuple[float, ...],
    bursts: tuple[int, ...],
    rounds: int,
    seconds: float,
    seed: int,
    capture: Path | None,
    salvage: bool,
) -> Asked:
    """The options as what to compare.

    Raises:
        BadRequest: they contradict each other.
    """
    from sigd.bench.alternatives.capture import read_arrivals
    from sigd.bench.alternatives.loads import loads
    from sigd.bench.alternatives.run import Asked
    from sigd.models.zoo import default_model_path

    if salvage and capture is None:
        raise BadRequest("without --capture there is nothing to salvage: leave out --salvage")
    files = [model_file(model) for model in models] or [default_model_path()]
    if len(trees) > 1:
        raise BadRequest(f"--trees was given {len(trees)} times, expected once: it is for the last --model")
    pairs: list[tuple[Path, Path | None]] = [(file, None) for file in files]
    if trees:
        pairs[-1] = (files[-1], trees[0])
    return Asked(
        models=pairs,
        contenders=_chosen(only),
        loads=loads(rates or (500.0, 5000.0), bursts or (20, 100)),
        rounds=rounds,
        seconds=seconds,
        seed=seed,
        arrivals=None if capture is None else read_arrivals(capture, salvage=salvage),
    )


def model_file(named: str) -> Path:
    """The file of that name, or the zoo's model, written to the cache.

    Raises:
        BadRequest: neither is there.
    """
    from sigd.bench.native.build import cache_folder
    from sigd.models.zoo import DEFAULT_MODEL, default_model_path
    from sigd.models.zoo.catalogue import ZOO, zoo_file

    path = Path(named)
    if path.is_file():
        return path
    if named == DEFAULT_MODEL:
        return default_model_path()
    if named not in ZOO:
        raise BadRequest(f"{named}: there is no such file, and sigd zoo makes only {', '.join(ZOO)}")
    made = cache_folder() / "zoo" / f"{named}.onnx"
    made.parent.mkdir(parents=True, exist_ok=True)
    write_whole(made, zoo_file(named))
    return made


def _chosen(only: Sequence[str]) -> list[Contender]:
    from sigd.bench.alternatives.contenders import CONTENDERS, Kind

    known = [contender.name for contender in CONTENDERS]
    for name in only:
        if name not in known:
            raise BadRequest(f"no contender is called {name!r}, expected one of {', '.join(known)}")
    return [
        contender
        for contender in CONTENDERS
        if not only or contender.name in only or contender.kind is Kind.SIGD
    ]
