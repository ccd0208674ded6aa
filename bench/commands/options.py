"""Options that several of these commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from sigd.wire.status import Transport

SPEED_MIN: Final = 0.001
"""Of a capture: at less a day of it takes longer than three years."""
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def transport_option(help_text: str = "As sigd bench has it.") -> Decorator:
    """`--transport`; `transport_of` says what is meant."""
    return click.option(
        "--transport",
        type=click.Choice(["stream", "uds", "shm"]),
        default="stream",
        show_default=True,
        help=help_text,
    )


def html_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--html`, whose files `write_report` writes."""
    return click.option(
        "--html",
        "html_file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Write a report as one HTML file, with the figures as .json and .hgrm beside it.",
    )(function)


def transport_of(name: str) -> Transport:
    """What `--transport` names."""
    from sigd.wire.status import Transport

    return Transport.SHARED_MEMORY if name == "shm" else Transport.STREAM


def idle_option(help_text: str | None, default: str | None) -> Decorator:
    """`--idle` of the daemon; without a default the daemon's own."""
    return click.option(
        "--idle",
        type=click.Choice(["spin", "backoff", "block"]),
        default=default,
        show_default=default is not None,
        help=help_text,
    )
