"""The reports of `sigd bench` and `sigd bench compare`, from their documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sigd.bench import histogram
from sigd.bench.alternatives.document import Comparison, LoadFacts, ModelResult
from sigd.bench.document import Document
from sigd.bench.environment import Environment
from sigd.bench.page import figures
from sigd.bench.page.figures import Curve, Range, Stack, number
from sigd.bench.page.html import Page, Section, Table

if TYPE_CHECKING:
    from sigd.bench.tunnel import Found

_LONG_GAP_US = 50.0
"""Shorter hiccups cannot be seen on a time-line."""
_CURVES_MAX = 8


def run_page(document: Document) -> Page:
    """The report of one run."""
    load = document.load
    latency = document.latency
    rows = [
        ("p50", latency.p50_us, document.uncorrected.p50_us),
        ("p90", latency.p90_us, document.uncorrected.p90_us),
        ("p99", latency.p99_us, document.uncorrected.p99_us),
        ("p99.9", latency.p99_9_us, document.uncorrected.p99_9_us),
        ("p99.99", latency.p99_99_us, document.uncorrected.p99_99_us),
        ("max", latency.max_us, document.uncorrected.max_us),
    ]
    sections = [
        Section(
            "Latency",
            [
                f"{load.mode}, over {load.transport}.",
                f"{load.connections} connections, {load.in_flight} in flight each at most.",
                f"{document.accounting.requests:,} requests, {document.accounting.lost} lost.",
            ],
            [figures.percentiles("latency over percentiles", "us", [_curve("this run", document.hdr)])],
            [
                Table(
                    ("us", "from when it was due", "from the send"),
                    [(name, number(due), number(sent)) for name, due, sent in rows],
                )
            ],
        ),
        *_timeline(document),
        *_floor(document),
        _stages(document),
        machine_section(document.environment, document.model.name, document.model.sha256),
    ]
    return Page(
        f"{document.model.name}: p99 {number(latency.p99_us)} us",
        f"sigd bench, {document.environment.cpu_model}",
        sections,
        _verdict(document.passed, document.inconclusive, held=document.budget_us is not None),
        document.reasons,
    )


def tunnel_page(found: Sequence[Found]) -> Page:
    """The report of `sigd bench tunnel`: a section for each load, a curve for each way."""
    first = found[0].document
    sections = []
    for load in dict.fromkeys(one.load for one in found):
        ways = [one for one in found if one.load == load]
        rows = []
        for one in ways:
            latency = one.document.latency
            values = (latency.p50_us, latency.p90_us, latency.p99_us, latency.p99_9_us, latency.max_us)
            rows.append((one.way, *(number(us) for us in values), "; ".join(one.document.reasons)))
        ranges = [
            Range(one.way, one.document.latency.p50_us, one.document.latency.p99_us, strong=not place)
            for place, one in enumerate(ways)
            if one.document.latency.p50_us
        ]
        curves = [_curve(one.way, one.document.hdr) for one in ways]
        drawn = [figures.percentiles("latency over percentiles", "us", curves)]
        if ranges:
            drawn.insert(0, figures.ranges("from request to answer", "us", ranges))
        head = ("us", "p50", "p90", "p99", "p99.9", "max", "not valid, for")
        sections.append(Section(load, (), drawn, [Table(head, rows)]))
    valid = all(one.document.valid for one in found)
    return Page(
        "What an SSH tunnel costs, over loopback",
        "One daemon, asked directly and through tunnels in one run. Loopback has no distance: add the round"
        " trip of your network.",
        [*sections, machine_section(first.environment, first.model.name, first.model.sha256)],
        _verdict(valid, False, held=False),
    )


def comparison_page(comparison: Comparison) -> Page:
    """The report of a comparison: a section for each model and load."""
    sections = [
        section
        for model in comparison.models
        for load in comparison.loads
        if (section := _compared(model, load)) is not None
    ]
    bars = [
        (
            f"{bar.model}, {bar.load}: {bar.what}",
            "inconclusive" if bar.kept is None else number(bar.found),
            number(bar.expected),
            {True: "kept", False: "missed", None: "inconclusive"}[bar.kept],
        )
        for bar in comparison.bars
    ]
    held = Section("Bars", (), (), [Table(("what", "found", "at least", "verdict"), bars)])
    return Page(
        "sigd beside what teams use instead",
        f"{comparison.rounds} rounds of {comparison.seconds:g} s in turns; every answer compared with the"
        f" oracle's; {comparison.environment.cpu_model}",
        [
            held,
            *sections,
            _configurations(comparison.models[0]),
            machine_section(
                comparison.environment,
                ", ".join(model.name for model in comparison.models),
                ", ".join(model.sha256 for model in comparison.models),
            ),
        ],
        _verdict(comparison.passed, comparison.inconclusive, held=True),
    )


def hgrms(comparison: Comparison) -> dict[str, str]:
    """The percentile distribution of each contender under each load."""
    return {
        f"{model.name}-{cell.load}-{entry.name}": histogram.hgrm_of(cell.hdr)
        for model in comparison.models
        for entry in model.contenders
        for cell in entry.cells
        if cell.requests
    }


def _curve(name: str, encoded: str) -> Curve:
    quantiles, values_ns = histogram.curve(encoded)
    return Curve(name, quantiles, values_ns / 1000)


def _timeline(document: Document) -> list[Section]:
    moments = document.timeline
    if document.floor is not None or len(moments) < 2:
        return []
    at = [moment.at_s for moment in moments]
    curves = [
        Curve("p50", at, [moment.p50_us for moment in moments]),
        Curve("p99", at, [moment.p99_us for moment in moments]),
        Curve("longest", at, [moment.max_us for moment in moments]),
    ]
    gaps = [
        (gap.at_s, gap.at_s + gap.length_us / 1e6) for gap in document.gaps if gap.length_us >= _LONG_GAP_US
    ]
    marks = {"the machine stopped the client": gaps} if gaps else {}
    if document.reloads_s:
        marks["another generation of the model"] = [(at_s, at_s) for at_s in document.reloads_s]
    return [
        Section(
            "The run in time",
            [
                f"Marked: {len(gaps)} stops of the client by the machine, of {_LONG_GAP_US:g} us or more,",
                f"and {len(document.reloads_s)} reloads of the model.",
            ],
            [figures.timeline("latency in time", "us", curves, marks)],
        )
    ]


def _floor(document: Document) -> list[Section]:
    if document.floor is None:
        return []
    rows = []
    for ratio in document.floor.ratios:
        rows.append(
            (
                f"p{ratio.percentile:g}",
                *(number(us) for us in (ratio.echo_us, ratio.bare_us, ratio.floor_us, ratio.sigd_us)),
                f"{ratio.ratio_median:.2f}",
            )
        )
    bars = [
        Stack(
            "floor, p50", {"transport": (first := document.floor.ratios[0]).echo_us, "model": first.bare_us}
        ),
        Stack("sigd, p50", {"all of it": first.sigd_us}),
    ]
    return [
        Section(
            "Beside the floor of this machine",
            [f"{document.floor.rounds} rounds in turns: a native echo, the bare model call, sigd."],
            [figures.stacks("from send to answer", "us", bars)],
            [Table(("us", "native echo", "bare model", "floor", "sigd", "ratio, median"), rows)],
        )
    ]


def _stages(document: Document) -> Section:
    bars = [
        Stack("p50", {name: stage.p50_us for name, stage in document.stages.items()}),
        Stack("p99", {name: stage.p99_us for name, stage in document.stages.items()}),
    ]
    return Section(
        "Where the time went",
        [
            "From the stamps in each answer.",
            "Each stage has percentiles of its own, which do not add up to those of the whole.",
        ],
        [figures.stacks("stages of a request", "us", bars)],
    )


def _compared(model: ModelResult, load: LoadFacts) -> Section | None:
    found = [(entry, entry.cell(load.name)) for entry in model.contenders]
    at_speed = f" ({model.capture_speed:g}x)" if load.name == "capture-fast" else ""
    shown = [(entry, cell) for entry, cell in found if cell is not None and cell.valid and not cell.disturbed]
    if not shown:
        return None
    ranges = [
        Range(entry.title, cell.p50_us, cell.p99_us, strong=entry.kind == "sigd") for entry, cell in shown
    ]
    curves = [_curve(entry.title, cell.hdr) for entry, cell in shown[:_CURVES_MAX]]
    rows: list[tuple[str, ...]] = []
    for entry, cell in found:
        if cell is None:
            continue
        if not cell.valid:
            rows.append((entry.title, "not valid", cell.reasons[0]))
        elif cell.disturbed:
            rows.append((entry.title, "inconclusive", f"the machine took {cell.taken_share:.1%} away"))
        else:
            times = ["" if one is None else f"{one:,.2f}" for one in (cell.times_p50, cell.times_p99)]
            values = (cell.p50_us, cell.p99_us, cell.p99_9_us, cell.max_us)
            rows.append((entry.title, *(number(us) for us in values), *times))
    head = ("us", "p50", "p99", "p99.9", "max", "times p50", "times p99")
    return Section(
        f"{model.name}, {load.title}{at_speed}",
        (),
        [
            figures.ranges("from when a request was due to its answer", "us", ranges),
            figures.percentiles("latency over percentiles", "us", curves),
        ],
        [Table(head, rows)],
    )


def _configurations(model: ModelResult) -> Section:
    rows = []
    for entry in model.contenders:
        versions = ", ".join(f"{name} {version}" for name, version in entry.versions.items())
        ran = (
            f"did not run: {entry.why_not.strip().splitlines()[-1]}" if entry.why_not else entry.configuration
        )
        rows.append((entry.title, ran, versions or "-"))
    return Section(
        "Configured as their documentation advises for latency",
        (),
        (),
        [Table(("contender", "configuration", "versions"), rows)],
    )


def machine_section(environment: Environment, model: str, sha256: str = "") -> Section:
    """What was measured on, and with what."""
    packages = ", ".join(f"{name} {version}" for name, version in environment.packages.items())
    rows = [
        ("processor", environment.cpu_model),
        ("cores", f"{environment.allowed_cpus} of {environment.cpus}"),
        ("virtual", "yes" if environment.virtual else "no"),
        ("isolated cores", environment.isolated_cpus or "none"),
        ("governor", ", ".join(sorted(set(environment.governors.values()))) or "unknown"),
        ("kernel", f"Linux {environment.kernel}"),
        ("clock", f"{environment.clock_source}, {environment.clock_cost_ns:.0f} ns a reading"),
        ("load average before", str(environment.load_average)),
        ("software", f"Python {environment.python}, {packages}"),
        ("compiler", environment.compiler),
        ("model", model),
        ("sha256", sha256),
    ]
    return Section("The machine", (), (), [Table(("", ""), rows)])


def _verdict(passed: bool, inconclusive: bool, *, held: bool) -> tuple[str, str]:
    if inconclusive:
        return "INCONCLUSIVE: the machine was disturbed", "unsure"
    if not passed:
        return "FAIL", "bad"
    return ("PASS", "good") if held else ("VALID", "good")
