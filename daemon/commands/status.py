"""`sigd status`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from sigd.daemon.admin.client import ask_status, percentile_ns
from sigd.daemon.admin.messages import LatencyStatus, ModelStatus, Status
from sigd.daemon.config.config import admin_path_of, running_socket_path
from sigd.daemon.recording.status import RecorderStatus
from sigd.daemon.serving.counters import BEYOND_NS, BEYOND_SHOWN
from sigd.daemon.shadow.status import ShadowStatus
from sigd.daemon.transport.lane_status import LaneStatus

PERCENTS = (50.0, 90.0, 99.0, 99.9, 99.99)


@click.command(
    epilog="""\b
Examples:
  sigd status
  sigd status --socket /run/sigd/sigd.sock --json | jq '.models[0].answers'"""
)
@click.option("--socket", type=click.Path(path_type=Path), help="The daemon's socket.")
@click.option(
    "--admin-socket", type=click.Path(path_type=Path), help="Its admin socket, where it is elsewhere."
)
@click.option(
    "--json", "as_json", is_flag=True, help="The counters as JSON, with the percentiles worked out."
)
def status(socket: Path | None, admin_socket: Path | None, as_json: bool) -> None:
    """Counters and latency percentiles of a running daemon, since its start."""
    answer = ask_status(admin_socket or admin_path_of(socket or running_socket_path()))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(_with_percentiles(answer))).decode())
    else:
        _show(answer)


def _with_percentiles(answer: Status) -> dict[str, object]:
    fields: dict[str, object] = msgspec.to_builtins(answer)
    fields["models"] = [
        {
            **msgspec.to_builtins(model),
            **{name: percentiles(getattr(model, name)) for name in ("total", "queue", "infer")},
        }
        for model in answer.models
    ]
    return fields


def percentiles(latency: LatencyStatus) -> dict[str, float]:
    """As JSON shows them, in us, with the count and the worst."""
    return {
        "count": sum(count for _, count in latency.bins),
        **{f"p{percent:g}_us": _percentile_us(latency, percent) for percent in PERCENTS},
        "max_us": latency.max_ns / 1000,
        "longer_than_1073742_us": sum(count for edge_ns, count in latency.bins if edge_ns == BEYOND_NS),
    }


def _percentile_us(latency: LatencyStatus, percent: float) -> float:
    """The upper edge of a bin may lie above the largest duration in it."""
    return min(percentile_ns(latency.bins, percent), latency.max_ns) / 1000


def shown_percentile(latency: LatencyStatus, percent: float) -> str:
    """As the table shows it, in us; a bound where it lies beyond the bins."""
    if percentile_ns(latency.bins, percent) == BEYOND_NS:
        return BEYOND_SHOWN
    return f"{_percentile_us(latency, percent):.1f}"


def _show(answer: Status) -> None:
    # Lines are not folded: a program that reads them through a pipe wants each figure on its line.
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"sigd {answer.version}, pid {answer.pid}, up {answer.uptime_ns / 1e9:,.0f} s, idle strategy"
        f" {answer.idle},"
        f" {answer.resident_bytes / 2**20:.1f} MiB resident"
    )
    console.print(
        f"connections {answer.connections_open} open, {answer.connections_accepted} accepted;"
        f" {answer.slow_readers} slow readers cut off"
    )
    loop = answer.loop
    console.print(
        f"loop: {loop.stalls:,} stalls seen, the worst {loop.worst_ns / 1e6:.1f} ms; made to give way"
        f" {loop.involuntary_switches:,} times; {loop.major_faults:,} pages from disk; {loop.collections}"
        " collections"
    )
    for lane in answer.lanes:
        console.print(_lane(lane))
    if answer.recorder is not None:
        console.print(_recording(answer.recorder))
    if answer.rejects:
        console.print("rejects: " + ", ".join(f"{name} {count:,}" for name, count in answer.rejects.items()))
    for model in answer.models:
        _show_model(console, model)


def _lane(lane: LaneStatus) -> str:
    reasons = ", ".join(f"{why} {count:,}" for why, count in sorted(lane.handed_over.items()))
    python_s = lane.sessions - lane.lent
    lost = "" if lane.realtime else " lost just now"
    priority = f", priority {lane.priority}{lost}, given up {lane.yields:,} times" if lane.priority else ""
    stalls = f"; {lane.stalls:,} seconds without a round" if lane.stalls else ""
    return (
        f"lane on core {lane.core}{', asleep' if lane.asleep else ''}{priority}: {lane.sessions} sessions"
        f"{f' ({python_s} with Python just now)' if python_s else ''}, {lane.requests:,} requests;"
        f" handed to Python: {reasons or 'none'}{stalls}{'; STALLED' if lane.stalled else ''}"
    )


def _recording(recorder: RecorderStatus) -> str:
    waiting = recorder.written_bytes - recorder.stored_bytes
    paused = f"; PAUSED: {recorder.paused_because}" if recorder.paused_because else ""
    return (
        f"recording {recorder.recording}: {recorder.requests:,} requests, {recorder.dropped:,} dropped,"
        f" {waiting:,} bytes not stored yet{paused}"
    )


def _shadow(shadow: ShadowStatus) -> str:
    statistics = shadow.statistics
    what = f"sha256 {shadow.sha256[:16]} on {shadow.backend}" if shadow.running else "NOT RUNNING"
    rows = f"{statistics.compared:,} rows compared, {shadow.skipped:,} skipped, {statistics.failed:,} failed"
    if not statistics.compared:
        return f"  shadow {shadow.path}, {what}: {rows}"
    drifts = [abs(output.drift) for output in statistics.outputs if output.drift is not None]
    drift = f", drift at most {max(drifts):.3g} deviations" if drifts else ""
    return (
        f"  shadow {shadow.path}, {what}: {rows}; {statistics.agreed / statistics.compared:.2%} agree, apart"
        " by"
        f" {statistics.difference_sum / statistics.compared:.3g} on average and"
        f" {statistics.difference_max:.3g} at most{drift}"
    )


def _show_model(console: Console, model: ModelStatus) -> None:
    console.print(
        f"model {model.name} ({model.features} -> {model.outputs}) generation {model.generation} on"
        f" {model.backend}, sha256 {model.sha256[:16]}"
    )
    if model.configured:
        console.print(f"  serves {model.path}, and not {model.configured} of the configuration")
    if model.reloads or model.reloads_refused:
        console.print(f"  reloads: {model.reloads:,} served, {model.reloads_refused:,} refused")
    answers = ", ".join(f"{name} {count:,}" for name, count in model.answers.items() if count)
    console.print(f"  answers: {answers or 'none yet'}; {model.pending_rows} requests pending")
    if model.shadow is not None:
        console.print(_shadow(model.shadow))
    batches = sum(model.batches_by_rows.values())
    if not batches:
        return
    rows = sum(size * count for size, count in model.batches_by_rows.items())
    console.print(f"  batches: {batches:,}, {rows / batches:.2f} rows on average")
    table = Table("us", *(f"p{percent:g}" for percent in PERCENTS), "max")
    for name, latency in (("total", model.total), ("queue", model.queue), ("model", model.infer)):
        table.add_row(
            name,
            *(shown_percentile(latency, percent) for percent in PERCENTS),
            f"{latency.max_ns / 1000:.1f}",
        )
    console.print(table)
