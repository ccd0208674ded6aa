"""Types of command-line values that click does not have, and options that several commands have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import click

FINITE_MAX: Final = 1e9
"""Of a flag without a bound of its own: seconds, microseconds and requests a second beyond it overflow int64
ns."""
WHOLE_MAX: Final = 2**31 - 1
"""The same for whole numbers: counts and numbers of cores."""


class FiniteRange(click.FloatRange):
    """A finite number within a range. click.FloatRange takes inf, nan past any bound, and 1e300.

    Without a `max` the largest is FINITE_MAX. What has to be above 0 is at least 1 / FINITE_MAX.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        if self.max is None and number > FINITE_MAX:
            self.fail(f"{value} is too large, expected at most {FINITE_MAX:g}.", param, ctx)
        if self.min == 0 and self.min_open and number < 1 / FINITE_MAX:
            self.fail(f"{value} is too small, expected at least {1 / FINITE_MAX:g}.", param, ctx)
        return number


class WholeRange(click.IntRange):
    """A whole number within a range; without a `max` the largest is WHOLE_MAX. click.IntRange takes
    10**30."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if self.max is None and number > WHOLE_MAX:
            self.fail(f"{value} is too large, expected at most {WHOLE_MAX:,}.", param, ctx)
        return number


SEED: Final = WholeRange(0, 2**63 - 1)
"""What a generator of random numbers begins with."""


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
