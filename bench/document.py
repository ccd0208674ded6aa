"""The result as data: what `--json` writes and what the tables are drawn from. Times are microseconds
(`_us`)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from sigd.bench import histogram
from sigd.bench.environment import Environment
from sigd.bench.floor import floor
from sigd.bench.hiccup import Hiccups
from sigd.bench.load.contract import LATE_NS, STATUS_NAMES, Measurement
from sigd.bench.rig import Mode, Outcome
from sigd.bench.stolen import SHARE_MAX
from sigd.models.market.capture import CaptureReader
from sigd.models.market.faults import CaptureFault, FaultKind
from sigd.wire.status import Transport

SCHEMA = 1
_MOMENTS = 200
_PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of one kind of latency."""

    p50_us: float
    p90_us: float
    p99_us: float
    p99_9_us: float
    p99_99_us: float
    max_us: float


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a request's way, from the stamps in its answer."""

    p50_us: float
    p99_us: float


class Slow(msgspec.Struct, frozen=True, kw_only=True):
    """One of the slowest requests, and where its time went.

    Attributes:
        at_s: its intended time, from that of the first of the run shown.
        late_us: sent this long after its intended time.
    """

    at_s: float
    latency_us: float
    late_us: float
    queue_us: float
    model_us: float
    rest_us: float
    batch_rows: int
    connection: int


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A two-hundredth of the run: from `at_s` on, requests by their intended times."""

    at_s: float
    p50_us: float
    p99_us: float
    max_us: float


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A time that the client was stopped; of the run's hiccups the first 4,096."""

    at_s: float
    length_us: float


class LoadFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. `speed` and `capture` are of a capture, `arrivals` of a rate, `ring_slots` of the
    transport "shm" (the other is "stream"); "" or 0 otherwise.

    Attributes:
        instruments: of each connection, whose history the daemon keeps, one step a request; 0 where
            requests carry whole rows.
        answers_checked: whether every answer was compared with what the model says to the whole window.
    """

    mode: str
    arrivals: str
    capture: str
    speed: float
    rate_intended_hz: float
    rate_achieved_hz: float
    connections: int
    in_flight: int
    transport: str
    ring_slots: int
    warmup_s: float
    elapsed_s: float
    client: str
    client_note: str
    seed: int
    instruments: int = 0
    answers_checked: bool = False


class Accounting(msgspec.Struct, frozen=True, kw_only=True):
    """Every request of the measurement: requests = sent + never sent, sent = answers by status + lost."""

    requests: int
    sent: int
    answered: int
    lost: int
    by_status: dict[str, int]


class LateSends(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that left more than `threshold_us` after their intended time; `worst_us` is over all
    requests."""

    threshold_us: float
    count: int
    worst_us: float


class HiccupFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Times that a core was taken away. `when` is before, during (seen by the waiting client) or after the
    run."""

    when: str
    cpu: int | None
    seconds: float
    count: int
    worst_us: float
    sum_us: float


class MemoryFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon's resident memory in KiB."""

    after_warmup_kib: int
    at_end_kib: int
    growth_kib: int


class StolenFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of the run's time that the machine took away; see `sigd.bench.stolen.Stolen`. Above `share_max`
    a run that does not pass is inconclusive."""

    daemon_waited: float
    hypervisor: float
    client: float
    share_max: float


class FloorRatio(msgspec.Struct, frozen=True, kw_only=True):
    """sigd against the floor at one percentile; see `sigd.bench.floor.floor.Ratio`."""

    percentile: float
    echo_us: float
    bare_us: float
    floor_us: float
    sigd_us: float
    ratio_median: float
    ratio_pooled: float


class FloorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The floor.

    Attributes:
        bare_rows_per_s: of the bare backend at `bare_batch_rows` rows a call.
        signals_per_s: of sigd in this run.
        throughput_ratio: the one over the other, median over the rounds.
    """

    rounds: int
    ratios: list[FloorRatio]
    bare_batch_rows: int
    bare_rows_per_s: float
    signals_per_s: float
    throughput_ratio: float


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What was served, and the daemon's cores; `idle` and `backend` are "default" where nothing was asked
    for. `features` are of one request, `history_steps` those that the model looks at where each carries one
    step. With `lane_cpus` these answer, `idle` is theirs, and `daemon_cpu` is the loop's."""

    name: str
    sha256: str
    features: int
    outputs: int
    in_flight_max: int
    generation_first: int
    generation_last: int
    backend: str
    idle: str
    daemon_cpu: int | None
    client_cpu: int | None
    history_steps: int = 0
    lane_cpus: list[int] = []


class CaptureFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the requests were made from.

    Attributes:
        stamp_unit: of its times: "s", "ms", "us" or "ns".
        faults: what is wrong with it, by kind.
        first_faults: the first of each kind, with line and time.
    """

    stamp_unit: str
    faults: dict[FaultKind, int]
    first_faults: list[CaptureFault]


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """The whole result.

    Attributes:
        valid: whether the figures may be quoted; `reasons` says why not.
        passed: valid and within the budget.
        inconclusive: not passed, and the machine took so much time away that this says nothing of the daemon.
        latency: from the intended send time (a closed loop: from the send). `uncorrected`: from the send.
        max_over_median: of `latency`.
        ns_per_request: of the run's time, for each answered request, whatever its status.
        reloads_s: when an answer first named another generation of the model, in seconds of the run.
        hdr: `latency` as an HdrHistogram in ns, V2 compressed and base64, to merge with others.
    """

    schema: int
    valid: bool
    passed: bool
    inconclusive: bool
    reasons: list[str]
    budget_us: float | None
    latency: Percentiles
    uncorrected: Percentiles
    max_over_median: float
    stages: dict[str, Stage]
    mean_batch_rows: float
    signals_per_s: float
    ns_per_request: float
    load: LoadFacts
    accounting: Accounting
    late_sends: LateSends
    hiccups: list[HiccupFacts]
    stolen: StolenFacts
    memory: MemoryFacts | None
    floor: FloorFacts | None
    capture: CaptureFacts | None
    slowest: list[Slow]
    timeline: list[Moment]
    gaps: list[Gap]
    reloads_s: list[float]
    model: Model
    environment: Environment
    hdr: str


def document(outcome: Outcome) -> Document:
    """Put an outcome into the form that is written and shown."""
    measured, judged = outcome.measurement, outcome.verdict
    latency = _percentiles(measured.counts.corrected)
    budget_ns = outcome.settings.budget_ns
    return Document(
        schema=SCHEMA,
        valid=judged.valid,
        passed=judged.passed,
        inconclusive=judged.inconclusive,
        reasons=list(judged.reasons),
        budget_us=None if budget_ns is None else budget_ns / 1000,
        latency=latency,
        uncorrected=_percentiles(measured.counts.uncorrected),
        max_over_median=round(latency.max_us / latency.p50_us, 1) if latency.p50_us else 0.0,
        stages={name: _stage(getattr(measured.counts, name)) for name in ("queue", "model", "rest")},
        mean_batch_rows=round(measured.batch_rows_sum / measured.statuses[0], 2)
        if measured.statuses[0]
        else 0.0,
        signals_per_s=round(floor.signals_per_s(measured), 1),
        ns_per_request=round(measured.elapsed_ns / measured.received, 1) if measured.received else 0.0,
        load=_load(outcome),
        accounting=Accounting(
            requests=measured.requests,
            sent=measured.sent,
            answered=measured.received,
            lost=measured.lost,
            by_status=dict(zip(STATUS_NAMES, measured.statuses, strict=True)),
        ),
        late_sends=LateSends(
            threshold_us=LATE_NS / 1000, count=measured.late_sends, worst_us=_us(measured.late_worst_ns)
        ),
        hiccups=_hiccups(outcome),
        stolen=StolenFacts(
            daemon_waited=round(outcome.stolen.daemon_waited, 5),
            hypervisor=round(outcome.stolen.hypervisor, 5),
            client=round(outcome.stolen.client, 5),
            share_max=SHARE_MAX,
        ),
        memory=_memory(outcome),
        floor=_floor(outcome),
        capture=_capture(outcome.capture),
        slowest=_slowest(measured),
        timeline=_timeline(measured),
        gaps=_gaps(measured),
        reloads_s=_reloads_s(measured),
        model=_model(outcome),
        environment=outcome.environment,
        hdr=histogram.hdr(measured.counts.corrected).encode().decode(),
    )


def _us(ns: float) -> float:
    return round(ns / 1000, 3)


def _percentiles(counts: histogram.Counts) -> Percentiles:
    p50, p90, p99, p99_9, p99_99, largest = (_us(ns) for ns in histogram.percentiles_ns(counts, _PERCENTILES))
    return Percentiles(p50_us=p50, p90_us=p90, p99_us=p99, p99_9_us=p99_9, p99_99_us=p99_99, max_us=largest)


def _stage(counts: histogram.Counts) -> Stage:
    p50, p99 = histogram.percentiles_ns(counts, (50.0, 99.0))
    return Stage(p50_us=_us(p50), p99_us=_us(p99))


def _load(outcome: Outcome) -> LoadFacts:
    settings = outcome.settings
    is_capture = settings.mode is Mode.CAPTURE
    return LoadFacts(
        mode="closed loop" if settings.mode is Mode.CLOSED_LOOP else "open loop",
        arrivals=settings.arrivals if settings.mode is Mode.RATE else "",
        capture=settings.capture.name if is_capture and settings.capture is not None else "",
        speed=settings.speed if is_capture else 0.0,
        rate_intended_hz=round(outcome.verdict.rate_intended_hz, 1),
        rate_achieved_hz=round(outcome.verdict.rate_achieved_hz, 1),
        connections=settings.connections,
        in_flight=outcome.in_flight,
        transport="shm" if settings.transport is Transport.SHARED_MEMORY else "stream",
        ring_slots=outcome.welcome.ring_slots,
        warmup_s=settings.warmup_s,
        elapsed_s=round(outcome.measurement.elapsed_ns / 1e9, 3),
        client=outcome.measurement.client,
        client_note=outcome.client_note,
        seed=settings.seed,
        instruments=settings.history_instruments or 0,
        answers_checked=outcome.answers_checked,
    )


def _hiccups(outcome: Outcome) -> list[HiccupFacts]:
    measured = outcome.measurement
    during = HiccupFacts(
        when="during",
        cpu=outcome.cpus[1],
        seconds=round(measured.elapsed_ns / 1e9, 3),
        count=measured.hiccups,
        worst_us=_us(measured.hiccup_worst_ns),
        sum_us=_us(measured.hiccup_sum_ns),
    )
    return [*_around("before", outcome.hiccups_before), during, *_around("after", outcome.hiccups_after)]


def _around(when: str, found: Sequence[Hiccups]) -> list[HiccupFacts]:
    return [
        HiccupFacts(
            when=when,
            cpu=one.cpu,
            seconds=round(one.spun_ns / 1e9, 3),
            count=one.gaps,
            worst_us=_us(one.worst_ns),
            sum_us=_us(one.sum_ns),
        )
        for one in found
    ]


def _memory(outcome: Outcome) -> MemoryFacts | None:
    memory = outcome.memory
    if memory is None:
        return None
    return MemoryFacts(
        after_warmup_kib=memory.after_warmup // 1024,
        at_end_kib=memory.at_end // 1024,
        growth_kib=(memory.at_end - memory.after_warmup) // 1024,
    )


def _floor(outcome: Outcome) -> FloorFacts | None:
    if not outcome.rounds:
        return None
    pooled = floor.pool(outcome.rounds)
    return FloorFacts(
        rounds=len(outcome.rounds),
        ratios=[
            FloorRatio(
                percentile=ratio.percentile,
                echo_us=_us(ratio.echo_ns),
                bare_us=_us(ratio.bare_ns),
                floor_us=_us(ratio.floor_ns),
                sigd_us=_us(ratio.sigd_ns),
                ratio_median=round(ratio.median, 3),
                ratio_pooled=round(ratio.pooled, 3),
            )
            for ratio in floor.ratios(outcome.rounds)
        ],
        bare_batch_rows=pooled.bare_batch.rows,
        bare_rows_per_s=round(pooled.bare_batch.rows_per_s, 1),
        signals_per_s=round(floor.signals_per_s(pooled.sigd), 1),
        throughput_ratio=round(floor.throughput_ratio(outcome.rounds), 3),
    )


def _capture(reader: CaptureReader | None) -> CaptureFacts | None:
    if reader is None:
        return None
    return CaptureFacts(
        stamp_unit=reader.stamp_unit,
        faults=reader.faults.counts,
        first_faults=reader.faults.first,
    )


def _slowest(measured: Measurement) -> list[Slow]:
    if not len(measured.slowest):
        return []
    first_ns = int(measured.samples["intended_ns"].min())
    rows = []
    for sample in measured.slowest:
        intended_ns, sent_ns, received_ns = (
            int(sample[name]) for name in ("intended_ns", "sent_ns", "received_ns")
        )
        inside_ns = int(sample["send_time_ns"]) - int(sample["receive_time_ns"])
        infer_ns = int(sample["infer_ns"])
        rows.append(
            Slow(
                at_s=round((intended_ns - first_ns) / 1e9, 6),
                latency_us=_us(received_ns - intended_ns),
                late_us=_us(sent_ns - intended_ns),
                queue_us=_us(inside_ns - infer_ns),
                model_us=_us(infer_ns),
                rest_us=_us(received_ns - sent_ns - inside_ns),
                batch_rows=int(sample["batch_rows"]),
                connection=int(sample["connection"]),
            )
        )
    return rows


def _timeline(measured: Measurement) -> list[Moment]:
    samples = measured.samples
    if not len(samples):
        return []
    intended_ns = samples["intended_ns"]
    first_ns = int(intended_ns.min())
    span_ns = max(int(intended_ns.max()) - first_ns, 1)
    parts = min(_MOMENTS, len(samples))
    part = np.minimum((intended_ns - first_ns) * parts // span_ns, parts - 1)
    latency_ns = samples["received_ns"] - intended_ns
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[order], np.arange(parts + 1))
    moments = []
    for number in range(parts):
        own = latency_ns[order[bounds[number] : bounds[number + 1]]]
        if own.size:
            p50, p99, longest = (_us(float(ns)) for ns in np.percentile(own, (50, 99, 100)))
            at_s = round(number * span_ns / parts / 1e9, 6)
            moments.append(Moment(at_s=at_s, p50_us=p50, p99_us=p99, max_us=longest))
    return moments


def _gaps(measured: Measurement) -> list[Gap]:
    if not len(measured.samples):
        return []
    first_ns = int(measured.samples["intended_ns"].min())
    return [
        Gap(at_s=round((int(ended_ns) - int(length_ns) - first_ns) / 1e9, 6), length_us=_us(int(length_ns)))
        for ended_ns, length_ns in measured.gaps
    ]


def _reloads_s(measured: Measurement) -> list[float]:
    samples = np.sort(measured.samples, order="intended_ns")
    changed = np.flatnonzero(np.diff(samples["model_generation"].astype(np.int64))) + 1
    return [
        round(int(at_ns - samples["intended_ns"][0]) / 1e9, 6) for at_ns in samples["intended_ns"][changed]
    ]


def _model(outcome: Outcome) -> Model:
    welcome, serve = outcome.welcome, outcome.settings.serve
    return Model(
        name=welcome.model_name,
        sha256=welcome.model_sha256.hex(),
        features=welcome.features,
        outputs=welcome.outputs,
        in_flight_max=welcome.in_flight_max,
        generation_first=outcome.measurement.generation_first,
        generation_last=outcome.measurement.generation_last,
        backend=serve.backend or "default",
        idle=(serve.lane_idle if serve.lane_cpus else serve.idle) or "default",
        daemon_cpu=outcome.cpus[0],
        client_cpu=outcome.cpus[1],
        history_steps=welcome.history_steps,
        lane_cpus=list(serve.lane_cpus),
    )
