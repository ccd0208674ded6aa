"""An interval as a person sees it: a screen of 80 columns and 24 lines or more, or one line for a log."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from sigd.daemon.runtime.text import printable
from sigd.daemon.serving.counters import BEYOND_SHOWN, END_NS
from sigd.daemon.top.interval import (
    Durations,
    Interval,
    LaneInterval,
    ModelInterval,
    busiest,
    share_of_model,
)

BAR_COLUMNS: Final = 50
TREND_COLUMNS: Final = 60
MODEL_LINES: Final = 9
LANES_SHOWN: Final = 4
_HEIGHTS: Final = "▁▂▃▄▅▆▇█"
_FIXED_LINES: Final = 9
_QUIET: Final = "dim"
_ALARM: Final = "bold red"


class Screen:
    """What is shown, and what of the intervals before is still needed for it.

    Args:
        socket: where is asked, for when no daemon answers.
    """

    def __init__(self, socket: str, every_s: float) -> None:
        self._socket = socket
        self._every_s = every_s
        self._interval: Interval | None = None
        self._silence = ""
        self._trends: dict[str, deque[float]] = {}

    def show(self, interval: Interval) -> None:
        """The newest interval."""
        self._interval = interval
        self._silence = ""
        for model in interval.models:
            trend = self._trends.setdefault(model.name, deque(maxlen=TREND_COLUMNS))
            trend.append(model.total.p99_us)
        for name in self._trends.keys() - {model.name for model in interval.models}:
            del self._trends[name]

    def silent(self, reason: str) -> None:
        """No daemon answered."""
        self._silence = reason

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._interval is None:
            yield Text(f"asking {printable(self._socket)} ...")
        else:
            yield self._body(self._interval, options.max_height)

    def _body(self, interval: Interval, lines: int) -> RenderableType:
        parts: list[RenderableType] = [_heading(interval), self._state(interval)]
        lanes = _lanes(interval.lanes)
        room = max((lines - _FIXED_LINES - len(lanes)) // MODEL_LINES, 1)
        models = busiest(interval.models) if len(interval.models) > room else interval.models
        for model in models[:room]:
            parts += [Text(), *_model(model, interval.seconds), self._trend(model.name)]
        if len(models) > room:
            parts.append(Text(f"and {len(models) - room} more models with fewer requests", _QUIET))
        parts += [Text(), *_clients(interval), _loop(interval), *lanes]
        if interval.recorded_a_second is not None:
            parts.append(_recorder(interval, interval.recorded_a_second))
        parts.append(Text(f"every {self._every_s:g} s · q leaves", _QUIET))
        return Group(*parts)

    def _state(self, interval: Interval) -> Text:
        if self._silence:
            return _line(Text(f"no answer, these are the last figures: {self._silence}", _ALARM))
        if interval.restarted:
            return _line(Text("another daemon than before: since its start", "bold yellow"))
        return _line(Text(f"the last {interval.seconds:.1f} s", _QUIET))

    def _trend(self, name: str) -> Text:
        values = self._trends[name]
        top = max(values)
        heights = "".join(
            _HEIGHTS[min(int(value / top * len(_HEIGHTS)), len(_HEIGHTS) - 1)] if value else " "
            for value in values
        )
        return _line(Text.assemble(("p99   ", _QUIET), (heights, "cyan"), (f" to {_us(top)} us", _QUIET)))


def plain(interval: Interval) -> str:
    """A line for each model, with names that need no column."""
    lines = []
    for model in interval.models:
        total = model.total
        fields = {
            "model": printable(model.name),
            "requests/s": f"{model.requests_a_second:,.0f}",
            "p50_us": _number(total, 50, total.p50_us),
            "p99_us": _number(total, 99, total.p99_us),
            "p99.9_us": _number(total, 99.9, total.p99_9_us),
            "max_us": _us(total.max_us) if _is_known(total) else _number(total, 100, total.max_us),
            "model_p50_us": _number(model.model, 50, model.model.p50_us),
            "rows/batch": f"{model.rows_a_batch:.1f}",
            "in_flight": f"{model.in_flight}",
            **{name: f"{count:,}" for name, count in model.answers.items() if name != "OK"},
            "clients": f"{sum(interval.clients.values())}",
            "stalls": f"{interval.stalls}",
        }
        if interval.restarted:
            fields["restarted"] = "yes"
        lines.append(" ".join(f"{name}={value}" for name, value in fields.items()))
    return "\n".join(lines)


def _heading(interval: Interval) -> Text:
    return _line(
        Text.assemble(
            ("sigd ", "bold"),
            (interval.version, "bold"),
            f"  pid {interval.pid}  up {_span(interval.uptime_s)}  {interval.idle}"
            f"  {interval.resident_bytes / 2**20:,.0f} MiB  ",
            (printable(interval.socket), _QUIET),
        )
    )


def _model(model: ModelInterval, seconds: float) -> list[RenderableType]:
    heading = Text.assemble(
        (printable(model.name), "bold"),
        f" ({model.features} -> {model.outputs})  generation {model.generation}"
        f"{f'  reloads {model.reloads:,}' if model.reloads else ''}",
        (f"  reloads refused {model.reloads_refused:,}" if model.reloads_refused else "", _ALARM),
        f"  {model.backend}  ",
        (model.sha256[:12], _QUIET),
    )
    rates = Text.assemble(
        (f"{model.requests_a_second:,.0f} requests/s", "bold green"),
        f"  {model.batches_a_second:,.0f} batches/s of {model.rows_a_batch:.1f} rows"
        f"  {model.in_flight:,} in flight, {model.waiting:,} waiting",
    )
    for name, count in model.answers.items():
        if name != "OK":
            rates.append(f"  {name} {count / seconds:,.0f}/s", _ALARM)
    return [_line(heading), _line(rates), _percentiles(model), _bar(model)]


def _percentiles(model: ModelInterval) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=_QUIET)
    table.add_column("us", width=5)
    for heading in ("mean", "p50", "p90", "p99", "p99.9", "max"):
        table.add_column(heading, justify="right", width=9)
    stages: Mapping[str, Durations] = {"total": model.total, "queue": model.queue, "model": model.model}
    for name, of in stages.items():
        table.add_row(name, *(_figures(of) if of.count else ["-"] * 6))
    return table


def _figures(of: Durations) -> list[str]:
    mean = f"< {of.mean_us / 1e6:,.1f} s" if of.longer_than_1073742_us else _cell(of.mean_us)
    percentiles = ((50, of.p50_us), (90, of.p90_us), (99, of.p99_us), (99.9, of.p99_9_us))
    shown = [BEYOND_SHOWN if of.lies_beyond(percent) else _cell(value) for percent, value in percentiles]
    return [mean, *shown, _cell(of.max_us) if _is_known(of) else BEYOND_SHOWN]


def _is_known(of: Durations) -> bool:
    """Whether the longest is, and not only that it took longer than the bins reach."""
    return of.max_is_new or not of.lies_beyond(100)


def _cell(value_us: float) -> str:
    """At most 9 characters, the width of a column."""
    return _us(value_us) if value_us < 10_000_000 else f"{value_us / 1e6:,.1f} s"


def _number(of: Durations, percent: float, value_us: float) -> str:
    """Without a space, for a line that programs split."""
    return f">{END_NS // 1000}" if of.lies_beyond(percent) else _us(value_us)


def _bar(model: ModelInterval) -> Text:
    """Where the mean request's time goes."""
    if not model.total.count:
        return Text("no requests", _QUIET)
    share = share_of_model(model)
    in_model = round(share * BAR_COLUMNS)
    return _line(
        Text.assemble(
            ("█" * in_model, "green"),
            ("▒" * (BAR_COLUMNS - in_model), "yellow"),
            f" {share:.0%} ",
            ("model", "green"),
            f", {1 - share:.0%} ",
            ("queue", "yellow"),
        )
    )


def _clients(interval: Interval) -> list[RenderableType]:
    connected = ", ".join(f"{count} by {transport}" for transport, count in interval.transports.items())
    first = Text(f"clients: {connected or 'none'}; {interval.accepted} came")
    for name, count in (("slow readers", interval.slow_readers), *interval.rejects.items()):
        if count:
            first.append(f"  {name} {count:,}", _ALARM)
    names = "  ".join(
        f"{printable(name) or '(no name)'}{f' x{count}' if count > 1 else ''}"
        for name, count in interval.clients.items()
    )
    return [_line(first), _line(Text(names, "cyan"))]


def _loop(interval: Interval) -> Text:
    text = Text(f"loop: {interval.cpu:.0%} cpu, gave way {interval.involuntary_switches:,}x")
    if interval.waited is not None:
        text.append(f", waited {interval.waited:.1%}")
    text.append(", ")
    text.append(
        f"stalls {interval.stalls:,} ({interval.stalled_ms:.1f} ms)", _ALARM if interval.stalls else ""
    )
    for what, count in (("disk faults", interval.major_faults), ("gc", interval.collections)):
        if count:
            text.append(f", {what} {count:,}", _ALARM)
    return _line(text)


def _lanes(lanes: list[LaneInterval]) -> list[Text]:
    """The busiest, those that stall before them."""
    shown = sorted(lanes, key=lambda lane: (not lane.stalled, -lane.requests_a_second))[:LANES_SHOWN]
    texts = list(map(_lane, shown))
    if len(lanes) > LANES_SHOWN:
        texts.append(Text(f"and {len(lanes) - LANES_SHOWN} more lanes with fewer requests", _QUIET))
    return texts


def _lane(lane: LaneInterval) -> Text:
    text = Text(f"lane {lane.core}: {lane.requests_a_second:,.0f} requests/s, {lane.sessions} sessions")
    if lane.asleep:
        text.append(", asleep", _QUIET)
    if lane.stalled:
        text.append(", STALLED", _ALARM)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(lane.handed_over.items()))
    if reasons:
        text.append(f", to Python: {reasons}")
    return _line(text)


def _recorder(interval: Interval, recorded_a_second: float) -> Text:
    text = Text(f"recorder: {recorded_a_second:,.0f} requests/s")
    if interval.dropped:
        text.append(f", dropped {interval.dropped:,}", _ALARM)
    if interval.paused_because:
        text.append(f", paused: {printable(interval.paused_because)}", _ALARM)
    return _line(text)


def _line(text: Text) -> Text:
    text.no_wrap = True
    text.overflow = "ellipsis"
    return text


def _us(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _span(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02} m" if hours else f"{minutes} m {seconds:02} s"
