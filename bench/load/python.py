"""The load generator in Python, for machines without a compiler. It spins like the one in C++, and sees the
same
things, but its own work is part of what it measures: several microseconds a request.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sigd.bench import histogram
from sigd.bench.errors import PeerFailed
from sigd.bench.load.channel import BrokenContract, Channel, SocketChannel, rejection
from sigd.bench.load.contract import (
    HICCUP_BUSY_NS,
    HICCUP_NS,
    SAMPLE,
    STATUS_NAMES,
    LatencyCounts,
    LoadPlan,
    Measurement,
    Violation,
    ViolationKind,
    slowest_of,
)
from sigd.bench.load.pacing import Asked, Pacer
from sigd.bench.load.ring_channel import RingChannel
from sigd.bench.pinning import pinned
from sigd.wire import fields
from sigd.wire.layout import (
    HEADER_STRUCT,
    REQUEST_INSTRUMENT_WORD,
    REQUEST_SEQUENCE_WORD,
    RESPONSE_OUTPUTS_OFFSET,
    response_frame_bytes,
)
from sigd.wire.messages import Welcome
from sigd.wire.status import RequestFlag, Status, Transport

_HEADER_BYTES = fields.HEADER_BYTES
_RESPONSE = struct.Struct("<QQQQIIIHH")
_ECHOED = struct.Struct("<QQ")
_SEQUENCE_OFFSET = 8 * REQUEST_SEQUENCE_WORD
_INSTRUMENT_OFFSET = 8 * REQUEST_INSTRUMENT_WORD
_FLAGS_OFFSET = _INSTRUMENT_OFFSET + 4
_LEAD_NS = 1_000_000
#: Python's own work on a batch of requests may well take ten times as long as that of the native client.
_BUSY_GAP_NS = 10 * HICCUP_BUSY_NS
assert _HEADER_BYTES + _RESPONSE.size == RESPONSE_OUTPUTS_OFFSET


class PythonLoad:
    """Measures with one spinning Python thread."""

    name = "python"

    def run(self, plan: LoadPlan, on_measuring: Callable[[], None]) -> Measurement:
        """See `sigd.bench.load.contract.LoadGenerator`."""
        in_rings = plan.hello.transport == Transport.SHARED_MEMORY
        make_channel = RingChannel if in_rings else SocketChannel
        channels: list[SocketChannel] = []
        try:
            welcome = b""
            for number in range(plan.connections):
                channel = make_channel(plan.socket_path)
                channels.append(channel)
                welcome = channel.open(number, plan.hello.encode())
                _check_room(plan, Welcome.decode(welcome[_HEADER_BYTES:]))
            with pinned(plan.cpu):
                _store(plan, channels, welcome)
                return drive(plan, channels, welcome, on_measuring, time.monotonic_ns)
        except BrokenContract as broken:
            return _Findings(plan, Pacer(plan, time.monotonic_ns())).measurement(b"", broken.violation)
        finally:
            for channel in channels:
                channel.close()


def _store(plan: LoadPlan, channels: Sequence[Channel], welcome: bytes) -> None:
    """Every connection stores its first steps. Raises BrokenContract where the daemon does not."""
    if not plan.stored:
        return
    frames = plan.frames.copy()
    frames[:, _FLAGS_OFFSET] = RequestFlag.STORE_ONLY
    asked = plan.stored * plan.connections
    filling = replace(plan, frames=frames, intended_ns=np.zeros(asked, np.int64), warmup_ns=0, stored=0)
    found = drive(filling, channels, welcome, lambda: None, time.monotonic_ns)
    if found.violation is not None:
        raise BrokenContract(found.violation)
    stored = found.statuses[Status.STORED]
    if stored != asked:
        raise BrokenContract(
            Violation(ViolationKind.STATUS, 0, asked, stored, "STORED if and only if a step was to be")
        )


def _check_room(plan: LoadPlan, welcome: Welcome) -> None:
    """On a stream the daemon answers BUSY where more are in flight; a ring has no room for them."""
    if welcome.transport == Transport.SHARED_MEMORY and plan.in_flight > welcome.ring_slots:
        raise PeerFailed(f"{plan.in_flight} in flight, the ring was granted {welcome.ring_slots} slots")


def drive(
    plan: LoadPlan,
    channels: Sequence[Channel],
    welcome: bytes,
    on_measuring: Callable[[], None],
    clock_ns: Callable[[], int],
) -> Measurement:
    """Carry out a plan over opened channels until it is over, and say what was seen."""
    # An open loop starts a little later, so that its first request is not late.
    lead_ns = _LEAD_NS if plan.intended_ns is not None else 0
    pacer = Pacer(plan, clock_ns() + lead_ns + plan.warmup_ns)
    findings = _Findings(plan, pacer)
    talks = [_Talk(number, channel, plan, pacer, findings) for number, channel in enumerate(channels)]
    announce_ns = pacer.begin_ns - min(plan.warmup_ns // 2, 50_000_000)
    announced = False
    idle = True
    before_ns = clock_ns()
    try:
        while True:
            now_ns = clock_ns()
            if now_ns >= pacer.begin_ns:
                findings.note_gap(now_ns - before_ns, HICCUP_NS if idle else _BUSY_GAP_NS)
            before_ns = now_ns
            if not announced and now_ns >= announce_ns:
                announced = True
                on_measuring()
            idle = True
            for talk in talks:
                moved = talk.receive(clock_ns)
                moved |= talk.send(clock_ns)
                idle = idle and not moved
            if idle and pacer.over(now_ns):
                return findings.measurement(welcome, None)
    except BrokenContract as broken:
        return findings.measurement(welcome, broken.violation)


class _Findings:
    """What is kept of the answers: one SAMPLE each, in blocks."""

    def __init__(self, plan: LoadPlan, pacer: Pacer) -> None:
        self._plan = plan
        self._pacer = pacer
        self._rows: list[tuple[int, ...]] = []
        self._blocks: list[np.ndarray[tuple[int], np.dtype[np.void]]] = []
        self._hiccups = 0
        self._hiccup_worst_ns = 0
        self._hiccup_sum_ns = 0

    def note_gap(self, gap_ns: int, threshold_ns: int) -> None:
        """The clock moved this far between two looks at it."""
        if gap_ns >= threshold_ns:
            self._hiccups += 1
            self._hiccup_sum_ns += gap_ns
            self._hiccup_worst_ns = max(self._hiccup_worst_ns, gap_ns)

    def record(self, row: tuple[int, ...]) -> None:
        """Keep one answer: the fields of SAMPLE."""
        self._rows.append(row)
        if len(self._rows) == 4096:
            self._flush()

    def _flush(self) -> None:
        self._blocks.append(np.array(self._rows, dtype=SAMPLE))
        self._rows = []

    def measurement(self, welcome: bytes, violation: Violation | None) -> Measurement:
        """All of it, counted."""
        self._flush()
        samples = np.concatenate(self._blocks)
        ok = samples[samples["status"] == Status.OK]
        received = len(samples)
        begin_ns = self._pacer.begin_ns
        kept = samples
        if received > self._plan.samples_max:
            chosen = np.random.default_rng(self._plan.seed).choice(
                received, self._plan.samples_max, replace=False
            )
            kept = samples[np.sort(chosen)]
        return Measurement(
            client=PythonLoad.name,
            welcome=welcome,
            elapsed_ns=max(0, int(samples["received_ns"][-1]) - begin_ns) if received else 0,
            intended_span_ns=int(self._plan.intended_ns[-1]) if self._plan.intended_ns is not None else 0,
            sent_span_ns=self._pacer.last_sent_ns - begin_ns,
            requests=self._pacer.requests,
            sent=self._pacer.sent,
            received=received,
            statuses=tuple(np.bincount(samples["status"], minlength=len(STATUS_NAMES)).tolist()),
            late_sends=self._pacer.late_sends,
            late_worst_ns=self._pacer.late_worst_ns,
            hiccups=self._hiccups,
            hiccup_worst_ns=self._hiccup_worst_ns,
            hiccup_sum_ns=self._hiccup_sum_ns,
            batch_rows_sum=int(ok["batch_rows"].sum()),
            generation_first=int(samples["model_generation"][0]) if received else 0,
            generation_last=int(samples["model_generation"][-1]) if received else 0,
            counts=latency_counts(samples),
            samples=kept,
            slowest=slowest_of(ok),
            violation=violation,
        )


def latency_counts(samples: np.ndarray[tuple[int], np.dtype[np.void]]) -> LatencyCounts:
    """Count the OK answers among SAMPLE rows."""
    ok = samples[samples["status"] == Status.OK]
    inside_ns = ok["send_time_ns"].astype(np.int64) - ok["receive_time_ns"].astype(np.int64)
    infer_ns = ok["infer_ns"].astype(np.int64)
    from_send_ns = ok["received_ns"] - ok["sent_ns"]
    return LatencyCounts(
        corrected=histogram.count(ok["received_ns"] - ok["intended_ns"]),
        uncorrected=histogram.count(from_send_ns),
        queue=histogram.count(inside_ns - infer_ns),
        model=histogram.count(infer_ns),
        rest=histogram.count(from_send_ns - inside_ns),
    )


class _Talk:
    """One connection: bytes out, bytes in, every answer checked."""

    def __init__(
        self, number: int, channel: Channel, plan: LoadPlan, pacer: Pacer, findings: _Findings
    ) -> None:
        self._number = number
        self._channel = channel
        self._pacer = pacer
        self._findings = findings
        self._frames = plan.frames
        self._instruments: list[int] = (
            plan.frames[:, _INSTRUMENT_OFFSET : _INSTRUMENT_OFFSET + 4].copy().view("<u4")[:, 0].tolist()
        )
        self._response_bytes = response_frame_bytes(plan.outputs)
        self._outputs = struct.Struct(f"<{plan.outputs}f")
        self._unsent = memoryview(b"")
        self._arrived = b""

    def send(self, clock_ns: Callable[[], int]) -> bool:
        """Send what is due and has room; what the socket does not take now waits. True where something
        moved."""
        moved = False
        if not self._unsent:
            now_ns = clock_ns()
            due = self._pacer.take_due(self._number, now_ns)
            if not due:
                return False
            moved = True
            self._unsent = self._encoded(due)
        try:
            taken = self._channel.send(self._unsent)
        except OSError as error:
            raise self._broken(ViolationKind.CLOSED_EARLY, 0, self._waiting(), str(error)) from error
        self._unsent = self._unsent[taken:]
        return moved or taken > 0

    def _encoded(self, due: list[Asked]) -> memoryview:
        block = self._frames[[asked.frame for asked in due]]
        for row, asked in zip(block, due, strict=True):
            _ECHOED.pack_into(row.data, _SEQUENCE_OFFSET, asked.sequence, asked.sent_ns)
        return block.data.cast("B")

    def receive(self, clock_ns: Callable[[], int]) -> bool:
        """Take what has arrived and check every whole answer of it. True where something has."""
        got = self._channel.receive()
        if got is None:
            raise self._broken(ViolationKind.CLOSED_EARLY, 0, self._waiting(), "end of stream")
        if not got:
            return False
        now_ns = clock_ns()
        data = self._arrived + got if self._arrived else got
        at = 0
        while len(data) - at >= _HEADER_BYTES:
            block_length, template_id, schema_id, version = HEADER_STRUCT.unpack_from(data, at)
            end = at + _HEADER_BYTES + block_length
            if end > len(data):
                break
            if schema_id != fields.SCHEMA_ID or version < 1:
                raise self._broken(ViolationKind.HEADER, fields.SCHEMA_ID, schema_id, "schema or version")
            if template_id == fields.SIGNAL_RESPONSE.template_id:
                self._take(data, at, end, version, now_ns)
            elif template_id == fields.REJECT.template_id:
                raise BrokenContract(rejection(self._number, data[at:end]))
            elif template_id not in (fields.HEARTBEAT.template_id, fields.GOODBYE.template_id):
                raise self._broken(ViolationKind.HEADER, 11, template_id, "template")
            at = end
        self._arrived = data[at:]
        return True

    def _take(self, data: bytes, at: int, end: int, version: int, now_ns: int) -> None:
        length = end - at
        if length < self._response_bytes or (version == 1 and length != self._response_bytes):
            raise self._broken(ViolationKind.HEADER, self._response_bytes, length, "response length")
        asked = self._pacer.oldest(self._number)
        if asked is None:
            raise self._broken(ViolationKind.UNSOLICITED, 0, 0, "nothing was asked")
        (
            sequence,
            client_time_ns,
            receive_ns,
            send_ns,
            instrument,
            generation,
            infer_ns,
            status,
            batch_rows,
        ) = _RESPONSE.unpack_from(data, at + _HEADER_BYTES)
        if sequence != asked.sequence:
            raise self._broken(
                ViolationKind.SEQUENCE, asked.sequence, sequence, "answers keep the requests' order"
            )
        if client_time_ns != asked.sent_ns:
            raise self._broken(ViolationKind.CLIENT_TIME, asked.sent_ns, client_time_ns, "is echoed")
        if instrument != self._instruments[asked.frame]:
            raise self._broken(
                ViolationKind.INSTRUMENT, self._instruments[asked.frame], instrument, "is echoed"
            )
        if status >= len(STATUS_NAMES):
            raise self._broken(ViolationKind.STATUS, len(STATUS_NAMES) - 1, status, "unknown status")
        is_right = math.isfinite if status == Status.OK else math.isnan
        for index, output in enumerate(self._outputs.unpack_from(data, at + RESPONSE_OUTPUTS_OFFSET)):
            if not is_right(output):
                raise self._broken(
                    ViolationKind.OUTPUTS, status, index, "finite if and only if the status is OK"
                )
        if status == Status.OK:
            self._check_stamps(send_ns - receive_ns, infer_ns, now_ns - asked.sent_ns)
        self._pacer.answered(self._number)
        if asked.measured:
            self._findings.record(
                (
                    asked.intended_ns,
                    asked.sent_ns,
                    now_ns,
                    receive_ns,
                    send_ns,
                    infer_ns,
                    generation,
                    status,
                    batch_rows,
                    self._number,
                    0,
                )
            )

    def _check_stamps(self, inside_ns: int, infer_ns: int, round_trip_ns: int) -> None:
        # Durations, not instants, so that a daemon with another clock is held to the same.
        if not 0 <= inside_ns <= round_trip_ns:
            raise self._broken(
                ViolationKind.STAMPS, round_trip_ns, inside_ns, "ns in the daemon, of the whole round trip"
            )
        if infer_ns > inside_ns:
            raise self._broken(
                ViolationKind.STAMPS, inside_ns, infer_ns, "ns in the model, of those in the daemon"
            )

    def _waiting(self) -> int:
        return self._pacer.unanswered(self._number)

    def _broken(self, kind: ViolationKind, expected: int, found: int, text: str) -> BrokenContract:
        return BrokenContract(Violation(kind, self._number, expected, found, text))
