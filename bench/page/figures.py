"""Figures as SVG, drawn by matplotlib (the extra `report`). Their text and lines take the page's colours, so
that they are right on light and on dark ground."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sigd.bench.errors import MissingDependency

if TYPE_CHECKING:
    from collections.abc import Mapping

Float64Array = npt.NDArray[np.float64]

COLOURS: Final = (
    *("#3b82c4", "#d1495b", "#4f9d69", "#d98e04", "#8d6ab8", "#1e9c9c", "#b5547f", "#7a8290"),
    *("#a0742f", "#5a67d8", "#2f855a", "#c05621", "#805ad5", "#6b7280", "#319795", "#97266d"),
)
"""Told apart on white and on black."""
_INK: Final = "#010203"
_GRID: Final = "#040506"
_PERCENTILE_TICKS: Final = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)


@dataclass(frozen=True)
class Curve:
    """One line: x and y of its points."""

    name: str
    x: Sequence[float] | Float64Array
    y: Sequence[float] | Float64Array


@dataclass(frozen=True)
class Range:
    """One row: from p50 to p99 on a logarithmic axis; `strong` is drawn heavier."""

    name: str
    p50: float
    p99: float
    strong: bool = False


@dataclass(frozen=True)
class Stack:
    """One bar of parts, in order."""

    name: str
    parts: Mapping[str, float]


def percentiles(title: str, unit: str, curves: Sequence[Curve]) -> str:
    """Values over percentiles, as HdrHistogram plots them: each step to the right is a tenth of what is left.

    Args:
        curves: x is the quantile, from 0 to below 1.
    """
    with _axes(title, height=4.2) as (figure, axes):
        for number, curve in enumerate(curves):
            x = -np.log10(1 - np.asarray(curve.x, np.float64))
            axes.plot(x, curve.y, drawstyle="steps-post", lw=1.6, color=_colour(number), label=curve.name)
        right = max(float(-np.log10(1 - max(curve.x))) for curve in curves)
        ticks = [tick for tick in _PERCENTILE_TICKS if -np.log10(1 - tick / 100) <= right + 0.01]
        axes.set_xticks([-np.log10(1 - tick / 100) for tick in ticks], [f"{tick:g}%" for tick in ticks])
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis)
        axes.set_ylabel(unit)
        axes.legend(loc="upper left", fontsize=8, frameon=False)
        return _svg(figure)


def ranges(title: str, unit: str, rows: Sequence[Range]) -> str:
    """A line from p50 (dot) to p99 (mark) for each row, on a logarithmic axis."""
    with _axes(title, height=0.9 + 0.32 * len(rows)) as (figure, axes):
        for place, row in enumerate(rows):
            colour = COLOURS[0] if row.strong else COLOURS[7]
            axes.plot(
                [row.p50, row.p99], [place, place], color=colour, lw=5, solid_capstyle="butt", alpha=0.6
            )
            axes.plot([row.p50], [place], "o", color=colour, ms=6)
            axes.plot([row.p99], [place], "|", color=colour, ms=13, mew=2.5)
            axes.annotate(
                f"{number(row.p50)} / {number(row.p99)}",
                (row.p99, place),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=_INK,
            )
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.set_xlim(min(row.p50 for row in rows) / 1.5, max(row.p99 for row in rows) * 6)
        _plain_numbers(axes.xaxis)
        axes.set_xlabel(f"{unit}: p50 (dot) to p99 (mark)")
        return _svg(figure)


def stacks(title: str, unit: str, bars: Sequence[Stack]) -> str:
    """Horizontal bars, each of parts whose names are in the legend."""
    names = list(dict.fromkeys(name for bar in bars for name in bar.parts))
    with _axes(title, height=1.6 + 0.5 * len(bars) + 0.11 * len(names)) as (figure, axes):
        for place, bar in enumerate(bars):
            left = 0.0
            for name, length in bar.parts.items():
                label = name if all(name not in other.parts for other in bars[:place]) else None
                axes.barh(place, length, 0.6, left, color=_colour(names.index(name)), label=label)
                left += length
            axes.annotate(f" {number(left)}", (left, place), va="center", fontsize=8, color=_INK)
        axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.margins(x=0.1)
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.25), ncols=4, fontsize=8, frameon=False)
        return _svg(figure)


def growth(title: str, x_name: str, unit: str, curves: Sequence[Curve]) -> str:
    """Curves on two logarithmic axes, with their points."""
    with _axes(title, height=3.6) as (figure, axes):
        for place, curve in enumerate(curves):
            axes.plot(curve.x, curve.y, "o-", ms=4, lw=1.6, color=_colour(place), label=curve.name)
        axes.set_xscale("log", base=2 if max(curves[0].x) <= 4096 else 10)
        axes.set_yscale("log")
        axes.set_xticks(list(curves[0].x), [number(x) for x in curves[0].x])
        axes.minorticks_off()
        _plain_numbers(axes.yaxis)
        axes.set_xlabel(x_name)
        axes.set_ylabel(unit)
        axes.legend(fontsize=8, frameon=False)
        return _svg(figure)


def timeline(
    title: str,
    unit: str,
    curves: Sequence[Curve],
    marks: Mapping[str, Sequence[tuple[float, float]]],
) -> str:
    """Values over seconds, and for each kind of mark when it was: (from, until)."""
    with _axes(title, height=3.6) as (figure, axes):
        for place, curve in enumerate(curves):
            axes.plot(curve.x, curve.y, lw=1.3, color=_colour(place), label=curve.name)
        for place, (name, windows) in enumerate(marks.items()):
            colour = _colour(len(curves) + place)
            for at, (since, until) in enumerate(windows):
                axes.axvspan(since, until, color=colour, alpha=0.35, lw=1, label=None if at else name)
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis)
        axes.set_xlabel("seconds")
        axes.set_ylabel(unit)
        axes.legend(fontsize=8, frameon=False, ncols=4)
        return _svg(figure)


def lines(title: str, x_name: str, y_name: str, curves: Sequence[Curve], *, diagonal: bool = False) -> str:
    """Curves on two plain axes; with a diagonal on which x and y are equal."""
    with _axes(title, height=3.6) as (figure, axes):
        if diagonal:
            axes.plot([0, 1], [0, 1], ls=":", color=_INK, lw=1)
        for place, curve in enumerate(curves):
            few = len(curve.x) <= 30
            axes.plot(
                curve.x, curve.y, "o-" if few else "-", ms=4, lw=1.4, color=_colour(place), label=curve.name
            )
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        axes.legend(fontsize=8, frameon=False)
        return _svg(figure)


def number(value: float) -> str:
    """Three digits that count."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _plain_numbers(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_formatter(NullFormatter())


@contextmanager
def _axes(title: str, height: float) -> Iterator[tuple[Any, Any]]:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency(
            f"--html draws with matplotlib, which is not installed ({error}): pip install 'sigd[report]'"
        ) from error
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "sigd",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "axes.titlecolor": _INK,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "grid.color": _GRID,
        "grid.linewidth": 0.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.6, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.grid(visible=True, which="major", alpha=0.7)
        axes.set_axisbelow(True)
        yield figure, axes


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # Identifiers are the page's: two figures must not share one.
    own = f"f{zlib.crc32(svg.encode()):08x}"
    svg = re.sub(r'(id="|href="#|url\(#)', lambda match: match[1] + own, svg)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r'\1 role="img"', svg, count=1)
    return svg.replace(_INK, "currentColor").replace(_GRID, "var(--line)")
