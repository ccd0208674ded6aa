"""The fast path in C (fast_path.c), where it was built: the same answers, to the bit, in less time.

It takes what its twins in Python take, and leaves to them what it does not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from sigd.daemon.serving.fast_path import (
    FEATURES_MAX,
    ONE_ROW_OK,
    OUTPUTS_MAX,
    UNDER_WAY,
    FastPath,
    ReceiveRound,
    fits,
    one_row_call,
)
from sigd.daemon.serving.fast_path_ring import make_hand_over
from sigd.models.history import StepWindows
from sigd.wire import fields
from sigd.wire.layout import REQUEST_FEATURES_OFFSET, header_word, outcome_word
from sigd.wire.status import Status

try:
    from sigd.daemon.serving._fast_path import Path
except ImportError:  # there was no compiler
    Path = None  # type: ignore[assignment, misc]

if TYPE_CHECKING:
    from sigd.daemon.serving.batcher import Batcher
    from sigd.daemon.serving.fast_path_ring import PollRound, RingPoll
    from sigd.daemon.serving.session import Session
    from sigd.models.backend import Backend
    from sigd.wire.ring import RingConsumer, RingProducer


CHUNK_ROWS: Final = 6
"""Rows of a ring that a native engine runs together, where at least four have come: see fast_path.c."""
NOT_BUILT: Final = (
    "the fast path runs in Python, which takes a few microseconds more: sigd was installed where there is no"
    " C compiler. Install one (apt-get install gcc) and install sigd again"
)


def is_built() -> bool:
    """Whether this installation has it."""
    return Path is not None


def serves(session: Session) -> bool:
    """Whether it is built, and the session's model is one for it; steps of a kept history only where the
    model answers them from what it kept, and none is left out for a newer one."""
    batcher = session.batcher
    if session.history is None:
        return is_built() and fits(batcher)
    return (
        is_built()
        and session.answers_steps
        and not session.conflate
        and session.inbox.features <= FEATURES_MAX
        and batcher.spec.outputs <= OUTPUTS_MAX
        and batcher.step_check.fits_fast_path
    )


def runs_engine(backend: Backend) -> bool:
    """Whether it calls a native engine by its entry in C."""
    return is_built() and hasattr(backend, "runner")


def make_stream(
    session: Session, batcher: Batcher, clock: Callable[[], int]
) -> tuple[FastPath, ReceiveRound]:
    """As `fast_path.make_fast_path`, of a model that fits; and what reads the socket without the loop."""
    inbox, outbox = session.inbox, session.outbox
    end = REQUEST_FEATURES_OFFSET + 4 * inbox.features

    def adopt(count_bytes: int, now_ns: int, start_ns: int) -> None:
        session.admit_one(count_bytes, now_ns)
        batcher.adopt(session, start_ns)

    row = inbox.bytes[:end]
    path = Path(
        _common(session, batcher, clock, row)
        | {
            "frame": outbox.single,
            "single": outbox.single,
            "send": session.send_answers,
            "adopt": adopt,
            "took": session.took,
            "storage": inbox.bytes,
            "wake": batcher.wake,
            "record": None if session.tap is None else session.tap.fast_path(),
        }
    )
    return path.answer, path.receive


def make_ring(
    session: Session,
    batcher: Batcher,
    requests: RingConsumer,
    responses: RingProducer,
    take: Callable[[int, int], bool],
    wake_client: Callable[[], None],
) -> tuple[RingPoll, PollRound]:
    """As `fast_path_ring.make_ring_poll` and `make_poll_round`, of a model that fits."""
    copied = bytearray(REQUEST_FEATURES_OFFSET + 4 * session.inbox.features)
    model_output = batcher.backend.outputs[:1].data.cast("B")
    record = None if session.tap is None else session.tap.fast_path_in_ring(copied, model_output)
    path = Path(
        _common(session, batcher, batcher.clock, memoryview(copied))
        | {
            "request_header": requests.header,
            "response_header": header_word(fields.SIGNAL_RESPONSE.template_id, responses.frame_bytes),
            "requests": requests,
            "responses": responses,
            "take": take,
            "wake_client": wake_client,
            "adopt": make_hand_over(session, batcher, take),
            "record": record,
        }
        | ring_places(requests, responses)
        | ({} if session.answers_steps else _chunk(batcher, len(copied)))
    )
    return path.poll, path.poll_round


def ring_places(requests: RingConsumer, responses: RingProducer) -> dict[str, Any]:
    """Where two rings stand in their region."""
    return {
        "region": requests.memory,
        "head": requests.head_word,
        "tail": requests.tail_word,
        "answer_head": responses.head_word,
        "answer_tail": responses.tail_word,
        "client_sleeping": responses.sleeping,
        "request_offset": requests.slots_offset,
        "response_offset": responses.slots_offset,
        "request_stride": requests.stride,
        "response_stride": responses.stride,
        "slots": requests.ring_slots,
    }


def _common(session: Session, batcher: Batcher, clock: Callable[[], int], row: memoryview) -> dict[str, Any]:
    """What both transports need. `row` is where a request's frame lies, without its padding."""
    backend, counters = batcher.backend, batcher.counters
    windows = session.history if isinstance(session.history, StepWindows) else None
    check = batcher.row_check if windows is None else batcher.step_check
    feature_floats = row[REQUEST_FEATURES_OFFSET:].cast("f")
    return {
        "session": session,
        "batcher": batcher,
        "inbox": session.inbox,
        "counters": counters,
        "total": counters.total.quick,
        "queue": counters.queue.quick,
        "model": counters.model.quick,
        "clock": None if clock is monotonic_ns else clock,
        "capsule": _capsule(backend) if windows is None else None,
        "steps": None if windows is None or windows.stepped is None else windows.stepped.capsule,
        "places": None if windows is None else windows.places,
        "run": one_row_call(backend, clock),
        "under_way": UNDER_WAY,
        "odd_values": check.odd_values_of(feature_floats),
        "integers": check.integers_of(feature_floats),
        "row": row,
        "input": backend.inputs[:1].data.cast("B"),
        "output": backend.outputs[:1].data.cast("B"),
        "features": session.inbox.features,
        "outputs": batcher.spec.outputs,
        "generation": batcher.generation << 32,
        "one_row_ok": ONE_ROW_OK,
        "another_row": outcome_word(0, Status.OK, 2) - ONE_ROW_OK,
    }


def _chunk(batcher: Batcher, frame_bytes: int) -> dict[str, Any]:
    """Memory for rows that run together, where the model takes as many."""
    if batcher.batch_rows_max < CHUNK_ROWS:
        return {}
    return {
        "chunk": bytearray(CHUNK_ROWS * (frame_bytes + 4 * (batcher.spec.features + batcher.spec.outputs)))
    }


def _capsule(backend: Backend) -> object:
    """The entry into a native engine; None where the backend runs by Python."""
    runner = getattr(backend, "runner", None)
    return None if runner is None else runner(CHUNK_ROWS).capsule
