"""The stages and how long each takes."""

from __future__ import annotations

import asyncio
import itertools
import mmap
from collections.abc import Callable
from functools import partial
from statistics import median
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

import msgspec

from sigd.bench.profile.client import ServedClient
from sigd.daemon.config.choices import IdleStrategy
from sigd.daemon.runtime.ticker import Ticker
from sigd.daemon.serving.admission import admit_to_batch
from sigd.daemon.serving.fast_path import never
from sigd.wire.region import region_layout
from sigd.wire.ring import Region

if TYPE_CHECKING:
    from sigd.models.backend import Backend

BATCHING: Final = "batching around them"
"""What the batcher does besides the stages above it; of a request alone, all of its way but the model."""
COLDER: Final = "colder caches, the tick itself"
"""What the whole takes longer than its stages, each of which runs over and over and has the core's caches to
itself."""
WHOLE: Final = "a tick with these requests"
_CALLS_MIN: Final = 20
_WARMUP_CALLS: Final = 50


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One load.

    Attributes:
        title: what it is.
        rows: requests in a tick.
        stages_ns: medians over the calls for all rows of a tick together, in the order of a request's way;
            the last one is the whole, and those before it add up to it.
    """

    title: str
    rows: int
    stages_ns: dict[str, float]


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """All that is measured, in ns.

    Attributes:
        empty_tick_ns: a tick that finds nothing in one ring.
        round_ns: a round of the loop with a tick that does nothing: the loop's own look at its sockets.
    """

    model: str
    features: int
    outputs: int
    backend: str
    columns: list[Column]
    empty_tick_ns: float
    round_ns: float


def measure(backend: Backend, rows: int, seconds: float) -> Times:
    """Time every stage for `seconds` each, with one request in a tick and with `rows`, or as many as fit.

    `backend` is open, and finishes a batch where it is submitted.
    """
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        round_ns = _round_ns(loop, seconds)
        client = ServedClient(loop, backend)
        try:
            stages = _Stages(client, backend, seconds)
            columns = [stages.together(1), stages.together(min(rows, client.rows_max))]
            if client.session.fast_path is not never:
                columns.insert(0, stages.fast_path())
            empty_tick_ns = stages.time(client.poll)
        finally:
            client.close()
    finally:
        loop.close()
    spec = backend.spec
    return Times(
        model=spec.path.name,
        features=spec.features,
        outputs=spec.outputs,
        backend=backend.name,
        columns=columns,
        empty_tick_ns=empty_tick_ns,
        round_ns=round_ns,
    )


def _round_ns(loop: asyncio.AbstractEventLoop, seconds: float) -> float:
    rounds = itertools.count()
    ticker = Ticker(
        loop,
        IdleStrategy.SPIN,
        [lambda: next(rounds) < 0],
        lambda: 0,
        monotonic_ns,
        0,
        lambda: None,
        lambda: True,
    )
    ticker.start()
    begin_ns = monotonic_ns()
    loop.call_later(seconds, loop.stop)
    loop.run_forever()
    span_ns = monotonic_ns() - begin_ns
    ticker.stop()
    return span_ns / max(next(rounds), 1)


class _Stages:
    """Times the stages of one client's requests."""

    def __init__(self, client: ServedClient, backend: Backend, seconds: float) -> None:
        self._client = client
        self._backend = backend
        self._seconds = seconds
        self._clock_cost_ns = _clock_cost_ns()
        # Rings of their own for what is taken and published alone: the session's are not to be had from
        # outside.
        spec = backend.spec
        layout = region_layout(client.session.in_flight_max, spec.features, spec.outputs)
        region = Region.create(memoryview(mmap.mmap(-1, layout.region_bytes)), layout)
        self._requests = (region.requests_out(), region.requests_in())
        self._responses = (region.responses_out(), region.responses_in())
        self._room = memoryview(bytearray(layout.region_bytes))

    def fast_path(self) -> Column:
        """One request at a time, from the only client that asks: the fast path."""
        client, backend, session = self._client, self._backend, self._client.session
        client.batcher.close_fast_path()
        for _ in range(2):
            self._tick(1)
        assert client.batcher.fast_path_owner is session, "the request goes the batch path"
        model_ns = self.time(backend.bare_call(1))
        whole_ns = self.time(client.poll, before=partial(client.publish, 1), after=partial(client.take, 1))
        assert client.batcher.fast_path_owner is session, "the request went the batch path"
        # It is one function: of its stages only the model can be called alone.
        stages = {"model": model_ns, BATCHING: whole_ns - model_ns, WHOLE: whole_ns}
        return Column(title="1, fast path", rows=1, stages_ns=stages)

    def together(self, rows: int) -> Column:
        """That many requests in one tick, the batch path."""
        client, backend, session, batcher = (
            self._client,
            self._backend,
            self._client.session,
            self._client.batcher,
        )
        inbox, now_ns = session.inbox, monotonic_ns()
        count_bytes = rows * inbox.frame_bytes
        frames = client.frames[:count_bytes]

        def arrive() -> None:
            batcher.close_fast_path()
            inbox.writable()[:count_bytes] = frames

        def undo() -> None:
            batcher.forget(session)
            batcher.pending_rows -= rows
            inbox.answered(rows)

        stages = {"take from the ring": self._take_ns(rows)}
        stages["admit"] = self.time(partial(session.took, count_bytes, now_ns), before=arrive, after=undo)
        arrive()
        session.took(count_bytes, now_ns)
        stages["admit_to_batch"] = self.time(
            partial(admit_to_batch, session, rows, backend.inputs, 0, now_ns, batcher.row_check)
        )
        stages["model"] = self.time(partial(backend.submit, rows))
        words = inbox.row_words(0, rows)
        encode = partial(
            session.outbox.encode,
            words,
            backend.outputs[:rows],
            None,
            send_time_ns=now_ns,
            infer_ns=100,
            batch_rows=rows,
        )
        stages["encode"] = self.time(encode)
        stages["count"] = self.time(
            partial(batcher.counters.count_answers, words[:, 0], None, now_ns + 1000, 100)
        )
        undo()

        def admit() -> None:
            arrive()
            session.took(count_bytes, now_ns)
            batcher.close_fast_path()

        batch_ns = self._without_sending(partial(self.time, batcher.poll, before=admit))
        stages[BATCHING] = batch_ns - sum(
            stages[name] for name in ("admit_to_batch", "model", "encode", "count")
        )
        stages["publish"] = self._publish_ns(session.outbox.bytes[: rows * session.outbox.frame_bytes])

        def ask() -> None:
            batcher.close_fast_path()
            client.publish(rows)

        whole_ns = self.time(client.poll, before=ask, after=partial(client.take, rows))
        stages[COLDER] = whole_ns - sum(stages.values())
        title = f"{rows} together" if rows > 1 else "1, batch path"
        return Column(title=title, rows=rows, stages_ns=stages | {WHOLE: whole_ns})

    def time(
        self,
        call: Callable[[], object],
        before: Callable[[], object] | None = None,
        after: Callable[[], object] | None = None,
    ) -> float:
        """Median ns of `call`, without `before` and `after` and the clock's own cost."""
        durations: list[int] = []
        for _ in range(_WARMUP_CALLS):
            _once(call, before, after)
        end_ns = monotonic_ns() + round(self._seconds * 1e9)
        while len(durations) < _CALLS_MIN or monotonic_ns() < end_ns:
            durations.append(_once(call, before, after))
        return max(0.0, median(durations) - self._clock_cost_ns)

    def _without_sending(self, measure: Callable[[], float]) -> float:
        """Run `measure` while the session's answers go nowhere."""
        session = self._client.session
        send, session.send_answers = session.send_answers, _nowhere
        try:
            return measure()
        finally:
            session.send_answers = send

    def _tick(self, rows: int) -> None:
        self._client.publish(rows)
        self._client.poll()
        self._client.take(rows)

    def _take_ns(self, rows: int) -> float:
        producer, consumer = self._requests
        frames = self._client.frames[: rows * consumer.frame_bytes]
        inbox = self._client.session.inbox
        return self.time(
            partial(consumer.take, inbox.writable(), rows), before=partial(producer.publish, frames)
        )

    def _publish_ns(self, answers: memoryview) -> float:
        producer, consumer = self._responses
        return self.time(
            partial(producer.publish, answers), after=partial(consumer.take, self._room, consumer.ring_slots)
        )


def _clock_cost_ns() -> float:
    costs = []
    for _ in range(1001):
        begin_ns = monotonic_ns()
        costs.append(monotonic_ns() - begin_ns)
    return median(costs)


def _once(
    call: Callable[[], object], before: Callable[[], object] | None, after: Callable[[], object] | None
) -> int:
    if before is not None:
        before()
    begin_ns = monotonic_ns()
    call()
    end_ns = monotonic_ns()
    if after is not None:
        after()
    return end_ns - begin_ns


def _nowhere(_answers: memoryview) -> None:
    """Where answers go that are not sent."""
