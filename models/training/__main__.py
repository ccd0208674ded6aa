"""`python -m sigd.models.training`: train the shipped model anew."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from sigd.models.errors import ModelError
from sigd.models.market.errors import MarketError
from sigd.models.training.card import card, summary
from sigd.models.training.run import MODEL_NAME, Plan, train

TRAINING_CAPTURE = "usdm_btcusdt_*.gz"
TRANSFER_CAPTURES = ("usdm_ethusdt_*.gz", "spot_btcusdt_*.gz")

PLANNED_SAMPLES_S = 100_000
"""What the plan of the workstation asks of training."""
_WHERE = """\
Expected the raw Binance captures of 2024-08-08 from the examples of the public project nkaz001/hftbacktest
(examples/usdm/btcusdt_20240808.gz, examples/usdm/ethusdt_20240808.gz,
examples/spot/btcusdt_20240808.gz), saved as
usdm_btcusdt_20240808.gz, usdm_ethusdt_20240808.gz and spot_btcusdt_20240808.gz. Then either
  make train SIGD_DATA=FOLDER        (the folder that holds them)
  make train CAPTURE=FILE            (a capture of your own, alone)"""


_COLUMNS = (
    SpinnerColumn(),
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
)


class _Bars:
    """Progress as bars on standard error, so that standard output stays clean."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def stage(self, text: str, total: int) -> Callable[[int], None]:
        bar = self._bars.add_task(text, total=total or None)
        return lambda steps: self._bars.advance(bar, steps)


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(epilog="Example: python -m sigd.models.training --data ~/captures --out models/zoo")
@click.option("--capture", type=_FILE, help="Train on this capture.")
@click.option("--transfer", type=_FILE, multiple=True, help="Measure on this one too; may be repeated.")
@click.option(
    "--data",
    type=_FOLDER,
    envvar="SIGD_DATA",
    help="Folder to find captures in where none is named. Also from SIGD_DATA.",
)
@click.option("--out", type=_FOLDER, default=Path("out"), show_default=True, help="Folder to write to.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the model that is written.")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="How many seeds to fit, to show their spread.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="CPU threads; the weights' last bits depend on it.",
)
@click.option(
    "--device", default="cpu", show_default=True, help='Where to fit: "cpu", or a card as "cuda:1".'
)
@click.option("--json", "as_json", is_flag=True, help="Print all results as JSON.")
@click.option("--dry-run", is_flag=True, help="Say what would be trained on, and stop.")
def main(
    capture: Path | None,
    transfer: tuple[Path, ...],
    data: Path | None,
    out: Path,
    seed: int,
    seeds: int,
    threads: int,
    device: str,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Train the order-book model (64-256-256-3) on the first 70% of a capture and measure it on the rest.

    Writes lob-mlp.onnx and its card lob-mlp.md, which holds every figure of the run.
    """
    if capture is None:
        capture, transfer = _find(data, transfer)
    if dry_run:
        click.echo(f"training on {capture}, measuring on {', '.join(map(str, transfer)) or 'nothing else'}")
        return
    if importlib.util.find_spec("torch") is None:
        _fail(
            3, "training needs PyTorch, which is not installed: pip install 'sigd[train]', or run make train"
        )
    _prepare(device)
    plan = Plan(capture, transfer, out, seed, seeds, threads, device=device)
    try:
        with Progress(*_COLUMNS, console=Console(stderr=True)) as bars:
            report = train(plan, _Bars(bars))
    except (MarketError, ModelError) as error:
        _fail(2, str(error))
    (out / f"{MODEL_NAME}.md").write_text(card(report), encoding="utf-8")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        Console().print(summary(report))
        click.echo(throughput(report.samples_per_s, report.recipe.batch_rows, device))
        click.echo(f"wrote {out / MODEL_NAME}.onnx and {out / MODEL_NAME}.md")


def throughput(samples_per_s: float, batch_rows: int, device: str) -> str:
    """What was measured, beside what the plan of the workstation asks for (docs/workstation/README.md)."""
    return (
        f"{samples_per_s:,.0f} samples/s at a batch of {batch_rows:,} on {device}; the"
        f" workstation's plan asks for"
        f" {PLANNED_SAMPLES_S:,} ({samples_per_s / PLANNED_SAMPLES_S:.2f} times)"
    )


def _prepare(device: str) -> None:
    """End where the device cannot be had; else make its sums come out the same in every run."""
    # Read by cuBLAS when it is first used; PyTorch refuses to be deterministic without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        _fail(
            3,
            f"--device {device}: {cause}; PyTorch sees {torch.cuda.device_count()} cards here: name"
            f" one of them"
            " as cuda:N, or leave the device out to train on the CPU",
        )


def _find(data: Path | None, transfer: tuple[Path, ...]) -> tuple[Path, tuple[Path, ...]]:
    """The captures under a folder: the one to train on, and those to measure on."""
    if data is None:
        _fail(2, f"no capture named, and SIGD_DATA is not set.\n{_WHERE}")
    found = sorted(data.glob(f"**/{TRAINING_CAPTURE}"))
    if not found:
        _fail(2, f"no {TRAINING_CAPTURE} under {data}.\n{_WHERE}")
    if not transfer:
        transfer = tuple(
            path for pattern in TRANSFER_CAPTURES for path in sorted(found[0].parent.glob(pattern))
        )
    return found[0], transfer


def _fail(code: int, message: str) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main(prog_name="python -m sigd.models.training")
