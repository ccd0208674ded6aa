"""Writes what README and docs/benchmarks.md show of docs/benchmarks.json: `python -m tests.pages`,
`make pages`.

No figure stands in two places: the file is the one source, and a test compares both pages with it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec

ROOT: Final = Path(__file__).resolve().parents[1]
FIGURES: Final = ROOT / "docs" / "benchmarks.json"
_BAR_WIDTH: Final = 40


class Bar(msgspec.Struct, forbid_unknown_fields=True):
    """One bar of the chart: a latency from send to answer, in microseconds."""

    what: str
    p50_us: float
    p99_us: float
    command: str


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """One result in words, with the command that gave it."""

    command: str
    result: str


class Quoted(msgspec.Struct, forbid_unknown_fields=True):
    """A measured figure in another page: its words there, and the command that gave it."""

    page: str
    says: str
    command: str


class Earlier(msgspec.Struct, forbid_unknown_fields=True):
    """Results of an earlier version or another machine, which still say something."""

    machine: str
    lines: list[Line]


class Figures(msgspec.Struct, forbid_unknown_fields=True):
    """What was measured, where, with what and when."""

    machine: str
    software: str
    model: str
    date: str
    bars: list[Bar]
    lines: list[Line]
    earlier: Earlier
    elsewhere: list[Quoted]
    gpu: str


def read_figures() -> Figures:
    """The committed figures."""
    return msgspec.json.decode(FIGURES.read_bytes(), type=Figures)


def chart(figures: Figures) -> str:
    """p50 as a bar, p99 as its end mark, one line each."""
    longest = max(bar.p99_us for bar in figures.bars)
    width = max(len(bar.what) for bar in figures.bars)
    lines = []
    for bar in figures.bars:
        p50, p99 = (round(_BAR_WIDTH * value / longest) for value in (bar.p50_us, bar.p99_us))
        drawn = "█" * p50 + "─" * (p99 - p50) + "┤"
        lines.append(
            f"    {bar.what:<{width}}  {drawn:<{_BAR_WIDTH + 1}}  {bar.p50_us:>5.1f} {bar.p99_us:>5.1f}"
        )
    head = f"    {'us from send to answer':<{width + _BAR_WIDTH + 3}}    p50   p99"
    return "\n".join([head, *lines])


def _in_words(lines: list[Line]) -> str:
    return "\n\n".join(f"    {line.command}\n\n{line.result[0].upper()}{line.result[1:]}." for line in lines)


def page(figures: Figures) -> str:
    """docs/benchmarks.md."""
    commands = list(dict.fromkeys(bar.command for bar in figures.bars))
    parts = [
        "# Benchmarks",
        (
            "Run the commands below to measure your own machine; [benchmarking](benchmarking.md) says how"
            " they"
            " measure."
        ),
        f"Measured in {figures.date} on {figures.machine}; {figures.software}; the model {figures.model}.",
        chart(figures),
        (
            "The bar ends at p50, the line at p99. The floor is two native programs over the same transport"
            " plus the"
            "\nbare model call, in the same run, in turns. The figures are means of two runs of:"
        ),
        "\n".join(f"    {command}" for command in commands),
        "## What else was measured",
        _in_words(figures.lines),
        f"## Earlier, on {figures.earlier.machine}",
        _in_words(figures.earlier.lines),
        "## On a GPU",
        figures.gpu
        + "\n[How](decisions/0005-gpu-path.md), and [what fails how](gpu-faults.md). `make test-gpu` proves"
        " it"
        " on yours.",
        "This page is written by `make pages` from benchmarks.json.",
    ]
    return "\n\n".join(parts) + "\n"


def with_chart(readme: str, figures: Figures) -> str:
    """The README with the chart between its marks."""
    marked = re.compile(r"(<!-- chart -->\n\n).*?\n*(<!-- end of chart -->)", re.DOTALL)
    new, found = marked.subn(lambda match: match[1] + chart(figures) + "\n\n" + match[2], readme)
    if found != 1:
        raise ValueError("README.md: expected one <!-- chart --> ... <!-- end of chart -->")
    return new


if __name__ == "__main__":
    measured = read_figures()
    readme_file = ROOT / "README.md"
    readme_file.write_text(with_chart(readme_file.read_text("utf-8"), measured), "utf-8")
    (ROOT / "docs" / "benchmarks.md").write_text(page(measured), "utf-8")
