"""The comparison for people, on a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sigd.bench.alternatives.document import Cell, Comparison, Entry, LoadFacts, ModelResult


def render(comparison: Comparison, console: Console) -> None:
    """Print all of it; the verdict comes last."""
    machine = comparison.environment
    console.print(
        f"machine  {machine.cpu_model}, {machine.allowed_cpus} of {machine.cpus} CPUs, Linux"
        f" {machine.kernel}; load average {machine.load_average}; Python {machine.python}"
    )
    console.print(
        f"turns    {comparison.rounds} rounds of {comparison.seconds:g} s for each contender and load"
    )
    for model in comparison.models:
        console.print(
            f"\nmodel    {model.name} ({model.features} -> {model.outputs}), sha256 {model.sha256[:16]};"
            f" {model.rows:,} different rows, every answer compared with the oracle's"
        )
        if model.capture_speed:
            console.print(f"capture  the slowest contender survives {model.capture_speed:g} times its speed")
        for load in comparison.loads:
            if any(entry.cell(load.name) for entry in model.contenders):
                console.print(_table(model, load))
    _configurations(comparison.models[0], console)
    _verdict(comparison, console)


def _table(model: ModelResult, load: LoadFacts) -> Table:
    table = Table(
        *(load.title, "p50", "p99", "p99.9", "max", "times p50", "times p99"),
        title=f"{model.name}: microseconds from when a request was due to its answer",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for entry in model.contenders:
        cell = entry.cell(load.name)
        if cell is not None:
            table.add_row(entry.title, *_cells(cell))
    return table


def _cells(cell: Cell) -> list[str | Text]:
    if not cell.valid:
        return [Text(cell.reasons[0], style="yellow")]
    mark = "~" if cell.disturbed else ""
    values = (cell.p50_us, cell.p99_us, cell.p99_9_us, cell.max_us)
    times = (cell.times_p50, cell.times_p99)
    return [
        *(mark + (f"{value:,.1f}" if value < 1000 else f"{value:,.0f}") for value in values),
        *("" if one is None or cell.disturbed else f"{one:,.2f}" for one in times),
    ]


def _configurations(model: ModelResult, console: Console) -> None:
    console.print("configured as their documentation advises for latency:")
    for entry in model.contenders:
        if entry.why_not:
            console.print(Text(f"  {entry.title}: did not run: {first_line(entry)}", style="yellow"))
            continue
        versions = ", ".join(f"{name} {version}" for name, version in entry.versions.items())
        console.print(f"  {entry.title}: {entry.configuration}" + (f" ({versions})" if versions else ""))


def first_line(entry: Entry) -> str:
    """Why it did not run, in one line."""
    return entry.why_not.strip().splitlines()[-1]


def _verdict(comparison: Comparison, console: Console) -> None:
    for bar in comparison.bars:
        word = {True: "kept", False: "MISSED", None: "INCONCLUSIVE"}[bar.kept]
        found = "the machine was disturbed" if bar.kept is None else f"{bar.found:,.2f}"
        console.print(
            f"  {word:12} {bar.model}, {bar.load}: {bar.what} {found}, expected at least {bar.expected:g}"
        )
    if any(cell.disturbed for model in comparison.models for each in model.contenders for cell in each.cells):
        console.print(
            "~ the machine took more than 1% of this contender's time away: the figure says nothing"
        )
    if comparison.passed:
        console.print(Text("PASS", style="bold green"))
    elif comparison.inconclusive:
        console.print(
            Text("INCONCLUSIVE, the machine was taken away: measure when it is idle", style="yellow")
        )
    else:
        console.print(Text("FAIL", style="bold red"))
