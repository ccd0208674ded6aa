"""The result for people: tables on a terminal, drawn from the document and nothing else."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sigd.bench.document import Document, HiccupFacts, Model, Percentiles
from sigd.models.market.faults import fault_lines

_BAR_CELLS = 34
_SLOWEST_SHOWN = 5
_ROWS = (
    ("p50", "p50_us"),
    ("p90", "p90_us"),
    ("p99", "p99_us"),
    ("p99.9", "p99_9_us"),
    ("p99.99", "p99_99_us"),
    ("max", "max_us"),
)


def render(document: Document, console: Console) -> None:
    """Print all of it; the verdict comes last."""
    _environment(document, console)
    _load(document, console)
    console.print(_latency_table(document))
    console.print(_stage_table(document))
    _accounting(document, console)
    _hiccups(document, console)
    if document.slowest:
        console.print(_slowest_table(document))
    if document.floor is not None:
        _floor(document, console)
    if document.load.mode == "closed loop" or document.floor is not None:
        _rate(document, console)
    _verdict(document, console)


def _environment(document: Document, console: Console) -> None:
    env, model = document.environment, document.model
    governors = ", ".join(sorted(set(env.governors.values()))) or "unknown"
    virtual = ", virtual machine" if env.virtual else ""
    isolated = env.isolated_cpus or "none"
    console.print(
        f"machine  {env.cpu_model}, {env.allowed_cpus} of {env.cpus} CPUs{virtual}, Linux {env.kernel}"
    )
    console.print(
        f"         isolated CPUs: {isolated}; governor: {governors}; load average {env.load_average}; "
        f"clock {env.clock_source}, {env.clock_cost_ns:.0f} ns a reading"
    )
    packages = ", ".join(f"{name} {version}" for name, version in env.packages.items())
    console.print(f"software Python {env.python}, {packages}; {env.compiler}")
    console.print(
        f"model    {model.name} ({model.features} -> {model.outputs}), sha256 {model.sha256[:16]}, "
        f"backend {model.backend}, idle {model.idle}, {_daemon_cores(model)}"
    )


def _daemon_cores(model: Model) -> str:
    if not model.lane_cpus:
        return f"daemon on {_core(model.daemon_cpu)}"
    lanes = ", ".join(map(str, model.lane_cpus))
    return f"lane on core {lanes}, the loop sleeps on {_core(model.daemon_cpu)}"


def _core(cpu: int | None) -> str:
    return "any core" if cpu is None else f"core {cpu}"


def _load(document: Document, console: Console) -> None:
    load = document.load
    what = {
        "closed loop": "closed loop, latency counts from the send",
        "open loop": "open loop, latency counts from the intended send time",
    }[load.mode]
    if load.arrivals:
        what += f"; {load.arrivals} arrivals"
    if load.capture:
        what += f"; arrivals of {load.capture} at {load.speed:g}x"
        if document.capture is not None and document.capture.stamp_unit != "ns":
            what += f", whose times are in {document.capture.stamp_unit}"
    ways = (
        f"connections over shared memory ({load.ring_slots} slots a ring)"
        if load.transport == "shm"
        else "connections over a Unix socket"
    )
    console.print(f"load     {what}; {load.connections} {ways}, {load.in_flight} in flight each at most")
    if load.instruments:
        checked = (
            "every answer compared with its whole window" if load.answers_checked else "answers not compared"
        )
        console.print(
            f"history  one step in each request, {load.instruments} instruments a connection, windows of"
            f" {document.model.history_steps} steps; {checked}"
        )
    intended = f"{load.rate_intended_hz:,.0f}/s intended, " if load.rate_intended_hz else ""
    console.print(
        f"         {document.accounting.requests:,} requests in {load.elapsed_s:,.2f} s after"
        f" {load.warmup_s:g} s of "
        f"warm-up; {intended}{load.rate_achieved_hz:,.0f}/s sent; mean batch {document.mean_batch_rows:g}"
        " rows"
    )
    if document.capture is not None:
        for line in fault_lines(document.capture.faults, document.capture.first_faults):
            console.print(Text(line, style="yellow"), soft_wrap=True)
    client = {"cpp": "native (C++, one spinning thread)", "python": "Python (one spinning thread)"}[
        load.client
    ]
    console.print(f"client   {client} on {_core(document.model.client_cpu)}")
    if load.client_note:
        console.print(Text(f"         the client is in Python: {load.client_note}", style="yellow"))


def _latency_table(document: Document) -> Table:
    closed = document.load.mode == "closed loop"
    table = Table(
        title="latency of answered requests, microseconds", title_justify="left", title_style="bold"
    )
    table.add_column("")
    table.add_column("from the send" if closed else "from intended\n(corrected)", justify="right")
    if not closed:
        table.add_column("from the send\n(uncorrected)", justify="right")
    budget = f"; | = budget {document.budget_us:g}" if document.budget_us is not None else ""
    table.add_column(f"log scale{budget}")
    for label, name in _ROWS:
        corrected = getattr(document.latency, name)
        cells = [label, _us(corrected)]
        if not closed:
            cells.append(_us(getattr(document.uncorrected, name)))
        table.add_row(*cells, _bar(corrected, document.latency, document.budget_us))
    table.add_row("max/p50", f"{document.max_over_median:,.1f}")
    return table


def _bar(value_us: float, latency: Percentiles, budget_us: float | None) -> Text:
    """A bar on a logarithmic scale from half the median to the largest value or the budget."""
    low = max(latency.p50_us / 2, 0.001)
    high = max(latency.max_us, budget_us or 0.0, 2 * low)

    def cell(us: float) -> int:
        return round(_BAR_CELLS * math.log(max(us, low) / low) / math.log(high / low))

    cells = list("█" * cell(value_us) + " " * (_BAR_CELLS - cell(value_us)))
    over = budget_us is not None and value_us > budget_us
    if budget_us is not None:
        at = min(cell(budget_us), _BAR_CELLS - 1)
        cells[at] = "|"
    return Text("".join(cells), style="red" if over else "green")


def _stage_table(document: Document) -> Table:
    table = Table(title="where the time went, microseconds", title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("p50", justify="right")
    table.add_column("p99", justify="right")
    table.add_column("")
    meaning = {
        "queue": "in the daemon: decoding, waiting, batching, encoding",
        "model": "in the model, for the batch of the request",
        "rest": "rings and client" if document.load.transport == "shm" else "sockets and client",
    }
    for name, stage in document.stages.items():
        table.add_row(name, _us(stage.p50_us), _us(stage.p99_us), meaning[name])
    return table


def _accounting(document: Document, console: Console) -> None:
    account, late = document.accounting, document.late_sends
    by_status = ", ".join(f"{count:,} {name}" for name, count in account.by_status.items() if count) or "none"
    console.print(
        f"requests {account.requests:,} meant, {account.sent:,} sent, {account.answered:,} answered"
        f" ({by_status}), "
        f"{account.lost:,} lost"
    )
    if document.load.mode == "open loop":
        console.print(
            f"late     {late.count:,} sends left more than {late.threshold_us:g} us after their time "
            f"({_share(late.count, account.sent)}); the worst {_us(late.worst_us)} us"
        )
    if document.memory is not None:
        memory = document.memory
        console.print(
            f"memory   daemon {memory.after_warmup_kib:,} KiB after the warm-up, {memory.at_end_kib:,} KiB at"
            " the end: "
            f"{memory.growth_kib:+,} KiB"
        )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "0%"


def _hiccups(document: Document, console: Console) -> None:
    console.print(_hiccup_table(document))
    stolen = document.stolen
    console.print(
        f"taken    {stolen.hypervisor:.2%} of the time by the hypervisor; the daemon waited for its core for"
        f" {stolen.daemon_waited:.2%}; the client saw gaps of {stolen.client:.2%}"
    )
    worst_us = max(facts.worst_us for facts in document.hiccups)
    if document.budget_us is not None and worst_us > document.budget_us:
        console.print(
            Text(
                f"         the machine alone took a core away for {_us(worst_us)} us, more than the budget: "
                "the tail above is its as well as the daemon's",
                style="yellow",
            )
        )


def _hiccup_table(document: Document) -> Table:
    table = Table(
        title="hiccups: times of 10 us or more that the machine took a core away, microseconds",
        title_justify="left",
        title_style="bold",
    )
    for name in ("", "core", "looked for, s", "count", "worst", "sum"):
        table.add_column(name, justify="left" if name == "" else "right")
    for facts in document.hiccups:
        table.add_row(*_hiccup_cells(facts))
    return table


def _hiccup_cells(facts: HiccupFacts) -> tuple[str, ...]:
    when = {
        "before": "before the run, spinning",
        "during": "during, seen by the client",
        "after": "after the run, spinning",
    }[facts.when]
    core = "any" if facts.cpu is None else str(facts.cpu)
    return (when, core, f"{facts.seconds:.1f}", f"{facts.count:,}", _us(facts.worst_us), _us(facts.sum_us))


def _slowest_table(document: Document) -> Table:
    shown = document.slowest[:_SLOWEST_SHOWN]
    table = Table(title=f"the {len(shown)} slowest, microseconds", title_justify="left", title_style="bold")
    for name in ("at, s", "latency", "sent late", "queue", "model", "rest", "batch rows", "connection"):
        table.add_column(name, justify="right")
    for slow in shown:
        table.add_row(
            f"{slow.at_s:.3f}",
            *(_us(us) for us in (slow.latency_us, slow.late_us, slow.queue_us, slow.model_us, slow.rest_us)),
            str(slow.batch_rows),
            str(slow.connection),
        )
    return table


def _floor(document: Document, console: Console) -> None:
    floor = document.floor
    assert floor is not None
    if document.load.connections * document.load.in_flight == 1:
        table = Table(
            title=f"against the floor, microseconds; {floor.rounds} rounds in turns",
            title_justify="left",
            title_style="bold",
        )
        for name in (
            "",
            "native echo",
            "bare backend",
            "floor (sum)",
            "sigd",
            "ratio, median",
            "ratio, pooled",
        ):
            table.add_column(name, justify="left" if name == "" else "right")
        for ratio in floor.ratios:
            table.add_row(
                f"p{ratio.percentile:g}",
                *(_us(us) for us in (ratio.echo_us, ratio.bare_us, ratio.floor_us, ratio.sigd_us)),
                f"{ratio.ratio_median:.2f}",
                f"{ratio.ratio_pooled:.2f}",
            )
        console.print(table)


def _rate(document: Document, console: Console) -> None:
    floor = document.floor
    console.print(
        f"rate     {document.signals_per_s:,.0f} signals/s, {document.ns_per_request:,.0f} ns a request"
        + (
            "; the backend echo runs no model: this is the daemon alone"
            if document.model.backend == "echo"
            else ""
        )
    )
    if floor is not None:
        console.print(
            f"         {floor.throughput_ratio:.1%} of the {floor.bare_rows_per_s:,.0f} rows/s of the bare"
            " backend at "
            f"{floor.bare_batch_rows} rows a call"
        )


def _verdict(document: Document, console: Console) -> None:
    p99 = f"p99 {_us(document.latency.p99_us)} us"
    if document.passed and document.budget_us is None:
        console.print(Text(f"VALID    {p99}, held to no budget", style="bold"))
        return
    if document.passed:
        console.print(
            Text(f"PASS     {p99} within the budget of {document.budget_us:g} us", style="bold green")
        )
        return
    style = "red"
    if document.inconclusive:
        word, style = "INCONCLUSIVE, the machine was taken away", "yellow"
    else:
        word = "FAIL" if document.valid else "INVALID, the figures may not be quoted"
    console.print(Text(word, style=f"bold {style}"))
    for reason in document.reasons:
        console.print(Text(f"         {reason}", style=style))


def _us(us: float) -> str:
    return f"{us:,.1f}" if us >= 10 else f"{us:,.2f}"
