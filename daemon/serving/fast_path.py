"""The shortest way: a request that arrives alone is run and answered in one function, while nobody else talks
or, where the model is quick, while nobody waits (docs/decisions/0019).

Everything it needs is at hand as a variable of a closure, made once for each connection: nothing is looked up
by name for a request, and one Python call deep it goes from arrived bytes to sent bytes. Whatever is unusual
about a request makes it return False with nothing done, and the request goes the full way (session,
screening, batcher), whose answers are the same to the bit.

A batch on a device is waited for here too, in its place: the device runs one batch at a time, so whoever
comes meanwhile could not have begun any sooner. Where it takes longer than `WAIT_NS_MAX` the request becomes
the batcher's, as if it had come the full way, which those after it do until batches are short again.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import TYPE_CHECKING, Final

from sigd.daemon.serving.counters import FINE_SHIFT
from sigd.wire.layout import (
    REQUEST_CLIENT_TIME_WORD,
    REQUEST_DEADLINE_WORD,
    REQUEST_FEATURES_OFFSET,
    REQUEST_HEADER_WORD,
    REQUEST_INSTRUMENT_WORD,
    REQUEST_SEQUENCE_WORD,
    outcome_word,
)
from sigd.wire.status import Status

if TYPE_CHECKING:
    from sigd.daemon.serving.batcher import Batcher
    from sigd.daemon.serving.session import Session
    from sigd.models.backend import Backend

LonePath = Callable[[int, int], bool]
"""(bytes that arrived, when) -> True where the request has been answered, False where nothing was done."""

FEATURES_MAX: Final = 1024
OUTPUTS_MAX: Final = 16
"""Past these a loop over single values, here in C and there in Python, costs more than NumPy's fixed
price."""
FEW_ROWS_MAX: Final = 3
FEW_RUN_NS_MAX: Final = 15_000
"""So many that arrive together are answered sooner one after the other than in one batch, which costs 25 us
more, where a run
is no longer than that: docs/decisions/0019."""
WAIT_NS_MAX: Final = 250_000
"""How long the loop waits for a device: several batches of a model that is made for this, and less than
anybody notices who has not asked for microseconds."""
UNDER_WAY: Final = object()
"""In place of what a run returns: it has not finished."""
LONE_OUTCOME: Final = outcome_word(0, Status.OK, 1)
U32: Final = 0xFFFF_FFFF


def never(count_bytes: int, now_ns: int) -> bool:
    """For connections that are not served yet or any more, and for models that it does not fit."""
    return False


def fits(batcher: Batcher) -> bool:
    """Whether the shortest way is for this model."""
    spec = batcher.spec
    return spec.features <= FEATURES_MAX and spec.outputs <= OUTPUTS_MAX


def lone_run(backend: Backend, clock: Callable[[], int]) -> Callable[[], object]:
    """Runs the first row of the backend's `inputs`: UNDER_WAY where it gave up waiting, whatever else where
    it has finished.

    Raises what the backend's `submit`, `ready` and `bare_call` do.
    """
    if backend.synchronous:
        return backend.bare_call(1)
    submit, ready = backend.submit, backend.ready

    def run() -> object:
        submit(1)
        if ready():
            return None
        until_ns = clock() + WAIT_NS_MAX
        while not ready():
            if clock() > until_ns:
                return UNDER_WAY
        return None

    return run


def lone_path(session: Session, batcher: Batcher, clock: Callable[[], int]) -> LonePath:
    """The shortest way of one connection. Its inbox, outbox and way of answers must be those of its whole
    life."""
    backend, inbox, outbox = batcher.backend, session.inbox, session.outbox
    if not fits(batcher):
        return never
    storage, words = inbox.storage, inbox.words
    features_end = REQUEST_FEATURES_OFFSET + 4 * inbox.features
    features = inbox.bytes[REQUEST_FEATURES_OFFSET:features_end]
    # The highest byte of every feature: sign and upper exponent. In a NaN or an infinity (exponent 255) it is
    # 0x7F or 0xFF; in a finite number only from 1.7e38 on, which the full way then looks at closely.
    high_bytes = slice(REQUEST_FEATURES_OFFSET + 3, features_end, 4)
    run = lone_run(backend, clock)
    model_input = backend.inputs[:1].data.cast("B")
    model_output = backend.outputs[:1].data.cast("B")
    output_floats = backend.outputs[0].data
    encode, frame, send = outbox.encode_single, outbox.lone, session.send_answers
    counters = batcher.counters
    total_counts, queue_counts, model_counts = (
        counters.total.quick,
        counters.queue.quick,
        counters.model.quick,
    )
    record = None if session.tap is None else session.tap.lone()

    def lone(count_bytes: int, now_ns: int) -> bool:
        if (
            (batcher.alone is not session and not (batcher.anyone and session.serving))
            or inbox.tail
            or count_bytes != inbox.frame_bytes
            or words[REQUEST_HEADER_WORD] != inbox.header
        ):
            return False
        high = storage[high_bytes]
        deadline_ns = words[REQUEST_DEADLINE_WORD]
        if 0x7F in high or 0xFF in high or (deadline_ns and deadline_ns < now_ns):
            return False
        model_input[:] = features
        start_ns = clock()
        try:
            if run() is UNDER_WAY:
                session.take_lone(count_bytes, now_ns)
                batcher.adopt(session, start_ns)
                return True
        except Exception as error:  # noqa: BLE001  whatever it was, the request must be answered
            session.take_lone(count_bytes, now_ns)
            batcher.fail_lone(session, error)
            return True
        end_ns = clock()
        infer_ns = end_ns - start_ns
        if not isfinite(sum(output_floats)) or (deadline_ns and deadline_ns < end_ns) or infer_ns > U32:
            return False
        encode(
            words[REQUEST_SEQUENCE_WORD],
            words[REQUEST_CLIENT_TIME_WORD],
            now_ns,
            end_ns,
            words[REQUEST_INSTRUMENT_WORD] & U32,
            LONE_OUTCOME | infer_ns,
            model_output,
        )
        send(frame)
        # The answer is under way: what follows costs nobody's latency, as long as it is shorter than a
        # client's turn.
        batcher.last_batch_ns = end_ns
        total_ns = end_ns - now_ns
        if total_ns < counters.slow_ns:
            total_counts[total_ns >> FINE_SHIFT] += 1
            queue_counts[total_ns - infer_ns >> FINE_SHIFT] += 1
            model_counts[infer_ns >> FINE_SHIFT] += 1
        else:
            counters.count_lone(total_ns, infer_ns)
        if record is not None:
            record()
        return True

    return lone


def lone_few(session: Session, count_bytes: int, now_ns: int) -> int:
    """Requests that arrived together, and that `session.lone` did not want at once: one after the other, each
    moved to where it looks for one. Not inside it, or the two would hold each other, and no collector runs
    here.

    Returns how many bytes are left at the start of `session.inbox.writable()`, for the full way.
    """
    batcher, inbox = session.batcher, session.inbox
    frame_bytes = inbox.frame_bytes
    rows_max = min(batcher.alone_rows_max, session.in_flight_max)
    if (
        (batcher.alone is not session and not (batcher.anyone and session.serving))
        or inbox.tail
        or not frame_bytes < count_bytes <= rows_max * frame_bytes
        or count_bytes % frame_bytes
    ):
        return count_bytes
    storage, lone = inbox.storage, session.lone
    while count_bytes and not session.closed and lone(frame_bytes, now_ns):
        count_bytes -= frame_bytes
        if inbox.rows:
            break
        storage[:count_bytes] = storage[frame_bytes : frame_bytes + count_bytes]
    return count_bytes
