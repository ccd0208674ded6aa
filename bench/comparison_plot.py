"""Pictures of a comparison: bars for a terminal, and an SVG for a report, written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from sigd.bench.comparison import Comparison, Samples

Floats = npt.NDArray[np.float64]

_BAR_CELLS = 40
_WIDTH, _HEIGHT, _MARGIN, _GAP = 460, 300, 60, 40
_POINTS_MAX = 400
_COLOURS = ("#1b6ca8", "#d1495b")


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of the errors' histogram.

    Attributes:
        label: the errors that it counts, for example "1e-07 to 1e-06".
        count: how many.
        cells: its length, 0 to 40; at least 1 where it counts any.
    """

    label: str
    count: int
    cells: int


def error_bars(abs_errors: Floats) -> tuple[Bar, ...]:
    """The histogram of |a - b| by powers of ten, the smallest first; exact equality has a bar of its own."""
    nonzero = abs_errors[abs_errors > 0]
    counts = [("exactly 0", int(abs_errors.size - nonzero.size))]
    if nonzero.size:
        exponents = np.floor(np.log10(nonzero)).astype(np.int64)
        for exponent in range(int(exponents.min()), int(exponents.max()) + 1):
            label = f"1e{exponent:+03d} to 1e{exponent + 1:+03d}"
            counts.append((label, int(np.sum(exponents == exponent))))
    most = max(count for _, count in counts)
    return tuple(
        Bar(label, count, max(1, round(_BAR_CELLS * count / most)) if count else 0) for label, count in counts
    )


def svg(comparison: Comparison, samples: Samples) -> str:
    """Two panels: the share of outputs within each error, and the share of calls within each time."""
    error_curves = [("|a - b|", np.maximum(samples.abs_errors, 1e-12))]
    time_curves = [
        (f"a  {comparison.a.file}", samples.times_a_ns / 1000),
        (f"b  {comparison.b.file}", samples.times_b_ns / 1000),
    ]
    width, height = 2 * (_WIDTH + _MARGIN) + _GAP + 20, _HEIGHT + 2 * _MARGIN + 50
    agreed = "in none" if comparison.label_agreement is None else f"{comparison.label_agreement:.2%}"
    title = (
        f"{comparison.rows:,} rows, labels agree {agreed}; p50"
        f" {comparison.a.p50_us:.1f} and"
        f" {comparison.b.p50_us:.1f} us at {comparison.batch_rows} rows a call"
    )
    body = [
        f'<text x="{_MARGIN}" y="28" font-size="15">{escape(title)}</text>',
        *_panel(_MARGIN, "absolute error (0 drawn at 1e-12)", "share of outputs", error_curves),
        *_panel(2 * _MARGIN + _WIDTH + _GAP, "microseconds a call", "share of calls", time_curves),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}"'
        ' font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _panel(left: int, x_label: str, y_label: str, curves: Sequence[tuple[str, Floats]]) -> Iterator[str]:
    """One set of axes, logarithmic to the right, with the distribution function of each curve's values."""
    drawn = [(name, values) for name, values in curves if values.size]
    if not drawn:
        return
    low = np.floor(np.log10(min(values.min() for _, values in drawn)))
    high = max(low + 1, np.ceil(np.log10(max(values.max() for _, values in drawn))))
    top, bottom = _MARGIN, _MARGIN + _HEIGHT
    yield f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#888"/>'
    step = max(1, int(high - low) // 6)
    for exponent in range(int(low), int(high) + 1, step):
        x = left + _WIDTH * (exponent - low) / (high - low)
        yield f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{10.0**exponent:g}</text>'
    for share in (0.0, 0.5, 0.9, 1.0):
        y = bottom - _HEIGHT * share
        yield f'<line x1="{left}" y1="{y:.1f}" x2="{left + _WIDTH}" y2="{y:.1f}" stroke="#ddd"/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{share:g}</text>'
    yield f'<text x="{left + _WIDTH / 2}" y="{bottom + 36}" text-anchor="middle">{escape(x_label)}</text>'
    yield f'<text x="{left}" y="{top - 8}">{escape(y_label)}</text>'
    for number, (name, values) in enumerate(drawn):
        colour = _COLOURS[number]
        points = " ".join(f"{left + x:.1f},{bottom - y:.1f}" for x, y in _points(values, low, high))
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        yield f'<text x="{left + 4}" y="{bottom + 54 + 16 * number}" fill="{colour}">{escape(name)}</text>'


def _points(values: Floats, low: float, high: float) -> Iterator[tuple[float, float]]:
    """Right and up, in pixels from the corner, of the distribution function."""
    shares = np.linspace(0.0, 1.0, min(_POINTS_MAX, max(2, values.size)))
    quantiles = np.quantile(values, shares, method="higher")
    for share, quantile in zip(shares, quantiles, strict=True):
        yield _WIDTH * (np.log10(quantile) - low) / (high - low), _HEIGHT * share
