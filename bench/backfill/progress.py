"""How far a run is, on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from sigd.bench.backfill.run import Progress

_LINE_INTERVAL_NS: Final = 10_000_000_000


@contextmanager
def shown(pieces: int, *, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A function that shows progress."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        bar = Bar(
            TextColumn("pieces"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
        )
        with bar:
            task = bar.add_task("pieces", total=pieces, text="")
            yield lambda progress: bar.update(
                task, completed=progress.pieces - progress.left, text=text_of(progress)
            )
    else:
        yield _Lines().show


class _Lines:
    def __init__(self) -> None:
        self._shown_ns = time.monotonic_ns()

    def show(self, progress: Progress) -> None:
        if time.monotonic_ns() - self._shown_ns >= _LINE_INTERVAL_NS:
            self._shown_ns = time.monotonic_ns()
            finished = progress.pieces - progress.left
            click.echo(f"{finished:,} of {progress.pieces:,} pieces, {text_of(progress)}", err=True)


def text_of(progress: Progress) -> str:
    """Rate, time left and failures, as "145,000 events/s, 0:02:10 left"."""
    parts = [f"{progress.events_per_s:,.0f} events/s"]
    if progress.left_s is not None:
        minutes, seconds = divmod(round(progress.left_s), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
    if progress.failed:
        parts.append(f"{len(progress.failed):,} failed")
    return ", ".join(parts)
