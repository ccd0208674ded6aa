"""`sigd replay` of a flight recording: the same requests through a model again, and every answer held to the
bit."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from sigd.bench.errors import BadRequest
from sigd.bench.market.rerun import Compared, Rerun, batches, nothing_to_run
from sigd.models.backend import Backend
from sigd.models.errors import ModelRefused
from sigd.models.processor import instruction_sets
from sigd.models.reading import HistoryOptions, ReadOptions
from sigd.models.registry import AUTO, open_backend
from sigd.wire.errors import NoRecording, RecordingDamaged
from sigd.wire.recording.reader import Damage, Recording, SessionFacts, Unread, open_recordings


class Report(msgspec.Struct, kw_only=True):
    """What `sigd replay RECORDING --json` prints.

    Attributes:
        requests: in the recordings.
        by_status: their answers.
        replayed: those that were run again.
        left_out: those that were not, by the reason.
        not_recorded: answered, but missing between those that are there: the recorder had no room for them.
        unreadable: missing where the recording is damaged, as far as their number is known.
        models: one for each that answered.
        made_elsewhere: what differs between then and now besides the model, and may explain a difference.
        damage: what could not be read.
        passed: what the exit code says: every answer of the recordings was run again, where it can be, and is
            what it may be. Never where something could not be read.
    """

    recordings: list[str]
    requests: int
    by_status: dict[str, int]
    replayed: int
    left_out: dict[str, int]
    not_recorded: int
    unreadable: int
    models: list[Compared]
    made_elsewhere: list[str]
    damage: list[str]
    elapsed_s: float
    passed: bool


def replay_recording(
    path: Path,
    *,
    model: Path | None,
    sizes: dict[str, int],
    backend: str | None,
    limit: int | None,
    tolerance: float | None,
    salvage: bool,
    as_json: bool,
) -> None:
    """Run it, show the outcome, and end with 1 where an answer differs by more than it may.

    Raises:
        BadRequest: it cannot be read, is damaged, or its model is not to be had.
    """
    try:
        recordings = open_recordings(path)
    except (NoRecording, RecordingDamaged) as error:
        raise BadRequest(str(error)) from None
    began_s = time.monotonic()
    damage: list[str] = []
    with ExitStack() as stack:
        rerun = Rerun(_Models(model, sizes, backend, stack).open, limit)
        progress = stack.enter_context(_progress(quiet=as_json))
        for recording in recordings:
            _run(recording, rerun, damage, progress, salvage=salvage)
    # Of a damaged recording the report says what is so, be it that nothing can be read.
    if not rerun.replayed and not damage:
        raise nothing_to_run(rerun)
    models = list(rerun.compared.values())
    report = Report(
        recordings=[recording.name for recording in recordings],
        requests=rerun.requests,
        by_status=rerun.by_status,
        replayed=rerun.replayed,
        left_out=rerun.left_out,
        not_recorded=rerun.not_recorded,
        unreadable=rerun.unreadable,
        models=models,
        made_elsewhere=_made_elsewhere(recordings),
        damage=damage,
        elapsed_s=time.monotonic() - began_s,
        passed=not damage and all(compared.passed(tolerance) for compared in models),
    )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        _show(report, tolerance)
    if not report.passed:
        sys.exit(1)


class _Models:
    """Opens the models of a recording, each once."""

    def __init__(
        self, model: Path | None, sizes: dict[str, int], backend: str | None, stack: ExitStack
    ) -> None:
        self._model = model
        self._sizes = sizes
        self._backend = backend
        self._stack = stack
        self._open: dict[tuple[str, str, str, int, str], Backend] = {}

    def open(self, facts: SessionFacts) -> Backend:
        """What answers now in the place of what answered then, padding its batches as that did."""
        path = self._model or Path(facts.path)
        name = self._backend or (AUTO if self._model else facts.backend)
        history = _history(facts, own=self._model is None)
        key = (str(path), "" if self._model else facts.sha256, name, facts.batch_rows_max, repr(history))
        if key not in self._open:
            if self._model is None and not path.exists():
                raise BadRequest(
                    f"{path}: the model that was recorded is not there any more: give --model FILE, the same"
                    " file"
                    f" (sha256 {facts.sha256}) or another one to compare with"
                )
            try:
                reading = ReadOptions({**facts.sizes, **self._sizes}, history=history, sizes_of_another=True)
                opened = open_backend(path, name, facts.batch_rows_max, reading=reading)
            except ValueError as error:
                raise BadRequest(str(error)) from None
            except ModelRefused as error:
                raise BadRequest(
                    f"{error}; the recording is of {facts.model!r}, sha256 {facts.sha256}"
                ) from None
            self._stack.callback(opened.close)
            unused = [key for key in self._sizes if key not in opened.spec.sizes]
            if unused:
                raise BadRequest(
                    f"{path}: --dim {unused[0]}={self._sizes[unused[0]]} names no axis of it: sigd inspect"
                    f" {path} shows the axes"
                )
            if self._model is None and opened.spec.sha256.hex() != facts.sha256:
                raise BadRequest(
                    f"{path}: this is not the model that was recorded any more (sha256"
                    f" {opened.spec.sha256.hex()},"
                    f" recorded was {facts.sha256}): give --model FILE, the file as it was, or this one to"
                    " compare"
                )
            self._open[key] = opened
        return self._open[key]


def _history(facts: SessionFacts, *, own: bool) -> HistoryOptions | None:
    """As the model was read whose history the daemon kept.

    Args:
        own: whether it is that model. Another one may call its states otherwise.
    """
    if facts.states:
        return HistoryOptions(states=facts.states if own else {})
    return HistoryOptions(time_axis=facts.time_axis) if facts.history_steps else None


def _run(recording: Recording, rerun: Rerun, damage: list[str], progress: Progress, *, salvage: bool) -> None:
    total = sum(segment.size for segment in recording.segments)
    task = progress.add_task(recording.name, total=total, requests=0)
    rerun.start_recording()
    before = rerun.requests
    for batch in batches(recording.read()):
        if isinstance(batch, Damage):
            if not salvage:
                raise BadRequest(
                    f"{batch}. {rerun.requests - before:,} requests before it are whole: --salvage replays"
                    " what is"
                )
            damage.append(str(batch))
            rerun.on_damage()
            continue
        if isinstance(batch, Unread):
            rerun.miss(batch)
            continue
        rerun.run(batch)
        count_bytes = sum(part.requests.nbytes + part.responses.nbytes for part in batch)
        progress.update(task, advance=count_bytes, requests=rerun.requests)
    progress.update(task, completed=total)


def _progress(*, quiet: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[requests]:,} requests"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )


def _made_elsewhere(recordings: list[Recording]) -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    differences: dict[str, None] = {}
    for recording in recordings:
        about = recording.about
        if about is None:
            continue
        if about.processor != (here := instruction_sets()):
            differences[f"recorded on {about.processor}, replayed on {here}"] = None
        for package, recorded in about.runtimes.items():
            try:
                now = version(package)
            except PackageNotFoundError:
                now = "none"
            if now != recorded:
                differences[f"recorded with {package} {recorded}, replayed with {now}"] = None
    return list(differences)


def _show(report: Report, tolerance: float | None) -> None:
    say: Callable[[str], None] = partial(Console(highlight=False, soft_wrap=True, markup=False).print)
    statuses = ", ".join(f"{name} {count:,}" for name, count in report.by_status.items() if count)
    say(f"recorded   {report.requests:,} requests: {statuses}")
    if report.not_recorded:
        say(
            f"           {report.not_recorded:,} more were answered and not recorded: the recorder had no"
            " room for them"
        )
    if report.unreadable:
        say(f"           {report.unreadable:,} more are missing where the recording is damaged")
    for name in report.damage:
        say(f"damaged    {name}")
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in report.left_out.items())
    say(
        f"replayed   {report.replayed:,} in {report.elapsed_s:.1f} s"
        + (f"; left out: {left_out}" if left_out else "")
    )
    for compared in report.models:
        _show_model(compared, tolerance, say)
    if not report.passed:
        for difference in report.made_elsewhere:
            say(f"note       {difference}")
    say(_verdict(report, tolerance))


def _verdict(report: Report, tolerance: float | None) -> str:
    if report.passed:
        return "passed"
    if all(compared.passed(tolerance) for compared in report.models):
        missing = f"at least {report.unreadable:,} requests" if report.unreadable else "what is damaged"
        return f"NOT WHOLE: the {report.replayed:,} that could be run passed, {missing} could not be read"
    return "FAILED"


def _show_model(compared: Compared, tolerance: float | None, say: Callable[[str], None]) -> None:
    which = "the same model" if compared.same_model else "ANOTHER model"
    say(
        f"model      {compared.model}, generation {compared.generation}, sha256"
        f" {compared.recorded_sha256[:16]}; now"
        f" {compared.file} on {compared.backend}: {which}, sha256 {compared.sha256[:16]}"
    )
    say(f"           bit for bit equal: {compared.equal:,} of {compared.requests:,}")
    if compared.incomplete:
        say(
            f"           {compared.incomplete:,} of {compared.batches:,} batches are recorded only in part:"
            " their rows"
            " may have had another place"
        )
    if compared.equal < compared.requests:
        bound = "" if tolerance is None else f" (tolerance {tolerance:g})"
        say(
            f"           absolute difference of outputs: max {compared.max_difference:.6g}{bound}, mean"
            f" {compared.mean_difference:.6g}; the decision changed in {compared.decisions_changed:,}"
        )
    first = compared.first_difference
    if first is not None:
        say(
            f"           first: request {first.request:,} of {first.client!r}, sequence {first.sequence}: was"
            f" {first.recorded}, is {first.replayed}"
        )
