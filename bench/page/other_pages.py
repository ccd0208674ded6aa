"""The reports of the other measurements: growth, the daemon's stages, reloads, and figures by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sigd.bench import histogram
from sigd.bench.growth import Growth
from sigd.bench.neighbour.judge import PERCENTILES
from sigd.bench.page import figures
from sigd.bench.page.figures import Curve, Stack, number
from sigd.bench.page.html import Page, Section, Table
from sigd.bench.page.latency_page import machine_section

if TYPE_CHECKING:
    from sigd.bench.neighbour.blocks import Result as Neighbour
    from sigd.bench.observe import Found as Observed
    from sigd.bench.profile.times import Times
    from sigd.bench.reload import Found


def growth_page(growth: Growth) -> Page:
    """The report of `sigd bench growth`: a figure for each axis."""
    sections = []
    for axis in growth.axes:
        at = [float(point.value) for point in axis.points]
        curves = [
            Curve("p50", at, [point.p50_us for point in axis.points]),
            Curve("p99", at, [point.p99_us for point in axis.points]),
        ]
        rates = [Curve("a second", at, [point.per_s for point in axis.points])]
        rows = [
            (
                f"{point.value:,}",
                *(number(value) for value in (point.p50_us, point.p99_us, point.per_s)),
                "disturbed" if point.disturbed else "",
            )
            for point in axis.points
        ]
        sections.append(
            Section(
                axis.title,
                (),
                [
                    figures.growth("latency", axis.name, "us", curves),
                    figures.growth("throughput", axis.name, "answers a second", rates),
                ],
                [Table((axis.name, "p50, us", "p99, us", "a second", ""), rows)],
            )
        )
    return Page(
        "How the cost of a request grows",
        f"sigd bench growth, {growth.model}, backend {growth.backend}; {growth.environment.cpu_model}",
        [*sections, machine_section(growth.environment, growth.model)],
        ("INCONCLUSIVE: the machine was disturbed", "unsure") if growth.disturbed else None,
    )


def profile_page(times: Times) -> Page:
    """The report of `sigd bench profile`: a stacked bar for each load."""
    bars = [
        Stack(column.title, {name: ns / column.rows for name, ns in column.stages_ns.items()})
        for column in times.columns
    ]
    rows = [
        (column.title, name, number(ns), number(ns / column.rows))
        for column in times.columns
        for name, ns in column.stages_ns.items()
    ]
    return Page(
        "Where the daemon's time for a request goes",
        f"sigd bench profile, {times.model} ({times.features} to {times.outputs}), backend {times.backend}",
        [
            Section(
                "Stages over shared memory",
                ["Medians of each stage alone, with warm caches; the whole is longer than their sum."],
                [figures.stacks("a request's stages", "ns a request", bars)],
                [Table(("load", "stage", "ns", "ns a request"), rows)],
            )
        ],
    )


def reload_page(found: Found, facts: Mapping[str, object]) -> Page:
    """The report of `sigd bench reload`: latency in time and by generation, with the reloads marked."""
    moments, windows = found.moments, found.windows_s
    at = [moment[0] for moment in moments]
    curves = [
        Curve("p50", at, [moment[1] for moment in moments]),
        Curve("p99", at, [moment[2] for moment in moments]),
    ]
    marks = {"a reload": windows} | ({"the machine stopped the client": found.gaps_s} if found.gaps_s else {})
    generations = [float(generation) for generation, _, _ in found.by_generation]
    by_generation = [
        Curve("p50", generations, [p50 for _, p50, _ in found.by_generation]),
        Curve("p99", generations, [p99 for _, _, p99 in found.by_generation]),
    ]
    return Page(
        "What reloads cost the requests that come meanwhile",
        f"sigd bench reload, {found.reloads} reloads",
        [
            Section(
                "The turns with reloads, one behind the other",
                (),
                [figures.timeline("latency in time", "us", curves, marks)],
            ),
            Section(
                "Latency by generation of the model",
                (),
                [figures.lines("each generation", "generation", "us", by_generation)],
            ),
            facts_section(facts),
        ],
        ("PASS", "good") if not found.reasons() else ("FAIL", "bad"),
        found.reasons(),
    )


def observe_page(found: Observed, facts: Mapping[str, object]) -> Page:
    """The report of `sigd bench observe`: a curve with the recorder, and one without."""
    curves = []
    for name, counts in zip(("metrics", "metrics and recorder"), found.counts().values(), strict=True):
        quantiles, values_ns = histogram.curve(histogram.hdr(counts).encode().decode())
        curves.append(Curve(name, quantiles, values_ns / 1000))
    return Page(
        "What the flight recorder costs a client",
        f"sigd bench observe, {len(found.rounds)} rounds of two turns, over"
        f" {found.asked.transport.name.lower().replace('_', ' ')}",
        [
            Section(
                "From send to answer",
                ["Both daemons keep metrics; one of them records."],
                [figures.percentiles("latency over percentiles", "us", curves)],
            ),
            facts_section(facts),
        ],
        ("PASS", "good") if not found.reasons() else ("FAIL", "bad"),
        found.reasons(),
    )


def neighbour_page(result: Neighbour, reasons: Sequence[str]) -> Page:
    """The report of `sigd bench --neighbour`: each percentile in each round, beside the neighbour and
    without."""
    rounds = [float(number) for number in range(1, len(result.pairs) + 1)]
    drawn = []
    for name, field in PERCENTILES.items():
        curves = [
            Curve("without", rounds, [getattr(pair.without, field) for pair in result.pairs]),
            Curve("beside", rounds, [getattr(pair.beside, field) for pair in result.pairs]),
        ]
        drawn.append(figures.lines(name, "round", "us", curves))
    rows = [
        (
            effect.percentile,
            *(number(value) for value in (effect.without_us, effect.beside_us, effect.ratio)),
            f"{effect.chance:.4f}",
            "slower" if effect.slower else "",
        )
        for effect in result.effects
    ]
    head = ("us", "without", "beside", "ratio", "chance", "")
    return Page(
        "What a neighbour does to the tail",
        f"sigd bench --neighbour, beside: {result.neighbour}",
        [
            Section(
                f"{len(result.pairs)} pairs of blocks of {result.block_s:g} s, client: {result.client}",
                ["Medians over the pairs. Chance: of such pairs where the neighbour does nothing."],
                drawn,
                [Table(head, rows)],
            )
        ],
        ("PASS", "good") if result.passed else ("FAIL", "bad"),
        reasons,
    )


def facts_page(title: str, lead: str, facts: Mapping[str, object], *, passed: bool | None = None) -> Page:
    """A report of figures by name."""
    verdict = None if passed is None else (("PASS", "good") if passed else ("FAIL", "bad"))
    return Page(title, lead, [facts_section(facts)], verdict)


def facts_section(facts: Mapping[str, object]) -> Section:
    """A row for each figure; those inside another have its name before theirs."""
    return Section("Figures", (), (), [Table(("", ""), _rows("", facts))])


def _rows(prefix: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [row for key, inner in value.items() for row in _rows(f"{prefix} {key}".strip(), inner)]
    if isinstance(value, list | tuple):
        if all(isinstance(inner, int | float | str) for inner in value):
            return [(prefix, ", ".join(_text(inner) for inner in value))]
        return [row for place, inner in enumerate(value, 1) for row in _rows(f"{prefix} {place}", inner)]
    return [(prefix.replace("_", " "), _text(value))]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
