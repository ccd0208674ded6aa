"""A plan for a terminal of 80 columns: what has to change, most harmful first, then every verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from sigd.bench.plan.comparison import Cell, Column, column, comparable
from sigd.bench.plan.machine import Machine
from sigd.bench.plan.plan import Plan
from sigd.bench.plan.ranges import Range
from sigd.bench.plan.verdict import Verdict

WIDTH = 80
MARKS = {"does not fit": "NO", "tight": "tight", "fits": "fits"}


def text(plan: Plan, *, everything: bool = False) -> str:
    """The plan as lines of 80 columns at most."""
    lines = [f"{plan.machine}: " + ("it fits" if plan.fits else "it does not fit")]
    if plan.change:
        lines += ["", "To change, the most harmful first:", ""]
        for number, same in enumerate(grouped(plan.change), 1):
            lines += _change(number, same)
    if everything or not plan.change:
        lines += ["", *rows(plan)]
    else:
        fitting = sum(one.level == "fits" for one in plan.verdicts)
        lines += [
            "",
            f"{fitting} of {len(plan.verdicts)} verdicts fit; --all lists every one, with its bounds.",
        ]
    return "\n".join(lines) + "\n"


def grouped(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    """Verdicts with the same reason and the same cure together, in the order of their first."""
    groups: dict[tuple[str, str, str], list[Verdict]] = {}
    for one in verdicts:
        groups.setdefault((one.area, one.why, one.fix), []).append(one)
    return list(groups.values())


def _change(number: int, same: Sequence[Verdict]) -> Iterator[str]:
    first = same[0]
    subjects = "; ".join(one.subject for one in same)
    yield from _wrapped(f"{number:2}. [{MARKS[first.level]}] {first.area}: {subjects}", "    ")
    yield from _wrapped(f"    {first.why}", "    ")
    yield from _wrapped(f"    -> {first.fix}", "       ")


def _wrapped(line: str, indent: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def rows(plan: Plan) -> Iterator[str]:
    """Every verdict in one line: verdict, area, subject, low to high, limit."""
    yield f"{'':5} {'area':9} {'subject':30} {'low':>6} {'high':>6} {'limit':>6} unit"
    for one in plan.verdicts:
        subject = textwrap.shorten(one.subject, 30, placeholder="..")
        low, high = _ends(one.need)
        limit = "" if one.limit is None else short(one.limit.best)
        yield (
            f"{MARKS[one.level]:5} {one.area:9} {subject:30} {low:>6} {high:>6} {limit:>6}"
            f" {one.unit}".rstrip()
        )


def compared(machine: Machine, columns: Sequence[Column]) -> str:
    """The machine's work on itself and on others: tokens/s of one stream, or why not."""
    work = comparable(machine)
    lines = []
    for one in (column(work, machine), *columns):
        lines += [
            (
                f"{one.machine}: {one.memory_gib:.0f} GiB usable, {one.bandwidth_gb_s:.0f} GB/s a card,"
                f" {one.draw_w.best:.0f} W"
            ),
        ]
        for piece, cell in zip(work, one.cells, strict=True):
            name = textwrap.shorten(piece.name, 32, placeholder="..")
            lines.append(f"    {MARKS[cell.level]:5} {name:32} {_speed(cell)}".rstrip())
        lines.append("")
    return "\n".join(lines)


def _speed(cell: Cell) -> str:
    if cell.decode is None or cell.first_s is None:
        return f"{cell.need.best:.0f} of {cell.room.best:.0f} GiB a card"
    return (
        f"{short(cell.decode.low)} to {short(cell.decode.high)} tok/s, first after {cell.first_s.best:.1f} s"
    )


def _ends(need: Range | None) -> tuple[str, str]:
    return ("", "") if need is None else (short(need.low), short(need.high))


def short(value: float) -> str:
    """A value in six characters at most."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.0f}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.0f}k"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
