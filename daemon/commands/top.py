"""`sigd top`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.live import Live

from sigd.daemon.admin.client import ask_status
from sigd.daemon.admin.messages import Status
from sigd.daemon.config.config import admin_path_of, running_socket_path
from sigd.daemon.config.flags import FiniteRange, WholeRange
from sigd.daemon.errors import MissingDependency
from sigd.daemon.top.interval import Interval, between
from sigd.daemon.top.keys import Keys
from sigd.daemon.top.view import Screen, plain

_PATIENCE_S = 2.0


@click.command(
    epilog="""\b
Examples:
  sigd top
  sigd top --socket /run/sigd/sigd.sock --interval 5
  sigd top --plain --count 60 >> sigd.log     one line a second, for a minute
  sigd top --json --count 1 | jq '.models[0].total.p99_us'"""
)
@click.option("--socket", type=click.Path(path_type=Path), help="The daemon's socket.")
@click.option(
    "--admin-socket", type=click.Path(path_type=Path), help="Its admin socket, where it is elsewhere."
)
@click.option(
    "--interval",
    "every_s",
    type=FiniteRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--count", type=WholeRange(min=1), help="Leave after so many looks.")
@click.option(
    "--plain", "is_plain", is_flag=True, help="A line an interval; also where there is no terminal."
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object an interval.")
def top(
    socket: Path | None,
    admin_socket: Path | None,
    every_s: float,
    count: int | None,
    is_plain: bool,
    as_json: bool,
) -> None:
    """Watch a running daemon: rates, percentiles of the last interval, clients, the loop's health.

    A daemon that is started anew meanwhile is followed.
    """
    path = admin_socket or admin_path_of(socket or running_socket_path())
    # A mistaken path is told at once; only later is a daemon that is away waited for.
    first = ask_status(path, _PATIENCE_S)
    if as_json or is_plain or not sys.stdout.isatty():
        _print_lines(path, first, every_s, count, as_json=as_json)
    else:
        _draw(path, first, every_s, count)


def _print_lines(path: Path, first: Status, every_s: float, count: int | None, *, as_json: bool) -> None:
    with Keys() as keys:
        for told in looks(path, first, every_s, count, keys):
            if isinstance(told, MissingDependency):
                click.echo(f"sigd: {told}", err=True)
            else:
                click.echo(msgspec.json.encode(told).decode() if as_json else plain(told))


def _draw(path: Path, first: Status, every_s: float, count: int | None) -> None:
    console = Console(highlight=False)
    screen = Screen(str(path), every_s)
    screen.show(between(None, first))
    with Keys() as keys, Live(screen, console=console, screen=True, auto_refresh=False) as live:
        for told in looks(path, first, every_s, count, keys):
            if isinstance(told, MissingDependency):
                screen.silent(str(told))
            else:
                screen.show(told)
            live.refresh()


def looks(
    path: Path, before: Status, every_s: float, count: int | None, keys: Keys
) -> Iterator[Interval | MissingDependency]:
    """Each interval as it ends, or why there was no answer, until the count is reached or a key is pressed.

    Raises:
        MissingDependency: there was no answer to the last look either.
    """
    due_s = time.monotonic()
    while count is None or count > 0:
        due_s = max(due_s + every_s, time.monotonic())
        if keys.leave_within(due_s):
            return
        count = None if count is None else count - 1
        try:
            after = ask_status(path, _PATIENCE_S)
        except MissingDependency as silence:
            if count == 0:
                raise
            yield silence
            continue
        yield between(before, after)
        before = after
