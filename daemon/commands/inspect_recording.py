"""`sigd inspect` of a flight recording: what is in it, of whom, over which time, and whether it is whole."""

from __future__ import annotations

import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
import numpy as np
import numpy.typing as npt

from sigd.daemon.admin.client import percentile_ns
from sigd.daemon.errors import UsageError
from sigd.daemon.runtime.text import printable
from sigd.wire.errors import NoRecording, RecordingDamaged
from sigd.wire.recording.reader import (
    About,
    Damage,
    Exchanges,
    Recording,
    SessionFacts,
    Unread,
    open_recordings,
)
from sigd.wire.status import Status

PERCENTS = (50.0, 99.0, 99.9)
_BITS_KEPT = 11


class ClientSummary(msgspec.Struct, kw_only=True):
    """What one client asked of one model.

    Attributes:
        sessions: how many of it there were.
        latency_us: from receive to send by the stamps of the answers, by percentile, and the longest.
    """

    client: str
    transport: str
    model: str
    generation: int
    sessions: int
    requests: int
    by_status: dict[str, int]
    latency_us: dict[str, float]


class Summary(msgspec.Struct, kw_only=True):
    """One recording.

    Attributes:
        files: bytes of each segment, by its path.
        ring: where its newest part is; None where all of it is in segments.
        ended: whether its daemon ended as it should; False too where it still records.
        first_at, last_at: when the first and the last request that is there were received, UTC; None without
            any.
        earlier: requests before the first one: their segments were deleted.
        not_recorded: requests that are missing between those that are there: the recorder had no room for
            them.
        unreadable: requests that are missing where the recording is damaged, as far as their number is known.
        rate_per_s: of requests, over the whole span.
        mean_batch_rows: of the answers that ran.
        models: digest in hex, by "name, generation".
    """

    name: str
    about: About | None
    files: dict[str, int]
    ring: str | None
    ended: bool
    first_at: str | None = None
    last_at: str | None = None
    span_s: float = 0.0
    requests: int = 0
    earlier: int = 0
    not_recorded: int = 0
    unreadable: int = 0
    rate_per_s: float = 0.0
    mean_batch_rows: float = 0.0
    by_status: dict[str, int]
    models: dict[str, str]
    clients: list[ClientSummary]
    damage: list[str]


def inspect_recording(path: Path, *, as_json: bool) -> None:
    """Show all recordings there; exit code 1 where something is damaged.

    Raises:
        UsageError: there is none.
    """
    try:
        summaries = [summarise(recording) for recording in open_recordings(path)]
    except (NoRecording, RecordingDamaged) as error:
        raise UsageError(str(error)) from None
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(summaries)).decode())
    else:
        for summary in summaries:
            _show(summary)
    if any(summary.damage for summary in summaries):
        sys.exit(1)


def summarise(recording: Recording) -> Summary:
    """Read all of it."""
    counting = _Counting()
    damage = []
    for item in recording.read():
        if isinstance(item, Damage):
            damage.append(str(item))
            counting.damaged = True
        elif isinstance(item, Unread):
            counting.miss(item)
        else:
            counting.add(item)
    summary = Summary(
        name=recording.name,
        about=recording.about,
        files={str(segment.path): segment.size for segment in recording.segments},
        ring=None if recording.ring is None else str(recording.ring.resolve()),
        ended=recording.ended,
        requests=counting.requests,
        earlier=max(counting.first, 0),
        not_recorded=counting.not_recorded,
        unreadable=counting.unreadable,
        by_status={status.name: counting.by_status[status] for status in Status},
        models=counting.models,
        clients=[client.summary() for client in counting.clients.values()],
        damage=damage,
    )
    if counting.requests:
        header = next(segment.header for segment in recording.segments if segment.header is not None)
        offset_ns = header.wall_ns - header.monotonic_ns
        summary.first_at = _at(counting.first_ns + offset_ns)
        summary.last_at = _at(counting.last_ns + offset_ns)
        summary.span_s = (counting.last_ns - counting.first_ns) / 1e9
        summary.rate_per_s = counting.requests / summary.span_s if summary.span_s else 0.0
        summary.mean_batch_rows = counting.rows_run / counting.batches if counting.batches else 0.0
    return summary


class _Latencies:
    """Durations by their stamps, of any length, to three digits and a half; the longest exactly."""

    def __init__(self) -> None:
        self.max_ns = 0
        self._counts: Counter[int] = Counter()

    def add(self, end_ns: npt.NDArray[np.uint64], begin_ns: npt.NDArray[np.uint64]) -> None:
        durations_ns = np.maximum(end_ns.astype(np.int64) - begin_ns.astype(np.int64), 0)
        self.max_ns = max(self.max_ns, int(durations_ns.max()))
        # What frexp calls the exponent is the length in bits; all but the first 11 bits go.
        shift = np.maximum(np.frexp(durations_ns.astype(np.float64))[1] - _BITS_KEPT, 0)
        upper_ns = ((durations_ns >> shift) + 1 << shift) - 1
        for edge_ns, count in zip(
            *map(np.ndarray.tolist, np.unique(upper_ns, return_counts=True)), strict=True
        ):
            self._counts[edge_ns] += count

    def percentile_ns(self, percent: float) -> int:
        return min(percentile_ns(sorted(self._counts.items()), percent), self.max_ns)


class _Client:
    """The requests of one client to one model."""

    def __init__(self, facts: SessionFacts) -> None:
        self.facts = facts
        self.sessions: set[int] = set()
        self.by_status: Counter[int] = Counter()
        self.latencies = _Latencies()

    def add(self, item: Exchanges) -> None:
        self.sessions.add(item.session)
        self.by_status.update(item.responses["status"].tolist())
        self.latencies.add(item.responses["send_time_ns"], item.responses["receive_time_ns"])

    def summary(self) -> ClientSummary:
        return ClientSummary(
            client=self.facts.client,
            transport=self.facts.transport,
            model=self.facts.model,
            generation=self.facts.generation,
            sessions=len(self.sessions),
            requests=self.by_status.total(),
            by_status={status.name: self.by_status[status] for status in Status if self.by_status[status]},
            latency_us={
                **{f"p{percent:g}": self.latencies.percentile_ns(percent) / 1e3 for percent in PERCENTS},
                "max": self.latencies.max_ns / 1e3,
            },
        )


class _Counting:
    """What is counted over one recording."""

    def __init__(self) -> None:
        self.requests = 0
        self.first = -1
        self.not_recorded = self.unreadable = 0
        self.damaged = False
        self.first_ns = self.last_ns = 0
        self.rows_run = self.batches = 0
        self.by_status: Counter[int] = Counter()
        self.models: dict[str, str] = {}
        self.clients: dict[tuple[str, str, str, int], _Client] = {}
        self._next = -1
        self._last_batch = 0

    def miss(self, item: Unread) -> None:
        """Requests that are there and cannot be read."""
        self._follow(item.first, item.requests)
        self.unreadable += item.requests

    def _follow(self, first: int, requests: int) -> None:
        """What lies between the request before and this one is missing."""
        if self._next < 0:
            self.first = first
        else:
            missing = max(first - self._next, 0)
            if self.damaged:
                self.unreadable += missing
            else:
                self.not_recorded += missing
        self.damaged = False
        self._next = first + requests

    def add(self, item: Exchanges) -> None:
        facts, responses = item.facts, item.responses
        self._follow(item.first, len(responses))
        self.first_ns = self.first_ns or int(responses["receive_time_ns"][0])
        self.last_ns = max(self.last_ns, int(responses["receive_time_ns"][-1]))
        self.requests += len(responses)
        self.by_status.update(responses["status"].tolist())
        ran = int(np.count_nonzero(responses["batch_rows"]))
        if ran:
            self.rows_run += ran
            self.batches += item.batch == 0 or item.batch != self._last_batch
            self._last_batch = item.batch
        self.models[f"{facts.model}, generation {facts.generation}"] = facts.sha256
        key = (facts.client, facts.transport, facts.model, facts.generation)
        self.clients.setdefault(key, _Client(facts)).add(item)


def _at(wall_ns: int) -> str:
    return datetime.fromtimestamp(wall_ns / 1e9, UTC).isoformat(timespec="microseconds")


def _show(summary: Summary) -> None:
    for name, value in _facts(summary):
        click.echo(f"{click.style(f'{name:<13}', bold=True)} {value}")
    for client in summary.clients:
        latency = ", ".join(f"{name} {latency_us:.1f}" for name, latency_us in client.latency_us.items())
        answers = ", ".join(f"{name} {count:,}" for name, count in client.by_status.items())
        sessions = f", {client.sessions} sessions" if client.sessions > 1 else ""
        click.echo(
            f"{click.style('client       ', bold=True)} {printable(client.client)!r}"
            f" ({client.transport}{sessions}), model"
            f" {client.model} {client.generation}: {answers}; {latency} us in the daemon"
        )
    for damage in summary.damage:
        click.echo(click.style(f"damaged       {damage}", fg="red"))


def _facts(summary: Summary) -> list[tuple[str, str]]:
    facts = [("recording", summary.name)]
    if summary.about is not None:
        about = summary.about
        runtimes = ", ".join(f"{package} {version}" for package, version in about.runtimes.items())
        facts.append(("of", f"sigd {about.sigd}, pid {about.pid} on {about.host}; {runtimes}"))
    facts.append(("segments", f"{len(summary.files)}, {sum(summary.files.values()):,} bytes"))
    if summary.ring is not None:
        facts.append(("ring", f"{summary.ring}: its newest part, of a daemon that runs or was killed"))
    elif not summary.ended:
        facts.append(("end", "none: the daemon was killed, or the newest segments are not here"))
    if summary.first_at is not None:
        facts.append(("time", f"{summary.first_at} to {summary.last_at}, {summary.span_s:,.3f} s"))
    requests = f"{summary.requests:,}, {summary.rate_per_s:,.1f}/s"
    if summary.earlier:
        requests += f"; {summary.earlier:,} before them are deleted"
    if summary.not_recorded:
        requests += f"; {summary.not_recorded:,} between them were answered and not recorded"
    if summary.unreadable:
        requests += f"; {summary.unreadable:,} between them cannot be read, because the recording is damaged"
    facts.append(("requests", requests))
    answers = ", ".join(f"{name} {count:,}" for name, count in summary.by_status.items() if count)
    facts.append(("answers", answers or "none"))
    if summary.mean_batch_rows:
        facts.append(("batches", f"{summary.mean_batch_rows:.2f} rows on average"))
    facts += [("model", f"{name}, sha256 {sha256}") for name, sha256 in summary.models.items()]
    return facts
