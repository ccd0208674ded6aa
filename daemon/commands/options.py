"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Sequence

import click


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
