"""Options that several of these commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sigd.wire.status import Transport

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
