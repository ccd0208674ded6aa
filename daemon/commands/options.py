"""Options that several commands have, and what they do with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from sigd.daemon.errors import MissingDependency


def _sizes(context: click.Context, option: click.Parameter, values: Sequence[str]) -> dict[str, int]:
    """Each NAME=SIZE of the command line."""
    sizes = {}
    for value in values:
        name, found, size = value.rpartition("=")
        if not found or not name or not size.isdecimal() or not int(size):
            raise click.BadParameter(f"{value!r} is no NAME=SIZE, expected one as in --dim T=50")
        sizes[name] = int(size)
    return sizes


dim_option = click.option(
    "--dim",
    "dims",
    multiple=True,
    callback=_sizes,
    metavar="NAME=SIZE",
    help="The size of an axis that the model file leaves free: T=50, or INPUT.AXIS=50 for one without a name."
    " Repeatable.",
)


def write_output(path: Path, content: bytes) -> None:
    """Write what --output asks for: a file that is there whole or not at all.

    Raises:
        MissingDependency: the disk is full, or the folder may not be written to.
    """
    from sigd.models.engine import EngineNotWritten, write_whole

    if path.exists() and not path.is_file():
        # A pipe or a device, which has to stay one; what the kernel says of it is told by the command line.
        path.write_bytes(content)
        return
    try:
        write_whole(path, content)
    except EngineNotWritten as error:
        raise MissingDependency(str(error)) from error
