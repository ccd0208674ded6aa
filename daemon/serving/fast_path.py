"""The fast path of a stream: a request that arrives alone is run and answered in one function
(docs/decisions/0019).

It is open to the session that had the last batch to itself and, where the model is quick, to every session
while no row waits. All that it needs is a variable of a closure, made once for each connection: nothing is
looked up by name for a request. What is unusual about a request makes it return False with nothing done, and
the request goes the batch path (session, admission, batcher), whose answers are the same to the bit.

A batch on a device is waited for here too, in place: the device runs one batch at a time, so a request that
comes meanwhile could not have begun any sooner. Where it takes longer than `WAIT_NS_MAX` the request becomes
the batcher's, as if it had come by the batch path, which the requests after it take until batches are short
again.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

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
    from sigd.daemon.serving.row_check import RowCheck
    from sigd.daemon.serving.session import Session
    from sigd.models.backend import Backend
    from sigd.models.spec import ModelSpec

FastPath = Callable[[int, int], bool]
"""(bytes that arrived, when) -> True where the request has been answered, False where nothing was done."""

ReceiveRound = Callable[[int, int, int], int]
"""(descriptor, polls at most, answers at most) -> how many times something came from the socket, and was
answered or handed over."""

FEATURES_MAX: Final = 1024
OUTPUTS_MAX: Final = 1024
"""As LANE_FEATURES_MAX and LANE_OUTPUTS_MAX. Past these the values themselves cost more than a batch does."""
SUMMED_OUTPUTS_MAX: Final = 96
"""Up to so many outputs are added up sooner than NumPy, whose price is fixed, looks at them."""
NATIVE_ROWS_MAX: Final = 32
"""As below, of a native engine from C: it runs a row of a batch in no less time than a row alone."""
STEP_ROWS_MAX: Final = 1024
"""As below, of steps of a kept history: their whole windows, which a batch runs, would take longer."""
ONE_BY_ONE_ROWS_MAX: Final = 3
QUICK_RUN_NS_MAX: Final = 15_000
"""Up to so many rows that arrive together run one by one, where a run takes no longer than that: a batch
costs 25 us more (docs/decisions/0019)."""
WAIT_NS_MAX: Final = 250_000
"""How long the loop waits for a device: several batches of a model that is made for this, and less than a
client notices that has not asked for microseconds."""
UNDER_WAY: Final = object()
"""In place of what a run returns: it has not finished."""
ONE_ROW_OK: Final = outcome_word(0, Status.OK, 1)
U32: Final = 0xFFFF_FFFF


def never(count_bytes: int, now_ns: int) -> bool:
    """For connections that are not served yet or any more, and for models that it does not fit."""
    return False


def receive_nothing(descriptor: int, polls_max: int, answered_max: int) -> int:
    """The loop alone reads the socket."""
    return 0


def fits(batcher: Batcher) -> bool:
    """Whether the model is small enough for the fast path."""
    return model_fits(batcher.spec, batcher.row_check)


def model_fits(spec: ModelSpec, row_check: RowCheck) -> bool:
    """As `fits`, of a model that no batcher serves yet."""
    return spec.features <= FEATURES_MAX and spec.outputs <= OUTPUTS_MAX and row_check.fits_fast_path


def finite_check(outputs: npt.NDArray[np.float32]) -> Callable[[], bool]:
    """Whether all values are finite that `outputs`, one row, holds when it is asked."""
    if len(outputs) > SUMMED_OUTPUTS_MAX:
        finite = np.empty(len(outputs), np.bool_)
        look_at = np.isfinite
        return lambda: bool(look_at(outputs, finite).all())
    floats = outputs.data
    return lambda: isfinite(sum(floats))


def one_row_call(backend: Backend, clock: Callable[[], int]) -> Callable[[], object]:
    """Runs the first row of the backend's `inputs`. Returns UNDER_WAY where it gave up waiting, anything else
    where the run has finished.

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


def make_fast_path(session: Session, batcher: Batcher, clock: Callable[[], int]) -> FastPath:
    """The fast path of one connection. Its inbox, outbox and way of answers must be those of its whole
    life."""
    backend, inbox, outbox = batcher.backend, session.inbox, session.outbox
    if not fits(batcher):
        return never
    storage, words = inbox.storage, inbox.words
    features_end = REQUEST_FEATURES_OFFSET + 4 * inbox.features
    features = inbox.bytes[REQUEST_FEATURES_OFFSET:features_end]
    # The highest byte of every feature: sign and upper exponent. In a NaN or an infinity (exponent 255) it is
    # 0x7F or 0xFF; in a finite number only from 1.7e38 on, which the batch path then looks at closely.
    high_bytes = slice(REQUEST_FEATURES_OFFSET + 3, features_end, 4)
    feature_floats = features.cast("f")
    odd_values_are_good = batcher.row_check.odd_values_of(feature_floats)
    integers_are_good = batcher.row_check.integers_of(feature_floats)
    run = one_row_call(backend, clock)
    model_input = backend.inputs[:1].data.cast("B")
    model_output = backend.outputs[:1].data.cast("B")
    outputs_are_finite = finite_check(backend.outputs[0])
    encode, frame, send = outbox.encode_single, outbox.single, session.send_answers
    may_run = batcher.may_run_at_once
    counters = batcher.counters
    total_counts, queue_counts, model_counts = (
        counters.total.quick,
        counters.queue.quick,
        counters.model.quick,
    )
    record = None if session.tap is None else session.tap.fast_path()

    def fast_path(count_bytes: int, now_ns: int) -> bool:
        if (
            not may_run(session)
            or inbox.tail
            or count_bytes != inbox.frame_bytes
            or words[REQUEST_HEADER_WORD] != inbox.header
        ):
            return False
        high = storage[high_bytes]
        deadline_ns = words[REQUEST_DEADLINE_WORD]
        if ((0x7F in high or 0xFF in high) and not odd_values_are_good()) or (
            deadline_ns and deadline_ns < now_ns
        ):
            return False
        model_input[:] = features
        start_ns = clock()
        try:
            if run() is UNDER_WAY:
                session.admit_one(count_bytes, now_ns)
                batcher.adopt(session, start_ns)
                return True
        except Exception as error:  # noqa: BLE001  the batch path says what failed
            batcher.fast_path_failed(error)
            return False
        end_ns = clock()
        infer_ns = end_ns - start_ns
        if not outputs_are_finite() or (deadline_ns and deadline_ns < end_ns) or infer_ns > U32:
            return False
        encode(
            words[REQUEST_SEQUENCE_WORD],
            words[REQUEST_CLIENT_TIME_WORD],
            now_ns,
            end_ns,
            words[REQUEST_INSTRUMENT_WORD] & U32,
            ONE_ROW_OK | infer_ns,
            model_output,
        )
        send(frame)
        # The answer is under way: what follows delays no client, as long as it is shorter than a client's
        # turn.
        batcher.last_batch_ns = end_ns
        total_ns = end_ns - now_ns
        if total_ns < counters.slow_ns:
            total_counts[total_ns >> FINE_SHIFT] += 1
            queue_counts[total_ns - infer_ns >> FINE_SHIFT] += 1
            model_counts[infer_ns >> FINE_SHIFT] += 1
        else:
            counters.count_single(total_ns, infer_ns)
        if record is not None:
            record()
        return True

    if integers_are_good is None:
        return fast_path
    return lambda count_bytes, now_ns: integers_are_good() and fast_path(count_bytes, now_ns)


def run_one_by_one(session: Session, count_bytes: int, now_ns: int) -> int:
    """Runs requests that arrived together, and that `session.fast_path` refused, one after the other: each is
    moved to where the fast path expects one. Not part of the fast path, or session and path would hold each
    other, and no collector runs here.

    Returns how many bytes are left at the start of `session.inbox.writable()`, for the batch path.
    """
    batcher, inbox = session.batcher, session.inbox
    frame_bytes = inbox.frame_bytes
    rows_max = min(batcher.one_by_one_rows_max, session.in_flight_max)
    # A part of the first one may have come before, behind what is answered by now.
    begin, end = inbox.head, inbox.tail + count_bytes
    if (
        not frame_bytes <= end - begin < (rows_max + 1) * frame_bytes
        or end == frame_bytes == count_bytes
        or inbox.rows
        or not batcher.may_run_at_once(session)
    ):
        return count_bytes
    storage, fast_path = inbox.storage, session.fast_path
    if begin:
        storage[: end - begin] = storage[begin:end]
        begin, end = 0, end - begin
    inbox.head = inbox.tail = 0
    while end - begin >= frame_bytes and not (session.closed or inbox.rows):
        # Over one that is answered: what is refused stays as it came.
        if begin:
            storage[:frame_bytes] = storage[begin : begin + frame_bytes]
        if not fast_path(frame_bytes, now_ns):
            break
        begin += frame_bytes
    start, left_bytes = inbox.tail, end - begin
    storage[start : start + left_bytes] = storage[begin:end]
    return left_bytes
