"""Plots of a plan as SVG, written by hand: bars against a limit, and curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP, ROW, BOTTOM = 760, 250, 40, 56, 30, 50
COLOURS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#8d6a9f", "#5f6c7b")
CURVES_HEIGHT = 300


@dataclass(frozen=True, slots=True)
class Bar:
    """One row: its parts from left to right, each with a name and a length in the unit of the axis."""

    name: str
    parts: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One curve."""

    name: str
    points: tuple[tuple[float, float], ...]


def bars(title: str, unit: str, rows: Sequence[Bar], limit: float, limit_name: str) -> str:
    """Stacked bars and a line for the limit. A bar longer than twice the limit is cut, and its length
    written."""
    end = 2 * limit
    height = TOP + ROW * len(rows) + BOTTOM
    scale = (WIDTH - LEFT - RIGHT) / end
    names = list(dict.fromkeys(name for row in rows for name, _ in row.parts))
    body = [f'<text x="16" y="22" font-size="15">{escape(title)}</text>']
    x = 16.0
    for number, name in enumerate(names):
        body.append(
            f'<rect x="{x:.0f}" y="32" width="11" height="11" fill="{COLOURS[number % len(COLOURS)]}"/>'
        )
        body.append(f'<text x="{x + 15:.0f}" y="42">{escape(name)}</text>')
        x += 32 + 6.6 * len(name)
    for number, row in enumerate(rows):
        y = TOP + ROW * number
        body.append(f'<text x="{LEFT - 8}" y="{y + 18}" text-anchor="end">{escape(row.name)}</text>')
        start = 0.0
        for name, length in row.parts:
            left, right = min(start, end), min(start + length, end)
            colour = COLOURS[names.index(name) % len(COLOURS)]
            body.append(
                f'<rect x="{LEFT + left * scale:.1f}" y="{y + 5}" width="{(right - left) * scale:.1f}"'
                ' height="19"'
                f' fill="{colour}"/>'
            )
            start += length
        label = f"{start:.0f}" if start >= 10 else f"{start:.1f}"
        at = LEFT + min(start, end) * scale
        body.append(f'<text x="{at + 4:.1f}" y="{y + 19}">{label}</text>')
    x = LEFT + limit * scale
    bottom = height - BOTTOM
    body.append(
        f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#111" stroke-dasharray="5 3"/>'
    )
    body.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(limit_name)}</text>')
    body.append(f'<text x="{WIDTH - RIGHT}" y="{bottom + 36}" text-anchor="end">{escape(unit)}</text>')
    return _svg(height, body)


def curves(title: str, x_unit: str, y_unit: str, lines: Sequence[Line]) -> str:
    """Curves over one axis; both axes begin at 0 or at the lowest x."""
    points = [point for line in lines for point in line.points]
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_high = max(y for _, y in points) * 1.05
    left, top, width = 70, 60, WIDTH - 110
    body = [
        f'<text x="16" y="22" font-size="15">{escape(title)}</text>',
        f'<rect x="{left}" y="{top}" width="{width}" height="{CURVES_HEIGHT}" fill="none" stroke="#888"/>',
    ]
    for step in range(6):
        x = x_low + (x_high - x_low) * step / 5
        at = left + width * step / 5
        body.append(f'<text x="{at:.0f}" y="{top + CURVES_HEIGHT + 16}" text-anchor="middle">{x:.0f}</text>')
        y = y_high * step / 5
        at = top + CURVES_HEIGHT * (1 - step / 5)
        body.append(f'<line x1="{left}" y1="{at:.0f}" x2="{left + width}" y2="{at:.0f}" stroke="#ddd"/>')
        body.append(f'<text x="{left - 6}" y="{at + 4:.0f}" text-anchor="end">{y:.3g}</text>')
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        drawn = " ".join(
            f"{left + width * (x - x_low) / (x_high - x_low):.1f}"
            f",{top + CURVES_HEIGHT * (1 - y / y_high):.1f}"
            for x, y in line.points
        )
        body.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body.append(f'<text x="{left + 8 + 230 * number}" y="46" fill="{colour}">{escape(line.name)}</text>')
    body.append(
        f'<text x="{left + width / 2:.0f}" y="{top + CURVES_HEIGHT + 36}"'
        f' text-anchor="middle">{escape(x_unit)}</text>'
    )
    body.append(f'<text x="{left}" y="{top - 4}" font-size="11">{escape(y_unit)}</text>')
    return _svg(top + CURVES_HEIGHT + 50, body)


def _svg(height: int, body: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}"'
        ' font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )
