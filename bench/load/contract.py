"""What a load generator is asked for and what it hands back: the seam between the rig and the sender.

A generator takes a `LoadPlan`, verifies every reply and returns a `Measurement`. There are two: `load_native`
(a C++ process) and `load_python` (for machines without a compiler).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sigd.bench import histogram
from sigd.bench.load.schedule import Int64Array
from sigd.wire.messages import Hello
from sigd.wire.status import HelloFlag, Status

STATUS_NAMES = tuple(status.name for status in Status)

LATE_NS = 10_000
HICCUP_NS = 10_000
#: While a client sends or receives, its own work passes for no hiccup until it takes this long.
HICCUP_BUSY_NS = 100_000
SLOWEST_MAX = 16

#: One answered request. Times are CLOCK_MONOTONIC in ns: the first three are the client's, the next two the
# daemon's.
SAMPLE = np.dtype(
    [
        ("intended_ns", "<i8"),
        ("sent_ns", "<i8"),
        ("received_ns", "<i8"),
        ("receive_time_ns", "<u8"),
        ("send_time_ns", "<u8"),
        ("infer_ns", "<u4"),
        ("model_generation", "<u4"),
        ("status", "<u2"),
        ("batch_rows", "<u2"),
        ("connection", "<u2"),
        ("reserved", "<u2"),
    ]
)
assert SAMPLE.itemsize == 56

#: When the client was stopped, and for how long.
GAP = np.dtype([("ended_ns", "<i8"), ("length_ns", "<i8")])


class ViolationKind(enum.IntEnum):
    """How a peer can break the contract. The numbers are those of `native/exchange.hpp`."""

    NONE = 0
    CLOSED_EARLY = 1
    REJECTED = 2
    HEADER = 3
    UNSOLICITED = 4
    SEQUENCE = 5
    CLIENT_TIME = 6
    INSTRUMENT = 7
    STATUS = 8
    OUTPUTS = 9
    STAMPS = 10
    NO_WELCOME = 11
    COUNTER = 12
    WRONG = 13


@dataclass(frozen=True)
class Violation:
    """The first breach of the contract, which ended the run."""

    kind: ViolationKind
    connection: int
    expected: int
    found: int
    text: str

    def __str__(self) -> str:
        return (
            f"protocol violation ({self.kind.name.lower()}) on connection {self.connection}: "
            f"expected {self.expected}, found {self.found}: {self.text}"
        )


@dataclass(frozen=True)
class LoadPlan:
    """What to send, when, and over how many connections.

    Attributes:
        socket_path: of the daemon.
        hello: what every connection asks for.
        frames: uint8, shape (rows, request_bytes): whole SignalRequest frames, sent in turn and over again;
            the generator writes sequence and client_time_ns into its copy.
        outputs: floats for each response, as the Welcome said.
        intended_ns: open loop: int64, when to send each request, in ns from the start of the measurement;
            below 0 is warm-up. None: closed loop.
        requests: closed loop: how many to measure; 0 = as many as `duration_ns` allows.
        duration_ns: closed loop: for how long.
        warmup_ns: from the first request to the first that is measured.
        connections: request i goes over connection i mod `connections`.
        in_flight: most requests unanswered on one connection.
        stall_ns: a request unanswered for so long is lost, and ends the run.
        behind_ns: open loop: where a request is due for so long, it and all after it are not sent: the peer
            cannot follow. 0: all are sent, however late.
        cpu: the core of the sending thread; None = any.
        samples_max: requests kept one by one; beyond, a uniform sample of them. All are counted in any case.
        seed: of that sample.
        expected: float32, shape (rows, outputs): what each frame is to be answered with, within `tolerance`
            times the larger of 1 and the value; None compares with nothing. The Python generator never does.
        stored: steps that each connection sends before the run with STORE_ONLY; 0 without history.
    """

    socket_path: str
    hello: Hello
    frames: npt.NDArray[np.uint8]
    outputs: int
    intended_ns: Int64Array | None = None
    requests: int = 0
    duration_ns: int = 0
    warmup_ns: int = 0
    connections: int = 1
    in_flight: int = 1
    stall_ns: int = 2_000_000_000
    behind_ns: int = 0
    cpu: int | None = None
    samples_max: int = 1 << 20
    seed: int = 0
    expected: npt.NDArray[np.float32] | None = None
    tolerance: float = 1e-3
    stored: int = 0

    @property
    def steps(self) -> bool:
        """Whether the daemon keeps the history: frame j then belongs to connection j mod `connections`, which
        sends its own in turn."""
        return bool(self.hello.flags & HelloFlag.HISTORY)


@dataclass(frozen=True)
class LatencyCounts:
    """Counts (see `sigd.bench.histogram`) over the requests that were answered OK, in ns.

    Attributes:
        corrected: from the intended send time to the answer.
        uncorrected: from the send itself to the answer.
        queue: in the daemon, outside the model.
        model: in the model, for the batch that the request was in.
        rest: outside the daemon: sockets and the client.
    """

    corrected: histogram.Counts = field(default_factory=histogram.empty)
    uncorrected: histogram.Counts = field(default_factory=histogram.empty)
    queue: histogram.Counts = field(default_factory=histogram.empty)
    model: histogram.Counts = field(default_factory=histogram.empty)
    rest: histogram.Counts = field(default_factory=histogram.empty)

    def plus(self, other: LatencyCounts) -> LatencyCounts:
        """The counts of both."""
        return LatencyCounts(
            corrected=self.corrected + other.corrected,
            uncorrected=self.uncorrected + other.uncorrected,
            queue=self.queue + other.queue,
            model=self.model + other.model,
            rest=self.rest + other.rest,
        )


@dataclass(frozen=True)
class Measurement:
    """What one run of a load generator saw. Counts are of measured requests; the warm-up is left out.

    Attributes:
        client: which generator measured: "cpp" or "python".
        welcome: the Welcome frame.
        elapsed_ns: from the start of the measurement to the last answer.
        intended_span_ns: from the start of the measurement to the last intended send time; 0 in a closed
            loop.
        sent_span_ns: from the start of the measurement to the last send.
        requests: meant to be sent; `sent` of them were, and `received` answered.
        statuses: answers by wire status.
        late_sends: sent more than LATE_NS after the intended time; `late_worst_ns` is the worst of all.
        hiccups: gaps between two looks at the clock of the spinning client, of HICCUP_NS or more while it
            waited, and many times that while it sent or received; their sum and the worst.
        batch_rows_sum: over the OK answers.
        samples: SAMPLE array: every request while they fit, beyond that a uniform sample.
        slowest: SAMPLE array: the SLOWEST_MAX slowest OK answers, slowest first; only one of those that one
            read brought, for what one stall held up would fill it alone.
        violation: what ended the run, if something did.
        gaps: GAP array: the first of the hiccups; the Python generator keeps none.
    """

    client: str
    welcome: bytes
    elapsed_ns: int
    intended_span_ns: int
    sent_span_ns: int
    requests: int
    sent: int
    received: int
    statuses: tuple[int, ...]
    late_sends: int
    late_worst_ns: int
    hiccups: int
    hiccup_worst_ns: int
    hiccup_sum_ns: int
    batch_rows_sum: int
    generation_first: int
    generation_last: int
    counts: LatencyCounts
    samples: npt.NDArray[np.void]
    slowest: npt.NDArray[np.void]
    violation: Violation | None
    gaps: npt.NDArray[np.void] = field(default_factory=lambda: np.empty(0, GAP))

    @property
    def lost(self) -> int:
        """Requests that were sent and never answered."""
        return self.sent - self.received

    def plus(self, other: Measurement) -> Measurement:
        """Both runs as one: counts and spans add up, the worst of each is kept."""
        return replace(
            self,
            elapsed_ns=self.elapsed_ns + other.elapsed_ns,
            intended_span_ns=self.intended_span_ns + other.intended_span_ns,
            sent_span_ns=self.sent_span_ns + other.sent_span_ns,
            requests=self.requests + other.requests,
            sent=self.sent + other.sent,
            received=self.received + other.received,
            statuses=tuple(a + b for a, b in zip(self.statuses, other.statuses, strict=True)),
            late_sends=self.late_sends + other.late_sends,
            late_worst_ns=max(self.late_worst_ns, other.late_worst_ns),
            hiccups=self.hiccups + other.hiccups,
            hiccup_worst_ns=max(self.hiccup_worst_ns, other.hiccup_worst_ns),
            hiccup_sum_ns=self.hiccup_sum_ns + other.hiccup_sum_ns,
            batch_rows_sum=self.batch_rows_sum + other.batch_rows_sum,
            generation_last=other.generation_last,
            counts=self.counts.plus(other.counts),
            samples=np.concatenate([self.samples, other.samples]),
            slowest=slowest_of(np.concatenate([self.slowest, other.slowest])),
            violation=self.violation or other.violation,
            gaps=np.concatenate([self.gaps, other.gaps]),
        )


def slowest_of(samples: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """The slowest of SAMPLE rows, as `Measurement.slowest` has them."""
    ordered = samples[np.argsort(samples["intended_ns"] - samples["received_ns"], kind="stable")]
    first_of_read = np.unique(ordered["received_ns"], return_index=True)[1]
    return ordered[np.sort(first_of_read)[:SLOWEST_MAX]]


class LoadGenerator(Protocol):
    """Sends what a plan says and measures."""

    name: str

    def run(self, plan: LoadPlan, on_measuring: Callable[[], None]) -> Measurement:
        """Carry out the plan; `on_measuring` is called once, shortly before the first measured request.

        A peer that breaks the contract or loses replies is a finding, not an error: see `Measurement`.

        Raises:
            PeerFailed: no daemon listens at the socket, or the generator itself could not run.
        """
