"""`sigd build-engine`."""

from __future__ import annotations

import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sigd.daemon.config.flags import SEED, FiniteRange, WholeRange, dim_option
from sigd.daemon.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    from sigd.models.build.runtimes import Choice
    from sigd.models.manifest import Manifest

_SIZE: Final = re.compile(r"(\d+)\s*(?:([KMG])(?:i?B)?)?", re.IGNORECASE)
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_EXIT_INTERRUPTED: Final = 128 + signal.SIGINT


def _bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A size: 1048576, 512M, 2GiB."""
    if value is None:
        return None
    match = _SIZE.fullmatch(value.strip())
    if match is None or not int(match[1]):
        raise click.BadParameter(f"{value!r} is not a size, expected for example 268435456, 256M or 1GiB")
    return int(match[1]) * _UNITS[(match[2] or "").upper()]


def _rows(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Batch sizes with commas between them."""
    try:
        return tuple(int(size) for size in value.split(",")) if value is not None else ()
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of sizes, expected for example 1,2,4,8") from None


@click.command(
    "build-engine",
    epilog="""\b
Examples:
  sigd build-engine m.onnx                                   for what this machine can run
  sigd build-engine m.onnx --precision fp16 --batch-max 16   smaller, for batches 1, 2, 4, 8, 16
  sigd build-engine m.onnx --runtime tensorrt-rtx --compute-capability 8.6
                                                             for an RTX 3090, without any GPU
  sigd build-engine m.onnx --precision int8 --calibration rows.npy --agreement-min 0.99""",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Where the engine goes.  [default: MODEL.engine]"
)
@click.option(
    "--runtime",
    type=click.Choice(["auto", "tensorrt", "tensorrt-rtx", "onnxruntime", "native"]),
    default="auto",
    show_default=True,
    help="What is to run it; auto takes what this machine can run.",
)
@click.option(
    "--compute-capability", metavar="X.Y", help="The GPU that it is for.  [default: the one that is here]"
)
@click.option("--batch-min", type=WholeRange(min=1), help="One profile for any batch from here ...")
@click.option("--batch-opt", type=WholeRange(min=1), help="... fastest here ...")
@click.option(
    "--batch-max",
    type=WholeRange(min=1),
    help="... to here. Alone: the buckets 1, 2, 4, ... up to it, each built for itself.  [default: 64]",
)
@click.option(
    "--batch-buckets", metavar="ROWS,...", callback=_rows, help="Exactly these batches, for example 1,8,64."
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "fp16", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="Arithmetic inside, of native engines the weights alone; input and output stay float32.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Rows that it will really see: .npy, or a capture (.gz). int8 needs them; accuracy is measured on"
    " them.",
)
@click.option("--salvage", is_flag=True, help="Take what is whole of a damaged capture.")
@click.option(
    "--calibration-method",
    type=click.Choice(["minmax", "percentile", "entropy"]),
    default="minmax",
    show_default=True,
    help="How int8 ranges follow from the rows.",
)
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path),
    help="Kernel timings of TensorRT: read, and written back.",
)
@click.option(
    "--optimization-level",
    type=WholeRange(0, 5),
    help="The builder's effort. For ONNX Runtime 2 (the default) fits every processor, 3 this one only.",
)
@click.option(
    "--max-workspace",
    metavar="SIZE",
    callback=_bytes,
    help="GPU memory that kernels may use, for example 256M.",
)
@click.option(
    "--agreement-min",
    type=FiniteRange(0, 1),
    help="Write nothing, and exit 1, where labels agree with the oracle's for fewer rows (0.99: 99%).",
)
@dim_option
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Of the rows drawn to measure accuracy on.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def build_engine(
    model: Path,
    output: Path | None,
    batch_min: int | None,
    batch_opt: int | None,
    batch_max: int | None,
    batch_buckets: tuple[int, ...],
    max_workspace: int | None,
    dims: dict[str, int],
    as_json: bool,
    **options: Any,
) -> None:
    """Build MODEL, an ONNX file, into an engine that `sigd serve` loads, with its manifest beside it.

    The manifest says what the engine is and how far its answers lie from the oracle's; an engine that does
    not fit a machine is refused there, with the command that builds it again. Ctrl-C leaves what was there
    before.
    """
    from sigd.models.build.pipeline import AccuracyTooLow
    from sigd.models.build.pipeline import build_engine as build
    from sigd.models.build.request import Batches, BuildRequest
    from sigd.models.build.runtimes import choose_runtime, this_machine
    from sigd.models.engine import EngineNotWritten
    from sigd.models.manifest import encode_manifest

    console = Console(stderr=True, highlight=False)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        request = BuildRequest(
            model=model,
            engine=output or model.parent / f"{model.stem or 'model'}.engine",
            batches=Batches(
                rows_min=batch_min, rows_opt=batch_opt, rows_max=batch_max, buckets=batch_buckets
            ),
            workspace_bytes_max=max_workspace,
            sizes=dims,
            **options,
        )
        machine = this_machine()
        choice = choose_runtime(request, machine)
        _say(console, choice)
        request = replace(request, runtime=choice.runtime)
        with _bars(console) as bars:
            manifest = build(request, _Bars(bars), machine)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except EngineNotWritten as error:
        raise MissingDependency(str(error)) from error
    except AccuracyTooLow as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("sigd: cancelled; nothing was written", err=True)
        sys.exit(_EXIT_INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)
    if as_json:
        click.echo(encode_manifest(manifest).decode(), nl=False)
    else:
        _summarise(request.engine, manifest)


def _say(console: Console, choice: Choice) -> None:
    console.print(f"building for {choice.runtime}: {choice.why}", markup=False, soft_wrap=True)


def _summarise(engine: Path, manifest: Manifest) -> None:
    from sigd.models.accuracy import shown
    from sigd.models.manifest import manifest_path
    from sigd.models.market.faults import fault_lines

    target = manifest.target.compute_capability
    batches = ", ".join(
        str(p.rows_max)
        if p.rows_min == p.rows_max
        else f"{p.rows_min} to {p.rows_max} (best at {p.rows_opt})"
        for p in manifest.profiles
    )
    click.echo(
        f"{engine}: {manifest.plan.size_bytes:,} bytes, {manifest.runtime} {manifest.runtime_version},"
        f" {manifest.precision}{f', compute capability {target}' if target else ''}, batches {batches},"
        f" in {manifest.build_seconds:.2f} s"
    )
    for line in fault_lines(manifest.capture_faults, manifest.first_capture_faults):
        click.echo(line)
    click.echo(f"accuracy of the engine: {shown(manifest.accuracy, manifest.output_columns)}")
    if manifest.runtime != "native":
        graph = shown(manifest.conversion_accuracy, manifest.output_columns)
        click.echo(f"accuracy of its {manifest.precision} graph: {graph}")
    click.echo(f"manifest: {manifest_path(engine)}")


def _terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a build as Ctrl-C does, so that it leaves nothing behind either."""
    sys.exit(128 + number)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class _Bars:
    """A bar for each phase that is under way, nested by indentation; see `BuildProgress`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open: list[tuple[str, TaskID]] = []

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        """A new bar below its parent's."""
        indent = "  " * len(self._open)
        self._open.append((name, self._progress.add_task(f"{indent}{name}", total=steps)))

    def step_done(self, name: str, step: int) -> None:
        """One step further."""
        task = self._latest(name)
        if task is not None:
            self._progress.update(task, completed=step + 1)

    def phase_finished(self, name: str) -> None:
        """Its bar goes."""
        task = self._latest(name)
        if task is not None:
            self._open.remove((name, task))
            self._progress.remove_task(task)

    def _latest(self, name: str) -> TaskID | None:
        return next((task for open_name, task in reversed(self._open) if open_name == name), None)
