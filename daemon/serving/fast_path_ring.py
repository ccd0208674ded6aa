"""The fast path, see `daemon.serving.fast_path`, of a request that comes through a ring: from slot to slot in
one function.

A request is copied out of its slot once, and only the copy is looked at. What is unusual stays in its slot,
and goes the batch path, which copies it anew and trusts nothing that was seen here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sigd.daemon.serving.counters import FINE_SHIFT
from sigd.daemon.serving.fast_path import ONE_ROW_OK, U32, UNDER_WAY, finite_check, fits, one_row_call
from sigd.wire import fields
from sigd.wire.errors import FrameError
from sigd.wire.layout import REQUEST_FEATURES_OFFSET, RESPONSE_OUTPUTS_OFFSET, header_word

if TYPE_CHECKING:
    from sigd.daemon.serving.batcher import Batcher
    from sigd.daemon.serving.session import Session
    from sigd.wire.ring import RingConsumer, RingProducer

_REQUEST: Final = struct.Struct("<QQQQQ")
"""Header, sequence, client_time_ns, deadline_ns; instrument_id with flags and reserved above it."""
_RESPONSE: Final = struct.Struct("<QQQQQQQ")
"""Header, sequence, client_time_ns, receive_time_ns, send_time_ns; instrument_id and generation; the
outcome."""

assert _REQUEST.size == REQUEST_FEATURES_OFFSET
assert _RESPONSE.size == RESPONSE_OUTPUTS_OFFSET

_Views = tuple[memoryview, memoryview]
Found = int
EMPTY: Final[Found] = 0
"""The ring is empty."""
HANDED_OVER: Final[Found] = 1
"""What was in it waits for a batch, or has ended the session."""
ANSWERED: Final[Found] = 2
"""What was in it is answered."""
RingPoll = Callable[[], Found]
"""Takes what is in a ring, and says what it found."""
PollRound = Callable[[int, int], int]
"""(polls at most, answers at most) -> how many times something was found; until a request is handed over."""


def make_poll_round(poll: RingPoll) -> PollRound:
    """Polls a ring many times."""

    def poll_round(polls_max: int, answered_max: int) -> int:
        answered = 0
        for _ in range(polls_max):
            found = poll()
            if found:
                answered += 1
                if found == HANDED_OVER or answered == answered_max:
                    break
        return answered

    return poll_round


def make_hand_over(
    session: Session, batcher: Batcher, take: Callable[[int, int], bool]
) -> Callable[[int], Found]:
    """Makes a request that came at that time, and that a device takes long for, the batcher's."""

    def hand_over(now_ns: int) -> Found:
        waits = take(now_ns, 1)
        batcher.adopt(session, now_ns)
        return HANDED_OVER if waits else EMPTY

    return hand_over


def make_ring_poll(
    session: Session,
    batcher: Batcher,
    requests: RingConsumer,
    responses: RingProducer,
    take: Callable[[int, int], bool],
    wake_client: Callable[[], None],
) -> RingPoll:
    """Polls a session's ring once.

    Args:
        take: the batch path: (when, how many were seen before that). A request that comes later is left to
            the next poll, or it would have been received before it was sent.
        wake_client: rings its doorbell.
    """
    clock, words, head_word = batcher.clock, requests.words, requests.head_word
    if not fits(batcher):

        def poll() -> Found:
            rows = words[head_word] - requests.taken
            return HANDED_OVER if rows and take(clock(), rows) else EMPTY

        return poll

    backend, inbox = batcher.backend, session.inbox
    tail_word, answer_head_word, slots = requests.tail_word, responses.head_word, requests.ring_slots
    request_header = requests.header
    response_header = header_word(fields.SIGNAL_RESPONSE.template_id, responses.frame_bytes)
    generation = batcher.generation << 32
    # Views of a slot and of what it carries, made when it is first used: there may be many that never are.
    places = slots - 1
    request_views: list[memoryview | None] = [None] * slots
    response_views: list[_Views | None] = [None] * slots
    features_end = REQUEST_FEATURES_OFFSET + 4 * batcher.spec.features
    outputs_end = RESPONSE_OUTPUTS_OFFSET + 4 * batcher.spec.outputs

    def request_at(place: int) -> memoryview:
        view = request_views[place] = requests.slot(place)[:features_end]
        return view

    def response_at(place: int) -> _Views:
        frame = responses.slot(place)
        views = response_views[place] = (frame, frame[RESPONSE_OUTPUTS_OFFSET:outputs_end])
        return views

    run = one_row_call(backend, clock)
    model_input = backend.inputs[:1].data.cast("B")
    model_output = backend.outputs[:1].data.cast("B")
    outputs_are_finite = finite_check(backend.outputs[0])
    copied = bytearray(features_end)
    features = memoryview(copied)[REQUEST_FEATURES_OFFSET:]
    high_bytes = slice(REQUEST_FEATURES_OFFSET + 3, None, 4)  # see daemon.serving.fast_path
    feature_floats = features.cast("f")
    odd_values_are_good = batcher.row_check.odd_values_of(feature_floats)
    integers_are_good = batcher.row_check.integers_of(feature_floats)
    unpack, pack, fence = _REQUEST.unpack_from, _RESPONSE.pack_into, responses.fence
    flags, client_sleeping = responses.flags, responses.sleeping
    may_run = batcher.may_run_at_once
    counters = batcher.counters
    total_counts, queue_counts, model_counts = (
        counters.total.quick,
        counters.queue.quick,
        counters.model.quick,
    )
    record = None if session.tap is None else session.tap.fast_path_in_ring(copied, model_output)

    def is_full() -> bool:
        """Whether the client has taken none of the answers that fill the ring, or says what cannot be; asked
        when they have gone round once, and for each of several requests."""
        try:
            return responses.room() == 0
        except FrameError:
            return True  # the batch path meets it too, and says so

    hand_over = make_hand_over(session, batcher, take)

    def fast_poll() -> Found:
        taken = requests.taken
        rows = words[head_word] - taken
        if not rows:
            return EMPTY
        published = responses.published
        if (
            (rows != 1 and (not 0 < rows <= min(batcher.one_by_one_rows_max, slots) or is_full()))
            or not may_run(session)
            or inbox.tail
            or (published - responses.tail_seen == slots and is_full())
        ):
            return HANDED_OVER if take(clock(), rows) else EMPTY
        copied[:] = request_views[taken & places] or request_at(taken & places)
        header, sequence, client_time_ns, deadline_ns, instrument = unpack(copied)
        high = copied[high_bytes]
        now_ns = clock()
        if (
            header != request_header
            or ((0x7F in high or 0xFF in high) and not odd_values_are_good())
            or (deadline_ns and deadline_ns < now_ns)
            or (integers_are_good is not None and not integers_are_good())
        ):
            return HANDED_OVER if take(now_ns, rows) else EMPTY
        model_input[:] = features
        try:
            if run() is UNDER_WAY:
                return hand_over(now_ns)
        except Exception as error:  # noqa: BLE001  the batch path says what failed
            batcher.fast_path_failed(error)
            return HANDED_OVER if take(now_ns, rows) else EMPTY
        end_ns = clock()
        infer_ns = end_ns - now_ns
        if not outputs_are_finite() or (deadline_ns and deadline_ns < end_ns) or infer_ns > U32:
            return HANDED_OVER if take(now_ns, rows) else EMPTY
        # The slot is free before the answer is there: a client that sees the answer may send the next request
        # at once.
        requests.taken = words[tail_word] = taken + 1
        frame, part = response_views[published & places] or response_at(published & places)
        words_of_row, outcome = instrument & U32 | generation, ONE_ROW_OK | infer_ns
        pack(frame, 0, response_header, sequence, client_time_ns, now_ns, end_ns, words_of_row, outcome)
        part[:] = model_output
        responses.published = words[answer_head_word] = published + 1
        # The answer is there: what follows delays no client, as long as it is shorter than a client's turn.
        fence()
        if flags[client_sleeping]:
            wake_client()
        batcher.last_batch_ns = end_ns
        if infer_ns < counters.slow_ns:
            # Its time begins with the model's: none of it is spent in a queue.
            total_counts[infer_ns >> FINE_SHIFT] += 1
            queue_counts[0] += 1
            model_counts[infer_ns >> FINE_SHIFT] += 1
        else:
            counters.count_single(infer_ns, infer_ns)
        if record is not None:
            record(sequence, client_time_ns, now_ns, end_ns, instrument, outcome)
        return ANSWERED

    return fast_poll
